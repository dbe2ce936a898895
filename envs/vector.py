"""What every environment here has in common: checked `send`/`recv`, and books per episode.

Beyond Gymnasium's `VectorEnv`: stepping is split into `send` and `recv`, so that the caller can
work in between; a batch may hold fewer rows than there are environments; and `info` tells episode
starts and ends, lost lives, and the returns and lengths of ended episodes. The key `episode` is
left to Gymnasium's `RecordEpisodeStatistics`, which can be put around these environments.

N environments, B rows in a batch (B = N unless `batch_size` is smaller), C channels of H x W
pixels: those of all stacked frames (see `envs.spec`).
"""

import os
from abc import abstractmethod
from collections.abc import Mapping
from enum import Enum, auto
from typing import Annotated, Any, ClassVar, NoReturn

import numpy as np
from annotated_types import Ge, Le
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from envs.checks import check
from envs.spec import EnvProtocol, StepSpec, as_picture, newest_frame

MAX_SEED = 2**31 - 1
MAX_ENVS = 1024


class Turn(Enum):
    """Which call must come next."""

    FIRST_RESET = auto()
    SEND = auto()
    RECV = auto()
    RESET = auto()
    """A call was interrupted (by Ctrl-C, say), so that results may have been lost."""


Step = tuple[
    NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
]
"""Observations [B, C, H, W], rewards, terminated, truncated [B], info (arrays [B])."""


