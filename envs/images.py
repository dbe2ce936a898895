"""Which observation and action spaces are supported, and how an image becomes a frame."""

import dataclasses
from typing import Any, Literal

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Space
from numpy.typing import NDArray

MAX_ACTIONS = 256
"""A replay stores an action in one byte."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageLayout:
    """How an environment's image [H, W], [H, W, c] or [c, H, W] becomes a frame [c, H, W]."""

    channels: int
    height: int
    width: int
    axes: Literal["HW", "HWC", "CHW"]
    scale: int

    def frames(self, images: NDArray[Any]) -> NDArray[np.uint8]:
        """The frames [N, c, H, W] of N images."""
        if self.axes == "HW":
            images = images[:, None]
        elif self.axes == "HWC":
            images = images.transpose(0, 3, 1, 2)
        return images.astype(np.uint8) * np.uint8(self.scale)


def image_layout(game: str, space: Space[Any]) -> ImageLayout:
    """How the images of an observation space become frames.

    Of three axes the first is the channels where it is the smallest, else the last.

    Raises:
        ValueError: other observations; the message says which are allowed.
    """
    kind = space.dtype if isinstance(space, Box) else None
    if not isinstance(space, Box) or len(space.shape) not in (2, 3) or kind not in (np.uint8, bool):
        description = f"{type(space).__name__} {space.shape}, {space.dtype}"
        if isinstance(space, Dict):
            description = f"Dict of {', '.join(space)}"
        raise ValueError(
            f"{game}: observations {description} are not allowed: one image, Box (H, W), "
            "(H, W, channels) or (channels, H, W), uint8 or bool (env.wrappers can turn others "
            "into one)"
        )
    shape, scale = space.shape, 255 if kind == np.bool_ else 1
    if len(shape) == 2:
        return ImageLayout(channels=1, height=shape[0], width=shape[1], axes="HW", scale=scale)
    if shape[0] < min(shape[1:]):
        return ImageLayout(
            channels=shape[0], height=shape[1], width=shape[2], axes="CHW", scale=scale
        )
    return ImageLayout(channels=shape[2], height=shape[0], width=shape[1], axes="HWC", scale=scale)


def action_range(game: str, space: Space[Any]) -> tuple[int, int]:
    """The first action and how many there are.

    Raises:
        ValueError: other actions; the message says which are allowed.
    """
    if not isinstance(space, Discrete) or space.n > MAX_ACTIONS:
        raise ValueError(
            f"{game}: actions {space} are not allowed: Discrete, at most {MAX_ACTIONS}"
        )
    return int(space.start), int(space.n)
