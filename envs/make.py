"""One entry for every game, Atari or not."""

from typing import Any

import numpy as np

from envs.atari import make_atari
from envs.games import MEMORY_CUE, resolve_game
from envs.memory import MEMORY_PROTOCOL, MemoryCueVecEnv
from envs.protocols import Protocol, make_protocol
from envs.vector import GameVecEnv


def make_env(
    game: str,
    *,
    num_envs: int = 8,
    batch_size: int = 0,
    num_threads: int = 0,
    protocol: str | Protocol = "dopamine",
    seed: int | None = None,
    render_mode: str | None = None,
    **protocol_fields: Any,
) -> GameVecEnv:
    """Environments of a game by name.

    Args:
        game: an Atari game, or `memory_cue`. The latter has a protocol of its own (see the
            attribute `protocol`) and no threads, so `protocol` and `num_threads` say nothing
            there; of `protocol_fields` it takes `img_height` and `img_width`.
        num_envs: see `make_atari`, as for all that follow.
        batch_size: rows per `recv`.
        num_threads: C++ threads.
        protocol: a name or a `Protocol`.
        seed: for the first `reset`.
        render_mode: None, or "rgb_array" for `render()`.
        protocol_fields: fields of `Protocol` that differ.

    Raises:
        ValueError: anything unknown or out of range, naming what is allowed.
    """
    if resolve_game(game) == MEMORY_CUE:
        env = MemoryCueVecEnv(
            make_protocol(MEMORY_PROTOCOL, **protocol_fields),
            num_envs=num_envs,
            batch_size=batch_size,
            seed=seed,
            render_mode=render_mode,
        )
    else:
        env = make_atari(
            game,
            num_envs=num_envs,
            batch_size=batch_size,
            num_threads=num_threads,
            protocol=protocol,
            seed=seed,
            render_mode=render_mode,
            **protocol_fields,
        )
    _check_observations(env)
    return env


def _check_observations(env: GameVecEnv) -> None:
    """Refuse what a replay of one grey frame a row would store wrongly: colour, above all."""
    space, protocol = env.single_observation_space, env.protocol
    shape = (protocol.stack_num, protocol.img_height, protocol.img_width)
    if space.shape != shape or space.dtype != np.uint8:
        env.close()
        raise ValueError(
            f"{env.game}: observations of shape {space.shape}, {space.dtype}, are not allowed: "
            f"grey frames in a stack {shape}, uint8"
        )
