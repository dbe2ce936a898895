"""What an agent relies on: what one step of an environment brings, and the settings it stands for.

T time steps and B rows apart, an observation is uint8 [C, H, W], as encoders take it: S stacked
frames of c channels each, the oldest first, so C = S * c. A replay stores one frame of each step,
[H, W] where c = 1 and else [c, H, W], and stacks again when it samples. Frames before an episode's
first are zero.
"""

import dataclasses
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class EnvProtocol(Protocol):
    """Settings that a score depends on, and is published with: a frozen dataclass."""

    @property
    def name(self) -> str:
        """Name of the settings that these were derived from."""
        ...

    @property
    def stack_num(self) -> int:
        """S, frames per observation."""
        ...

    @property
    def terminal_on_life_loss(self) -> bool:
        """Whether a lost life ends the return in training."""
        ...

    @property
    def render_fps(self) -> float:
        """Agent steps in a second of play."""
        ...


def protocol_fields(protocol: EnvProtocol) -> dict[str, Any]:
    """All settings of a protocol by name, as plain values that survive JSON unchanged."""
    fields: Any = protocol
    found = dataclasses.asdict(fields)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSpec:
    """The contents of one step of an environment."""

    height: int
    """H, pixels."""
    width: int
    """W, pixels."""
    channels: int = 1
    """c, of one frame: 1 is grey, 3 is RGB, any other number has a meaning of its own."""
    stack_num: int = 1
    """S, frames per observation."""
    reward: Literal["integer", "float"] = "float"
    """Rewards are float32 either way; whole numbers below 2^24 are exact there."""
    has_lives: bool = False
    """Whether `info["lives"]` counts anything; 0 everywhere otherwise."""

    @property
    def obs_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an observation."""
        return self.stack_num * self.channels, self.height, self.width

    def newest(self, obs: Any) -> Any:
        """The newest frame of each observation, as it is stored.

        Args:
            obs: array or tensor [B, C, H, W].

        Returns:
            A view [B, H, W], or [B, c, H, W] where a frame has several channels.
        """
        return newest_frame(obs, self.channels)


def newest_frame(obs: Any, channels: int) -> Any:
    """See `StepSpec.newest`."""
    return obs[:, -1] if channels == 1 else obs[:, -channels:]


def as_picture(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A stored frame, [H, W] or [c, H, W], as RGB [H, W, 3].

    Three channels are red, green and blue; of any other number the brightest is shown, in grey.
    """
    if frame.ndim == 3 and len(frame) == 3:
        return np.ascontiguousarray(frame.transpose(1, 2, 0))
    gray = frame if frame.ndim == 2 else frame.max(0)
    return np.repeat(gray[..., None], 3, axis=-1)
