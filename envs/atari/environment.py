"""Atari games as one vector environment: batches of uint8 frames out, batches of actions in.

A thin shell around `ale_py.vector_env.AtariVectorEnv`, which steps emulators in C++ threads. It
differs in the contract (`envs.vector`: raw rewards, lives apart from game over, episode returns),
and in that whatever would crash, hang or be taken silently there is a `ValueError` here.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any

import ale_py
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from annotated_types import Ge, Le
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from envs.atari.colors import ColorTwin
from envs.atari.games import published_scores, resolve_game
from envs.atari.protocols import ATARI_FIELDS, AtariProtocol, make_protocol
from envs.checks import check
from envs.registry import register_env
from envs.spec import StepSpec
from envs.vector import MAX_SEED, GameVecEnv, Turn


class AtariVecEnv(GameVecEnv):
    """Environments of one Atari game, stepped by C++ threads; see `GameVecEnv` for what they do.

    With `batch_size` below `num_envs` (asynchronous mode) the order of rows depends on timing,
    and every reset after the first builds the emulators anew.
    """

    draws = True
    source = "ale_py.vector_env"
    versions: Mapping[str, str] = {"ale_py": ale_py.__version__}
    protocol: AtariProtocol  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        game: str,
        protocol: AtariProtocol,
        *,
        num_envs: int = 8,
        batch_size: int = 0,
        num_threads: int = 0,
        seed: int | None = None,
        render_mode: str | None = None,
    ):
        """See `make_atari`."""
        super().__init__(
            resolve_game(game),
            protocol,
            num_envs=num_envs,
            batch_size=batch_size,
            seed=seed,
            render_mode=render_mode,
        )
        threads = Annotated[int, Ge(0), Le(os.cpu_count() or 1)]
        self._num_threads = check("num_threads", num_threads, threads)
        if render_mode is not None and self.batch_size < self.num_envs:
            raise ValueError("render_mode: needs whole batches; leave batch_size out")
        self._vec = self._build()
        self._twin = None if render_mode is None else self._build_twin()
        spec = StepSpec(
            height=protocol.img_height,
            width=protocol.img_width,
            stack_num=protocol.stack_num,
            reward="integer",
            has_lives=True,
        )
        self._open([action.name for action in self._vec.ale.get_action_set()], spec)

    def _build(self) -> AtariVectorEnv:
        settings = dict(vars(self.protocol))
        del settings["name"], settings["terminal_on_life_loss"]
        return AtariVectorEnv(
            self.game,
            self.num_envs,
            batch_size=self.batch_size,
            num_threads=self._num_threads,
            autoreset_mode=AutoresetMode.NEXT_STEP,
            # Game over alone ends an episode there: the count of lives shows life losses.
            episodic_life=False,
            life_loss_info=False,
            reward_clipping=False,
            **settings,
        )

    def _build_twin(self) -> ColorTwin:
        return ColorTwin(
            self.game, self.protocol, num_envs=self.num_envs, num_threads=self._num_threads
        )

    def _restart(self, seed: int | None, turn: Turn) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        asynchronous = self.batch_size < self.num_envs
        if turn is Turn.RESET or (asynchronous and turn is not Turn.FIRST_RESET):
            # Results under way would come back as if they followed the reset, and cannot be
            # drained: not where batch_size does not divide num_envs, nor when some were lost.
            del self._vec
            self._vec = self._build()
            self._twin = None if self._twin is None else self._build_twin()
            if seed is None:
                seed = int(self.np_random.integers(MAX_SEED - self.num_envs))
        elif turn is Turn.RECV:
            self._vec.recv()
        if self._twin is not None:
            if seed is None and turn is Turn.FIRST_RESET:
                seed = int(self.np_random.integers(MAX_SEED - self.num_envs))
            self._pictures = self._twin.reset(seed)
        return self._vec.reset(seed=seed)

    def _dispatch(self, actions: NDArray[np.int64]) -> None:
        self._vec.send(actions)
        if self._twin is not None:
            self._pictures, _ = self._twin.step(actions)

    def _show(self, obs: NDArray[np.uint8]) -> None:
        """Nothing to keep: the twin has drawn the picture already, in colour."""

    def _collect(
        self,
    ) -> tuple[
        NDArray[np.uint8], NDArray[np.int32], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
    ]:
        return self._vec.recv()

    def close_extras(self, **kwargs: Any) -> None:
        """End the threads and free the emulators."""
        del kwargs, self._vec, self._twin


def _protocol_of(options: Mapping[str, Any]) -> AtariProtocol:
    """The protocol that follows from a run's options; Gymnasium's options are refused."""
    for name, value in options.items():
        if name not in ("protocol", *ATARI_FIELDS) and value:
            raise ValueError(f"{name}: {value!r} is not allowed: no option of an Atari game")
    chosen = {name: value for name, value in options.items() if name in ATARI_FIELDS}
    return make_protocol(options.get("protocol", "dopamine"), **chosen)


@register_env("atari", protocol=_protocol_of, canonical=resolve_game, scores=published_scores)
def make_atari(
    game: str,
    *,
    num_envs: int = 8,
    batch_size: int = 0,
    num_threads: int = 0,
    protocol: str | AtariProtocol = "dopamine",
    seed: int | None = None,
    render_mode: str | None = None,
    **protocol_fields: Any,
) -> AtariVecEnv:
    """Environments of one Atari game.

    Args:
        game: its name, as `ms_pacman`, `MsPacman`, `ALE/MsPacman-v5`, ...
        num_envs: environments, 1 to 1024; building takes about 0.15 s each.
        batch_size: rows per `recv`; 0 means all. Fewer than `num_envs`: those ready first.
        num_threads: C++ threads, at most the processor's; 0 means as many as are of use.
        protocol: a name in `PROTOCOLS`, or an `AtariProtocol`.
        seed: for the first `reset`; environment i gets `seed + i`. None: random.
        render_mode: "rgb_array" for `render()` in colour, which emulates every frame twice.
        protocol_fields: fields of `AtariProtocol` that differ; None leaves a field as it is.

    Raises:
        ValueError: anything unknown or out of range, naming what is allowed.
    """
    return AtariVecEnv(
        game,
        make_protocol(protocol, **protocol_fields),
        num_envs=num_envs,
        batch_size=batch_size,
        num_threads=num_threads,
        seed=seed,
        render_mode=render_mode,
    )
