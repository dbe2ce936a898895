"""Any registered Gymnasium environment with image observations and discrete actions: `gym:ID`.

`gymnasium.make_vec` makes and steps them, in this process or in one process each. What it leaves
open is settled here as in `envs.vector`: which axis holds the channels, stacks of frames, episode
books. Images are uint8, or booleans, which become 0 and 255 (MinAtar); whatever else an environment
shows, wrappers have to turn into one of these.

`gym:PACKAGE:ID` imports the package first, which most packages need to register their ids; those
with an entry point in the group `gymnasium.envs` are found without, and so is the package of a
wrapper. A wrapper is written as its import path, with arguments where it takes some:
`gymnasium.wrappers:ResizeObservation(shape=(84, 84))`.
"""

import contextlib
import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version
from multiprocessing import forkserver, resource_tracker
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from numpy.typing import NDArray

from envs.gym_protocol import GymProtocol, changed, keyword_arguments, load_wrapper, protocol_of
from envs.images import action_range, image_layout
from envs.registry import register_env
from envs.spec import StepSpec
from envs.vector import MAX_SEED, GameVecEnv, Turn

PREFIX = "gym:"


class GymVecEnv(GameVecEnv):
    """Environments of one Gymnasium id; see the module, and `GameVecEnv` for what they do.

    There are no lives, and a step is one frame: `frame_number` counts steps. Terminated wins where
    an episode ends by both, as it does for the return.
    """

    source = "gymnasium"
    protocol: GymProtocol  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        game: str,
        protocol: GymProtocol | None = None,
        *,
        num_envs: int = 8,
        batch_size: int = 0,
        seed: int | None = None,
        render_mode: str | None = None,
    ):
        """Make the environments.

        Args:
            game: `gym:ID` or `gym:PACKAGE:ID`.
            protocol: the settings; None: the defaults.
            num_envs: see `make_env`, as for all that follow.
            batch_size: 0, or `num_envs`.
            seed: for the first `reset`; environment i gets `seed + i`.
            render_mode: "rgb_array" for `render()`; the newest frame where ID draws none.

        Raises:
            ValueError: an unknown id, wrong spaces, or options that do not fit.
        """
        protocol = GymProtocol() if protocol is None else protocol
        super().__init__(
            canonical(game),
            protocol,
            num_envs=num_envs,
            batch_size=batch_size,
            seed=seed,
            render_mode=render_mode,
        )
        if self.batch_size != self.num_envs:
            raise ValueError(
                f"batch_size: {batch_size} is not allowed, gym: environments come in whole batches "
                f"(0 or {self.num_envs})"
            )
        self.draws = False  # until it is known whether it can
        self._wrappers = [load_wrapper(text) for text in protocol.wrappers]
        with contextlib.closing(self._make(1, "sync")) as probe:
            one = probe.envs[0]
            self._image = image_layout(self.game, one.observation_space)
            self._first_action, count = action_range(self.game, one.action_space)
            names = list(getattr(one.unwrapped, "get_action_meanings", list)())
            self.draws = "rgb_array" in (one.metadata.get("render_modes") or ())
            self.versions = {"packages": _packages(one)}
        self._frame_number = np.zeros(self.num_envs, np.int32)
        self._episode_frame_number = np.zeros(self.num_envs, np.int32)
        self._vec = self._build()
        image = self._image
        spec = StepSpec(
            height=image.height,
            width=image.width,
            channels=image.channels,
            stack_num=protocol.stack_num,
        )
        self._stack = np.zeros((self.num_envs, *spec.obs_shape), np.uint8)
        self._sent = np.zeros(self.num_envs, np.int64)
        self._open(names if len(names) == count else [str(i) for i in range(count)], spec)

    @property
    def full_id(self) -> str:
        """See `GameVecEnv.full_id`."""
        return f"{self.source}/{self.game.removeprefix(PREFIX)}"

    def _build(self) -> Any:
        return self._make(self.num_envs, self.protocol.vectorization)

    def _make(self, num_envs: int, vectorization: str) -> Any:
        more = keyword_arguments("kwargs", f"f({self.protocol.kwargs})")
        if self.protocol.max_episode_steps is not None:
            more["max_episode_steps"] = self.protocol.max_episode_steps
        if self.render_mode is not None and self.draws:
            more["render_mode"] = "rgb_array"
        settings: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        if vectorization == "async":
            # A fork would copy this process with the locks that its threads hold.
            methods = multiprocessing.get_all_start_methods()
            settings["context"] = "forkserver" if "forkserver" in methods else "spawn"
            if settings["context"] == "forkserver":
                _begin_forkserver()
        with _one_line(self.game), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Nn]o render fps")  # nobody plays it live
            _find_installed(self.game.removeprefix(PREFIX))
            return gymnasium.make_vec(
                self.game.removeprefix(PREFIX),
                num_envs=num_envs,
                vectorization_mode=vectorization,
                vector_kwargs=settings,
                wrappers=[_apart, *self._wrappers] if vectorization == "async" else self._wrappers,
                disable_env_checker=True,
                **more,
            )

    def _restart(self, seed: int | None, turn: Turn) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        if turn is Turn.RESET:
            # What was under way is lost, and an environment may be half a step ahead.
            self._end()
            self._vec = self._build()
            if seed is None:
                seed = int(self.np_random.integers(MAX_SEED - self.num_envs))
        elif turn is Turn.RECV and isinstance(self._vec, AsyncVectorEnv):
            self._vec.step_wait()
        images, _ = self._vec.reset(seed=seed)
        self._frame_number[:] = 0
        return self._stacked(images, np.ones(self.num_envs, np.bool_))

    def _dispatch(self, actions: NDArray[np.int64]) -> None:
        self._sent = actions + self._first_action
        if isinstance(self._vec, AsyncVectorEnv):
            self._vec.step_async(self._sent)

    def _collect(
        self,
    ) -> tuple[
        NDArray[np.uint8], NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
    ]:
        vec = self._vec
        try:
            result = vec.step_wait() if isinstance(vec, AsyncVectorEnv) else vec.step(self._sent)
        except ValueError as error:
            if "Output array" not in str(error):  # np.stack's words, in Gymnasium's `concatenate`
                raise
            raise ValueError(
                f"game: {self.game!r} gave an observation that does not fit its space: "
                f"{vec.single_observation_space}"
            ) from error
        images, rewards, terminated, truncated, _ = result
        obs, info = self._stacked(images, self._over.copy())
        return obs, rewards, terminated, truncated, info

    def _stacked(
        self, images: NDArray[Any], start: NDArray[np.bool_]
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Observations and info after these images; `start` is true where they begin an episode."""
        self._stack[start] = 0
        channels = self._image.channels
        self._stack = np.concatenate([self._stack[:, channels:], self._image.frames(images)], 1)
        self._frame_number += ~start
        self._episode_frame_number = np.where(start, 0, self._episode_frame_number + 1)
        info = {
            "env_id": np.arange(self.num_envs, dtype=np.int32),
            "lives": np.zeros(self.num_envs, np.int32),
            "frame_number": self._frame_number.copy(),
            "episode_frame_number": self._episode_frame_number.astype(np.int32),
        }
        return self._stack.copy(), info

    def _show(self, obs: NDArray[np.uint8]) -> None:
        if self.render_mode is None or not self.draws:
            super()._show(obs)
            return
        pictures = np.stack(self._vec.render())
        if pictures.dtype.kind == "f":  # MinAtar's are from 0 to 1
            pictures = np.rint(255 * pictures)
        if pictures.ndim == 3:
            pictures = np.repeat(pictures[..., None], 3, axis=-1)
        if pictures.ndim != 4 or pictures.shape[-1] not in (3, 4):
            raise ValueError(
                f"game: {self.game!r} renders pictures of shape {pictures.shape[1:]}, not (H, W), "
                "(H, W, 3) or (H, W, 4)"
            )
        self._pictures = pictures[..., :3].astype(np.uint8)

    def _end(self) -> None:
        asynchronous = isinstance(self._vec, AsyncVectorEnv)
        self._vec.close(**({"terminate": True} if asynchronous else {}))

    def close_extras(self, **kwargs: Any) -> None:
        """End the processes and free the environments."""
        del kwargs
        self._end()


def _begin_forkserver() -> None:
    """Begin the process that workers are forked from, which no SIGTERM to the group may end.

    Without it, workers are not told to end, and each leaves a traceback. It inherits what is
    blocked here; the tracker, which it would begin otherwise, unblocks the signal too early.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _apart(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Take a worker out of the group that a terminal or a batch system sends signals to.

    The process that trains decides when to end, after it has saved, and then ends its workers.
    """
    if hasattr(os, "setsid"):
        with contextlib.suppress(OSError):  # it leads a group of its own already
            os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    return env


def _find_installed(name: str) -> None:
    """Let installed packages register their environments, for an id that is not registered."""
    if ":" not in name and name not in gymnasium.registry:
        _load_plugins()


@cache
def _load_plugins() -> None:
    for point in entry_points(group="gymnasium.envs"):
        with contextlib.suppress(Exception):  # whatever a package does that is not asked for
            point.load()()


@contextlib.contextmanager
def _one_line(game: str) -> Iterator[None]:
    """Report an exception of foreign code inside as one line."""
    try:
        yield
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "").strip()
        unknown = isinstance(error, gymnasium.error.UnregisteredEnv)
        hint = "; gym:PACKAGE:ID imports the package that registers it" if unknown else ""
        raise ValueError(
            f"game: {game!r} cannot be made: {type(error).__name__}: {reason}{hint}"
        ) from error


def _packages(env: gymnasium.Env[Any, Any]) -> str:
    """Gymnasium and the packages of the environment and its wrappers, with their versions."""
    names, layer = {"gymnasium": None}, env
    while True:
        names[type(layer).__module__.partition(".")[0]] = None
        if layer is env.unwrapped:
            break
        layer = layer.env  # pyright: ignore[reportAttributeAccessIssue]
    listed = []
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            listed.append(f"{name} {version(name)}")
    return ", ".join(listed)


def canonical(game: str) -> str:
    """The name itself, `gym:ID`.

    Raises:
        ValueError: no id.
    """
    if not game.removeprefix(PREFIX) or not game.startswith(PREFIX):
        raise ValueError(f"game: {game!r} is not allowed, must be gym:ID or gym:PACKAGE:ID")
    return game


@register_env("gym", protocol=protocol_of, canonical=canonical)
def make_gym(
    game: str,
    *,
    num_envs: int = 8,
    batch_size: int = 0,
    num_threads: int = 0,
    protocol: Any = None,
    seed: int | None = None,
    render_mode: str | None = None,
    **protocol_fields: Any,
) -> GymVecEnv:
    """Any registered Gymnasium environment with images and discrete actions; see `make_env`."""
    del num_threads
    known = protocol if isinstance(protocol, GymProtocol) else GymProtocol()
    return GymVecEnv(
        game,
        changed(known, protocol_fields),
        num_envs=num_envs,
        batch_size=batch_size,
        seed=seed,
        render_mode=render_mode,
    )
