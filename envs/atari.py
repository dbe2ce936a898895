"""Atari games as one vector environment: batches of uint8 frames out, batches of actions in.

A thin shell around `ale_py.vector_env.AtariVectorEnv` (C++ threads, asynchronous `send`/`recv`).
It differs in what follows:

* rewards are raw, `terminated` means game over alone, and a lost life is told apart in `info`;
* returns and lengths of ended episodes are in `info`, as Gymnasium's `RecordEpisodeStatistics`
  has them (without "t");
* whatever would crash, hang or be taken silently there is a `ValueError` here;
* in asynchronous mode a reset first builds a new emulator batch, because results still under way
  there would come back as if they followed the reset.

N environments, B rows in a batch (B = N unless `batch_size` is smaller), S stacked frames of H x W.
"""

import os
from typing import Annotated, Any, NoReturn

import numpy as np
from ale_py.vector_env import AtariVectorEnv
from annotated_types import Ge, Le
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import ArrayLike, NDArray

from envs.games import MEMORY_CUE, resolve_game
from envs.protocols import Protocol, check, make_protocol

MAX_SEED = 2**31 - 1
MAX_ENVS = 1024
Step = tuple[
    NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
]
"""Observations [B, S, H, W], rewards, terminated, truncated [B], info (arrays [B])."""


class AtariVecEnv(VectorEnv):
    """Environments of one Atari game, stepped by C++ threads.

    The step after an end ignores its action and returns the first stack of the next episode
    (`AutoresetMode.NEXT_STEP`), with reward 0 and `info["episode_start"]` true.

    `info` holds arrays [B]: `env_id` (which environment a row belongs to), `lives`, `life_loss`
    (a life was lost since the last row of this environment, and the game goes on),
    `episode_start` (the observation is the first of an episode, so the action before it was
    ignored), `frame_number` and `episode_frame_number` (emulator frames, no-ops included). Where
    episodes ended, also `_episode` (which rows) and `episode`: `r` (sum of raw rewards) and `l`
    (agent steps), 0 in other rows.

    Results are fresh arrays, which the caller may keep. An environment belongs to the process
    that made it. Emulator states cannot be saved.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        game: str,
        protocol: Protocol,
        *,
        num_envs: int = 8,
        batch_size: int = 0,
        num_threads: int = 0,
        seed: int | None = None,
    ):
        """See `make_atari`."""
        self.closed = True  # until the emulators exist, there is nothing to close
        self.game = resolve_game(game)
        if self.game == MEMORY_CUE:
            raise ValueError(f"game: {game!r} is no Atari game; use make_env")
        self.protocol = protocol
        self.num_envs = check("num_envs", num_envs, Annotated[int, Ge(1), Le(MAX_ENVS)])
        batch_size = check("batch_size", batch_size, Annotated[int, Ge(0), Le(self.num_envs)])
        self.batch_size = batch_size or self.num_envs
        threads = Annotated[int, Ge(0), Le(os.cpu_count() or 1)]
        self._num_threads = check("num_threads", num_threads, threads)
        self._seed = check_seed(seed, self.num_envs)
        self._process = os.getpid()
        self._vec = self._build()
        self.closed = False
        self.single_observation_space = self._vec.single_observation_space
        self.single_action_space = self._vec.single_action_space
        self.observation_space = self._vec.observation_space
        self.action_space = self._vec.action_space
        self.action_meanings = [action.name for action in self._vec.ale.get_action_set()]
        self._was_reset = False
        self._in_flight = False
        self._over = np.ones(self.num_envs, np.bool_)
        self._lives = np.zeros(self.num_envs, np.int32)
        self._returns = np.zeros(self.num_envs, np.float64)
        self._lengths = np.zeros(self.num_envs, np.int64)

    def _build(self) -> AtariVectorEnv:
        settings = {
            field: value
            for field, value in vars(self.protocol).items()
            if field not in ("name", "terminal_on_life_loss")
        }
        return AtariVectorEnv(
            self.game,
            self.num_envs,
            batch_size=self.batch_size,
            num_threads=self._num_threads,
            autoreset_mode=AutoresetMode.NEXT_STEP,
            episodic_life=False,
            # Game over alone: a life loss is found by the count of lives.
            life_loss_info=False,
            reward_clipping=False,
            **settings,
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Begin new episodes everywhere.

        Args:
            seed: environment i gets `seed + i`. None: at the first reset the seed given at
                construction, later the random streams go on.
            options: must be empty; parts of a batch cannot be reset.

        Returns:
            Observations [B, S, H, W] and info.

        Raises:
            ValueError: bad seed, options, a closed environment or another process.
        """
        self._check_usable()
        if options:
            raise ValueError(
                f"options: {options!r} is not allowed; only whole resets, None or {{}}"
            )
        seed = check_seed(seed, self.num_envs)
        if not self._was_reset and seed is None:
            seed = self._seed
        if self.batch_size < self.num_envs:
            seed = self._renew(seed)
        elif self._in_flight:
            self._vec.recv()
        obs, info = self._vec.reset(seed=seed)
        self._was_reset, self._in_flight = True, False
        self._over[:] = True
        ended = np.zeros(self.batch_size, np.bool_)
        return obs, self._track(info, np.zeros(self.batch_size, np.int32), ended, ended)

    def _renew(self, seed: int | None) -> int:
        """Asynchronous mode: a new emulator batch where one was in use, and its seed."""
        if seed is not None or not self._was_reset:
            self._np_random = np.random.default_rng(seed)
        if self._was_reset:
            self._vec = self._build()
        if seed is None:
            seed = int(self.np_random.integers(MAX_SEED - self.num_envs))
        return seed

    def step(self, actions: ArrayLike) -> Step:
        """`send` and `recv`."""
        self.send(actions)
        return self.recv()

    def send(self, actions: ArrayLike) -> None:
        """Let the environments of the last rows received take `actions`; does not wait.

        Args:
            actions: integers [B], in the order of the last `info["env_id"]`.

        Raises:
            ValueError: wrong type, shape or range, or nothing was received before.
        """
        self._check_usable()
        if not self._was_reset:
            raise ValueError("send: not allowed before reset()")
        if self._in_flight:
            raise ValueError("send: not allowed twice, call recv() in between")
        self._vec.send(self._checked(actions))
        self._in_flight = True

    def recv(self) -> Step:
        """Wait for the results of `send`.

        Raises:
            ValueError: if nothing was sent.
        """
        self._check_usable()
        if not self._in_flight:
            raise ValueError("recv: not allowed before send()")
        obs, rewards, terminated, truncated, info = self._vec.recv()
        self._in_flight = False
        info = self._track(info, rewards, terminated, truncated)
        return obs, rewards.astype(np.float32), terminated, truncated, info

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
        rewards: NDArray[np.int32],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> dict[str, Any]:
        """Keep the books per environment and add what they tell to `info`."""
        ids, lives = info["env_id"], info["lives"]
        start = self._over[ids]
        info["episode_start"] = start
        info["life_loss"] = (lives < self._lives[ids]) & ~(start | terminated)
        self._lives[ids] = lives
        # The row that starts an episode follows no action: reward 0, and no step.
        returns = np.where(start, 0.0, self._returns[ids] + rewards)
        lengths = np.where(start, 0, self._lengths[ids] + 1)
        self._returns[ids], self._lengths[ids] = returns, lengths
        ended = terminated | truncated
        self._over[ids] = ended
        if ended.any():
            info["episode"] = {"r": np.where(ended, returns, 0.0), "l": np.where(ended, lengths, 0)}
            info["_episode"] = ended
        return info

    def _check_usable(self) -> None:
        if self.closed:
            raise ValueError("env: closed, make another")
        if os.getpid() != self._process:
            raise ValueError("env: belongs to another process; make it after the fork")

    def close_extras(self, **kwargs: Any) -> None:
        """End the threads and free the emulators."""
        del kwargs, self._vec

    def __reduce__(self) -> NoReturn:
        """Neither threads nor emulator states can be copied."""
        raise TypeError("AtariVecEnv cannot be copied or pickled; make another with make_atari")


