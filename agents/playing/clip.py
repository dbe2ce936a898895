"""A short clip of play for TensorBoard: what the agent sees, small enough to be kept by the dozen.

Made of observations alone, so that recording costs neither a second emulator nor a random number.
"""

import cv2
import imageio.v3 as imageio
import numpy as np
from numpy.typing import NDArray

from agents.playing.evaluate import PlayStep
from envs import as_picture

STRIDE_STEPS = 2
"""Agent steps from picture to picture."""
MAX_PICTURES = 300
_WIDTH, _STRIP = 168, 18
_MILLISECONDS = 70
"""That a picture is shown: about twice the speed of play (4 frames of 1/60 s to a step)."""


class EpisodeClip:
    """The first episode of the first game, up to `MAX_PICTURES`; hand it to `play` as `on_step`."""

    def __init__(self) -> None:
        self._pictures: list[NDArray[np.uint8]] = []
        self._score, self._steps, self._done = 0.0, 0, False

    def __call__(self, step: PlayStep) -> None:
        """See `agents.playing.evaluate.OnStep`."""
        if self._done:
            return
        if not step.info["episode_start"][0]:
            self._steps += 1
            self._score += float(step.reward[0])
        self._done = bool(step.info["episode_end"][0])
        if self._steps % STRIDE_STEPS == 0 or self._done:
            self._pictures.append(self._draw(step.newest))
        self._done |= len(self._pictures) == MAX_PICTURES

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the pictures."""
        height, width = self._pictures[0].shape[:2]
        return height, width

    def gif(self) -> bytes:
        """The clip so far, as a GIF."""
        return imageio.imwrite(
            "<bytes>", self._pictures, extension=".gif", duration=_MILLISECONDS, loop=0
        )

    def _draw(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Enlarged, below a line of text; grey ones stay [H, W], which take less space."""
        image = as_picture(frame)
        if frame.ndim == 2 or len(frame) != 3:
            image = image[..., 0]
        scale = max(1, round(_WIDTH / image.shape[1]))
        large = image.repeat(scale, 0).repeat(scale, 1)
        strip = np.zeros((_STRIP, *large.shape[1:]), np.uint8)
        text = f"step {self._steps}  score {self._score:.6g}"
        white = (255,) * 3
        cv2.putText(strip, text, (3, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.38, white, 1, cv2.LINE_AA)
        return np.concatenate([strip, large])
