"""A video of the first episode: the game in colour, and beside it what the agent sees and chooses.

The agent's side is the newest frame of its observation, its action, the lives left and its value of
each action. The pictures come from a second environment
of the first game, which plays along with the same seed and actions, so nothing about the episode
that is scored changes. A game that draws nothing but its observations has no picture beside them.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import imageio.v3 as imageio
import numpy as np

from agents.config import Config
from agents.playing.attention import AttentionView
from agents.playing.drawing import LINE, Image, canvas, stack, value_bars, write
from agents.playing.evaluate import PlayStep, env_seed
from envs import AtariVecEnv, GameVecEnv, as_picture, make_env
from rl_nfm.support.output_files import written
from rl_nfm.support.video import video_writer

STILL_STEP = 100
"""The still picture shows this agent step, or the last one of a shorter episode."""

FPS = 15
"""Agent steps in a second of play: 60 emulator frames, 4 to a step."""

# Multiples of 16, as video encoders want them. The picture of an Atari fills a 4:3 screen.
_HEIGHT, _GAME_WIDTH, _SIDE_WIDTH, _VIEW, _TEXT_HEIGHT = 480, 640, 480, 240, 32


@contextlib.contextmanager
def record_first_episode(
    path: Path, config: Config, *, seed: int, attention: AttentionView | None = None
) -> Iterator["EpisodeVideo"]:
    """A recorder to hand to `play` as `on_step`; the file is whole or not there at all.

    Args:
        path: ends in .mp4.
        config: that of `play`.
        seed: that of `play`.
        attention: drawn below the game; a still of it is written beside the video, as .png.

    Raises:
        OSError: if it cannot be written.
    """
    twin = make_env(config.game, num_envs=1, protocol=config.protocol, render_mode="rgb_array")
    with contextlib.closing(twin), written(path) as partial, contextlib.ExitStack() as stack:
        video = EpisodeVideo(twin, seed, partial, stack, attention)
        yield video
        if attention is not None and video.still is not None:
            with written(path.with_suffix(".png")) as still:
                imageio.imwrite(still, video.still, extension=".png")


class EpisodeVideo:
    """Draws one image per observation of the first game, until its first episode has ended."""

    def __init__(
        self,
        twin: GameVecEnv,
        seed: int,
        path: Path,
        stack: contextlib.ExitStack,
        attention: AttentionView | None,
    ):
        self.game, self.twin, self.attention = twin.game, twin, attention
        self._env_seed = env_seed(seed)
        self.still: Image | None = None
        self._path, self._stack = path, stack
        self._append: Callable[[Image], None] | None = None
        self._size = (0, 0)
        self.steps, self.score, self.done = 0, 0.0, False
        self._action = 0

    def __call__(self, step: PlayStep) -> None:
        """See `agents.playing.evaluate.OnStep`."""
        if self.done:
            return
        if step.info["episode_start"][0]:
            self.twin.reset(seed=self._env_seed)
        else:
            self.steps += 1
            self.score += float(step.reward[0])
            _, reward, *_ = self.twin.step([self._action])
            if reward != step.reward[:1]:
                raise ValueError(
                    f"game: {self.game!r} cannot be recorded: its seed does not determine it, and "
                    "the second one, which is drawn, plays another game"
                )
        picture = self.twin.render()[0] if self.twin.draws else None
        self._action = int(step.action[0])
        self._write(self._draw(picture, step))
        self.done = bool(step.info["episode_end"][0])
        if self.done:
            self._stack.close()  # now, so that a full disk is not found out after hours of play

    def _write(self, image: Image) -> None:
        """Append an image; the first one decides the size, in multiples of 16."""
        height, width = (-(-size // 16) * 16 for size in image.shape[:2])
        if self._append is None:
            self._size = (height, width)
            self._append = self._stack.enter_context(video_writer(self._path, self._size, FPS))
        canvas = np.zeros((*self._size, 3), np.uint8)
        canvas[: image.shape[0], : image.shape[1]] = image
        self._append(canvas)
        if self.steps <= STILL_STEP:
            self.still = canvas

    def _draw(self, picture: Image | None, step: PlayStep) -> Image:
        side = self._draw_side(step)
        panels = [side]
        if picture is not None:
            size = (_HEIGHT, _GAME_WIDTH)
            # A television shows Atari's pixels wide.
            wide = isinstance(self.twin, AtariVecEnv)
            panels = [_scaled(picture, size) if wide else _fitted(picture, size), side]
        title = canvas(_TEXT_HEIGHT, sum(panel.shape[1] for panel in panels))
        write(title, f"{self.game}  score {self.score:.6g}  step {self.steps}", 8, 22, scale=0.6)
        rows = [title, np.hstack(panels)]
        if self.attention is not None:
            rows.append(self.attention.draw(step.newest))
        return stack(rows)

    def _draw_side(self, step: PlayStep) -> Image:
        """What the agent sees, the action it chooses and its value of each action."""
        side = canvas(_HEIGHT, _SIDE_WIDTH)
        side[:_VIEW, :_VIEW] = _fitted(as_picture(step.newest), (_VIEW, _VIEW))
        names = self.twin.action_meanings
        lines = ["what the agent sees", f"action: {names[self._action]}"]
        if self.twin.step_spec.has_lives:
            lines.append(f"lives: {int(step.info['lives'][0])}")
        values = None if step.actor is None else step.actor.values
        if values is not None:
            lines.append("below: value of each action")
            bars = value_bars(
                (_HEIGHT - _VIEW - LINE, _SIDE_WIDTH),
                names,
                values[0].float().cpu().numpy(),
                self._action,
            )
            side[_VIEW + LINE :] = bars
        for number, line in enumerate(lines):
            write(side, line, _VIEW + 12, 24 + 24 * number, scale=0.5)
        return side


def _scaled(image: Image, size: tuple[int, int]) -> Image:
    """The image enlarged to (height, width), with sharp pixels."""
    scaled = cv2.resize(image, size[::-1], interpolation=cv2.INTER_NEAREST)
    return np.asarray(scaled, np.uint8)


def _fitted(image: Image, size: tuple[int, int]) -> Image:
    """The image enlarged as far as it fits into (height, width), in the middle of black."""
    height, width = image.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    inner = _scaled(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    top, left = ((size[axis] - inner.shape[axis]) // 2 for axis in (0, 1))
    fitted = canvas(*size)
    fitted[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return fitted