def check_seed(seed: Any, num_envs: int) -> int | None:
    """The seed as a Python integer, or None.

    Raises:
        ValueError: no integer, negative, or some environment's seed would exceed `MAX_SEED`.
    """
    if seed is None:
        return None
    return check("seed", seed, Annotated[int, Ge(0), Le(MAX_SEED - num_envs + 1)])


def make_atari(
    game: str,
    *,
    num_envs: int = 8,
    batch_size: int = 0,
    num_threads: int = 0,
    protocol: str | Protocol = "dopamine",
    seed: int | None = None,
    **protocol_fields: Any,
) -> AtariVecEnv:
    """Environments of one Atari game.

    Args:
        game: any form that `resolve_game` knows.
        num_envs: environments, 1 to 1024; building takes about 0.15 s each.
        batch_size: rows per `recv`; 0 means all. Fewer than `num_envs`: whichever are ready
            first, so that the order depends on timing.
        num_threads: C++ threads, at most the processor's; 0 means as many as are of use.
        protocol: a name in `PROTOCOLS`, or a `Protocol`.
        seed: for the first `reset`; environment i gets `seed + i`. None: random.
        protocol_fields: fields of `Protocol` that differ; None leaves a field as it is.

    Raises:
        ValueError: anything unknown or out of range, naming what is allowed.
    """
    if isinstance(protocol, Protocol):
        protocol_fields = {**vars(protocol), **_given(protocol_fields)}
        del protocol_fields["name"]
        protocol = protocol.name
    return AtariVecEnv(
        game,
        make_protocol(protocol, **protocol_fields),
        num_envs=num_envs,
        batch_size=batch_size,
        num_threads=num_threads,
        seed=seed,
    )


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}
