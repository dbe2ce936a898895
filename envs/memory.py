"""A tiny memory task in the shape of an Atari game: is a recurrent encoder really recurrent?

The first frame of an episode shows one of four cues (a bright quadrant), `BLANK_STEPS` black
frames follow, then a white one, at which the action named by the cue earns 1, any other 0, and
the episode ends. Actions before that do nothing. Whoever remembers the cue can reach a return of
1; whoever sees the current frame only gets 1 / 4 on average.

Our own task, in the manner of the T-maze (Bakker 2002): a cue at the start, a choice at the end.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.atari.protocols import AtariProtocol, make_protocol
from envs.registry import register_env
from envs.spec import StepSpec
from envs.vector import GameVecEnv, Turn

MEMORY_CUE = "memory_cue"

BLANK_STEPS = 5
_CHOICE_STEP = BLANK_STEPS + 1
_ACTIONS = ["UPLEFT", "UPRIGHT", "DOWNLEFT", "DOWNRIGHT"]
# Rows of the table of frames, after those of the cues.
_BLACK, _WHITE = len(_ACTIONS), len(_ACTIONS) + 1

MEMORY_PROTOCOL = AtariProtocol(
    name=MEMORY_CUE,
    repeat_action_probability=0.0,
    full_action_space=False,
    noop_max=0,
    frameskip=1,
    maxpool=False,
    stack_num=1,
    img_height=36,
    img_width=36,
    terminal_on_life_loss=False,
    use_fire_reset=False,
    max_num_frames_per_episode=_CHOICE_STEP + 1,
)
"""The settings of the task; only the size of its frames can be changed."""


class MemoryCueVecEnv(GameVecEnv):
    """Environments of the memory task; see the module, and `GameVecEnv` for what they share.

    Episodes always terminate, never are truncated, and have no lives. With `batch_size` below
    `num_envs` the environments take turns in a fixed order.
    """

    source = "envs.memory"

    def __init__(
        self,
        protocol: AtariProtocol = MEMORY_PROTOCOL,
        *,
        num_envs: int = 8,
        batch_size: int = 0,
        seed: int | None = None,
        render_mode: str | None = None,
    ):
        """Arguments as for `make_atari`; only the frame size of the protocol may differ."""
        for field, value in vars(MEMORY_PROTOCOL).items():
            setting = getattr(protocol, field)
            if setting != value and field not in ("img_height", "img_width"):
                raise ValueError(f"{field}: {setting!r} is not allowed, {MEMORY_CUE} has {value!r}")
        super().__init__(
            MEMORY_CUE,
            protocol,
            num_envs=num_envs,
            batch_size=batch_size,
            seed=seed,
            render_mode=render_mode,
        )
        self._frames = _frames(protocol.img_height, protocol.img_width)
        self._streams: list[np.random.Generator] = []
        self._cues = np.zeros(self.num_envs, np.int64)
        self._steps = np.zeros(self.num_envs, np.int32)
        self._total_steps = np.zeros(self.num_envs, np.int32)
        self._rewards = np.zeros(self.num_envs, np.int32)
        self._queue = np.arange(self.num_envs, dtype=np.int32)
        self._rows = self._queue[: self.batch_size]
        spec = StepSpec(height=protocol.img_height, width=protocol.img_width, reward="integer")
        self._open(list(_ACTIONS), spec)

    def _restart(self, seed: int | None, turn: Turn) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        del turn  # nothing is ever under way
        if seed is not None or not self._streams:
            seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
            self._streams = [np.random.default_rng(s) for s in seeds]
        self._queue = np.arange(self.num_envs, dtype=np.int32)
        self._begin_episodes(self._queue)
        obs, _, _, _, info = self._collect()
        return obs, info

    def _begin_episodes(self, ids: NDArray[np.int32]) -> None:
        self._steps[ids] = 0
        self._rewards[ids] = 0
        for i in ids:
            self._cues[i] = self._streams[i].integers(len(_ACTIONS))

    def _dispatch(self, actions: NDArray[np.int64]) -> None:
        ids = self._rows
        new = self._over[ids]
        chosen = (self._steps[ids] == _CHOICE_STEP) & (actions == self._cues[ids])
        self._rewards[ids] = chosen
        self._steps[ids] += 1
        self._total_steps[ids] += ~new
        self._begin_episodes(ids[new])
        self._queue = np.concatenate([self._queue, ids])

    def _collect(
        self,
    ) -> tuple[
        NDArray[np.uint8], NDArray[np.int32], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
    ]:
        self._rows, self._queue = np.split(self._queue, [self.batch_size])
        ids = self._rows
        steps = self._steps[ids]
        frame = np.where(steps == 0, self._cues[ids], _BLACK)
        frame = np.where(steps == _CHOICE_STEP, _WHITE, frame)
        info = {
            "env_id": ids.copy(),
            "lives": np.zeros(self.batch_size, np.int32),
            "frame_number": self._total_steps[ids],
            "episode_frame_number": steps,
        }
        never = np.zeros(self.batch_size, np.bool_)
        return self._frames[frame], self._rewards[ids], steps > _CHOICE_STEP, never, info


def _frames(height: int, width: int) -> NDArray[np.uint8]:
    """All possible frames [6, 1, H, W]: four cues, black, white."""
    frames = np.zeros((len(_ACTIONS) + 2, 1, height, width), np.uint8)
    top, left = height // 2, width // 2
    frames[0, :, :top, :left] = 255
    frames[1, :, :top, left:] = 255
    frames[2, :, top:, :left] = 255
    frames[3, :, top:, left:] = 255
    frames[_WHITE] = 255
    return frames


def _protocol_of(options: Mapping[str, Any]) -> AtariProtocol:
    """The settings of the task; options of other games are refused, but for their protocol."""
    for name, value in options.items():
        known = getattr(MEMORY_PROTOCOL, name, None)
        if name != "protocol" and value not in (None, known, "", ()):
            has = f"no option of {MEMORY_CUE}" if known is None else f"{MEMORY_CUE} has {known!r}"
            raise ValueError(f"{name}: {value!r} is not allowed, {has}")
    return MEMORY_PROTOCOL


def _canonical(game: str) -> str:
    if ":" in game:
        raise ValueError(f"game: {game!r} is unknown; did you mean {MEMORY_CUE!r}?")
    return MEMORY_CUE


@register_env(MEMORY_CUE, protocol=_protocol_of, canonical=_canonical)
def make_memory_cue(
    game: str = MEMORY_CUE,
    *,
    num_envs: int = 8,
    batch_size: int = 0,
    num_threads: int = 0,
    protocol: Any = MEMORY_PROTOCOL,
    seed: int | None = None,
    render_mode: str | None = None,
    **protocol_fields: Any,
) -> MemoryCueVecEnv:
    """The memory task; see `make_env`.

    It has no threads, and a protocol of its own: of `protocol_fields` it takes `img_height` and
    `img_width`, and what a run's options or `protocol` say of Atari games says nothing.
    """
    del game, num_threads
    if not (isinstance(protocol, AtariProtocol) and protocol.name == MEMORY_CUE):
        protocol = MEMORY_PROTOCOL
    return MemoryCueVecEnv(
        make_protocol(protocol, **protocol_fields),
        num_envs=num_envs,
        batch_size=batch_size,
        seed=seed,
        render_mode=render_mode,
    )