class GameVecEnv(VectorEnv):
    """Environments of one game.

    The step after an end ignores its action and returns the first stack of the next episode
    (`AutoresetMode.NEXT_STEP`), with reward 0 and `info["episode_start"]` true. Rewards are raw.
    `terminated` means game over alone, `truncated` a cap on frames or steps.

    `info` holds arrays [B]: `env_id` (which environment a row belongs to), `lives`, `life_loss`
    (a life was lost since this environment's last row, and the game goes on), `episode_start`
    (the observation is the first of an episode, so the action before it was ignored),
    `frame_number` and `episode_frame_number` (emulator frames, no-ops included), `episode_end`
    (terminated or truncated), and of the episodes that ended `episode_return` (sum of raw rewards)
    and `episode_steps` (agent steps), 0 in other rows.

    With `render_mode` "rgb_array", `render()` gives one picture per row of the last batch, in
    colour where the game has colours; without, `render()` is refused.

    Results are fresh arrays, which the caller may keep. An environment belongs to the process
    that made it, and its state cannot be saved.

    Subclasses implement `_restart`, `_dispatch` and `_collect`, and may rely on all checks.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": ["rgb_array"]}  # noqa: RUF012
    closed = True  # until a subclass has built what `close` frees
    draws = False
    """Whether `render` has pictures of its own, and not the newest frame alone."""
    source: ClassVar[str]
    """What steps the games, for the protocol block of scores."""
    versions: Mapping[str, str] = {}
    """Versions of packages that a score depends on, for the same block; `packages` where there may
    be several."""
    action_meanings: list[str]
    """A name for each action."""
    step_spec: StepSpec
    """What a step brings."""

    def __init__(
        self,
        game: str,
        protocol: EnvProtocol,
        *,
        num_envs: int,
        batch_size: int,
        seed: int | None,
        render_mode: str | None = None,
    ):
        """Check and keep the arguments, which are those of `make_atari`."""
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: {render_mode!r} is not allowed, None or 'rgb_array'")
        self.game = game
        self.protocol = protocol
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": protocol.render_fps}
        self.num_envs = check("num_envs", num_envs, Annotated[int, Ge(1), Le(MAX_ENVS)])
        batch_size = check("batch_size", batch_size, Annotated[int, Ge(0), Le(self.num_envs)])
        self.batch_size = batch_size or self.num_envs
        self._first_seed = self._check_seed(seed)
        self._process = os.getpid()
        self._turn = Turn.FIRST_RESET
        self._over = np.zeros(self.num_envs, np.bool_)
        self._lives = np.zeros(self.num_envs, np.int32)
        self._returns = np.zeros(self.num_envs, np.float64)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._pictures = np.zeros((0, 0, 0, 3), np.uint8)

    @property
    def full_id(self) -> str:
        """Name of the game and of what emulates it, for the protocol block of scores."""
        return f"{self.source}/{self.game}"

    def _open(self, action_meanings: list[str], spec: StepSpec) -> None:
        """Set the spaces and be ready for use; the last step of construction."""
        self.action_meanings = action_meanings
        self.step_spec = spec
        self.single_observation_space = Box(0, 255, spec.obs_shape, np.uint8)
        self.single_action_space = Discrete(len(action_meanings))
        self.observation_space = batch_space(self.single_observation_space, self.batch_size)
        self.action_space = batch_space(self.single_action_space, self.batch_size)
        self.closed = False

    @abstractmethod
    def _restart(self, seed: int | None, turn: Turn) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Begin new episodes in all environments, at any `turn`; returns first rows and `info`."""

    @abstractmethod
    def _dispatch(self, actions: NDArray[np.int64]) -> None:
        """Begin to step the environments of the last rows, without waiting."""

    @abstractmethod
    def _collect(
        self,
    ) -> tuple[
        NDArray[np.uint8], NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
    ]:
        """The next rows: as `recv`, with rewards of any number and without what `_track` adds."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Begin new episodes everywhere.

        Args:
            seed: environment i gets `seed + i`. None: at the first reset the seed given at
                construction, later the random streams go on.
            options: must be empty; parts of a batch cannot be reset.

        Returns:
            Observations [B, C, H, W] and info.

        Raises:
            ValueError: bad seed or options, a closed environment, or another process.
        """
        self._check_usable()
        if options:
            raise ValueError(f"options: {options!r} are not allowed, only None: resets are whole")
        seed = self._check_seed(seed)
        if seed is None and self._turn is Turn.FIRST_RESET:
            seed = self._first_seed
        super().reset(seed=seed)
        turn, self._turn = self._turn, Turn.RESET
        obs, info = self._restart(seed, turn)
        self._close_books(slice(None))
        ended = np.zeros(self.batch_size, np.bool_)
        info = self._track(info, np.zeros(self.batch_size, np.int32), ended, ended)
        self._show(obs)
        self._turn = Turn.SEND
        return obs, info

    def step(self, actions: ArrayLike) -> Step:
        """`send` and `recv`."""
        self.send(actions)
        return self.recv()

    def send(self, actions: ArrayLike) -> None:
        """Let the environments of the last rows received take `actions`; does not wait.

        Args:
            actions: integers [B], in the order of the last `info["env_id"]`.

        Raises:
            ValueError: wrong type, shape or range, or another call is due.
        """
        self._check_turn("send", Turn.SEND, otherwise="recv")
        checked = self._checked(actions)
        self._turn = Turn.RESET
        self._dispatch(checked)
        self._turn = Turn.RECV

    def recv(self) -> Step:
        """Wait for the results of `send`.

        Raises:
            ValueError: nothing was sent, or a reward is not finite.
        """
        self._check_turn("recv", Turn.RECV, otherwise="send")
        self._turn = Turn.RESET
        obs, rewards, terminated, truncated, info = self._collect()
        if rewards.dtype.kind == "f" and not np.isfinite(rewards).all():
            raise ValueError(
                f"{self.game}: rewards {rewards.tolist()} are not allowed: finite ones"
            )
        info = self._track(info, rewards, terminated, truncated)
        self._show(obs)
        self._turn = Turn.SEND
        return obs, rewards.astype(np.float32), terminated, truncated, info

    def render(self) -> tuple[NDArray[np.uint8], ...]:
        """A picture [H, W, 3] in RGB of each row of the last batch.

        Raises:
            ValueError: made without `render_mode`, closed, or nothing has been played yet.
        """
        self._check_usable()
        if self.render_mode is None:
            raise ValueError("render: make the environment with render_mode='rgb_array'")
        if self._turn is Turn.FIRST_RESET:
            raise ValueError("render: not allowed now, call reset() first")
        return tuple(self._pictures.copy())

    def _show(self, obs: NDArray[np.uint8]) -> None:
        """Keep the picture that `render` returns: the newest frame, unless the game has another."""
        if self.render_mode is not None:
            newest = newest_frame(obs, self.step_spec.channels)
            self._pictures = np.stack([as_picture(frame) for frame in newest])

    def _checked(self, actions: ArrayLike) -> NDArray[np.int64]:
        array = np.asarray(actions)
        count = len(self.action_meanings)
        allowed = f"must be {self.batch_size} integers from 0 to {count - 1}"
        if array.dtype.kind not in "iu" or array.shape != (self.batch_size,):
            got = f"{array.dtype} of shape {array.shape}"
            raise ValueError(f"actions: {got} are not allowed, {allowed}")
        if array.min() < 0 or array.max() >= count:
            raise ValueError(f"actions: {array.tolist()} are not allowed, {allowed}")
        return array.astype(np.int64, copy=False)

    def _track(
        self,
        info: dict[str, Any],
        rewards: NDArray[Any],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> dict[str, Any]:
        """Update the counts of each environment, and add them to `info`."""
        # Every step passes here. NumPy indexes several times faster with intp than with the int32
        # of env_id, and counts faster than it finds any().
        ids, lives = info["env_id"].astype(np.intp), info["lives"]
        info["episode_start"] = self._over[ids]
        info["life_loss"] = lives < self._lives[ids]
        self._lives[ids] = lives
        self._returns[ids] += rewards
        self._lengths[ids] += 1
        ended = terminated | truncated
        self._over[ids] = ended
        info["episode_end"] = ended
        info["episode_return"] = np.where(ended, self._returns[ids], 0.0)
        info["episode_steps"] = np.where(ended, self._lengths[ids], 0)
        if np.count_nonzero(ended):
            info["life_loss"] &= ~terminated
            self._close_books(ids[ended])
        return info

    def _close_books(self, ids: Any) -> None:
        """So that the row that starts the next episode counts as no step and loses no life."""
        self._over[ids] = True
        self._lives[ids] = 0
        self._returns[ids] = 0.0
        self._lengths[ids] = -1

    def _check_seed(self, seed: Any) -> int | None:
        if seed is None:
            return None
        # The last environment's seed has to fit too.
        return check("seed", seed, Annotated[int, Ge(0), Le(MAX_SEED - self.num_envs + 1)])

    def _check_usable(self) -> None:
        if self.closed:
            raise ValueError("env: closed; make another")
        if os.getpid() != self._process:
            raise ValueError("env: belongs to another process; make it after the fork")

    def _check_turn(self, call: str, turn: Turn, *, otherwise: str) -> None:
        self._check_usable()
        if self._turn is not turn:
            due = otherwise if self._turn in (Turn.SEND, Turn.RECV) else "reset"
            raise ValueError(f"{call}: not allowed now, call {due}() first")

    def __reduce__(self) -> NoReturn:
        """Refuse: neither threads nor emulator states can be copied."""
        raise TypeError(f"{type(self).__name__} cannot be copied or pickled; make another")
