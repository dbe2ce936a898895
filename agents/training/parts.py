"""The parts of a run, built from its config: environments, learner and replay."""

import dataclasses
from typing import Any

import torch

from agents.config import Config, named_env_options
from agents.learning.learner import Learner
from agents.playing.evaluate import env_seed
from agents.replay.buffer import Replay
from agents.replay.layout import replay_bytes
from agents.replay.returns import ReturnConfig
from agents.replay.storage import storages
from agents.saving import checkpoint
from agents.training.memory_check import check_memory, explained_out_of_memory
from agents.training.turns import num_groups
from envs import GameVecEnv, make_env
from rl_nfm.encoders import State
from rl_nfm.support.device import cores
from rl_nfm.support.errors import foreign_errors
from rl_nfm.support.ranks import ALONE, Ranks


def share_of(config: Config, ranks: Ranks) -> Config:
    """The config of one rank of a run: its share of every total, and its own seed.

    Raises:
        ValueError: environments or batch cannot be split evenly.
    """
    if ranks.alone:
        return config
    env, replay = config.env, config.replay
    # 0, as many as there are cores, is for the ranks of a machine together.
    threads = env.num_threads // ranks.size if env.num_threads else cores() // ranks.local_size
    return dataclasses.replace(
        config,
        seed=ranks.seed(config.seed),
        env=dataclasses.replace(
            env,
            num_envs=ranks.share("env.num_envs", env.num_envs),
            num_threads=max(1, threads),
        ),
        replay=dataclasses.replace(
            replay,
            batch_size=ranks.share("replay.batch_size", replay.batch_size),
            capacity_steps=replay.capacity_steps // ranks.size,
            min_steps=-(-replay.min_steps // ranks.size),
        ),
        learner=dataclasses.replace(
            config.learner, steps_per_update=config.learner.steps_per_update / ranks.size
        ),
    )


def build_envs(config: Config, device: torch.device) -> list[GameVecEnv]:
    """The environments, in groups that take turns.

    Raises:
        ValueError: they cannot be grouped as asked for.
    """
    groups = num_groups(config.env, device)
    with named_env_options():
        return [
            make_env(
                config.game,
                num_envs=config.env.num_envs // groups,
                num_threads=config.env.num_threads,
                protocol=config.protocol,
                seed=env_seed(config.seed),
            )
            for _ in range(groups)
        ]


def obs_shape_of(env: GameVecEnv) -> tuple[int, int, int]:
    """(C, H, W) of one observation."""
    return env.step_spec.obs_shape


def build_learner(
    config: Config, env: GameVecEnv, device: torch.device, ranks: Ranks = ALONE
) -> Learner:
    """New online and target networks, and the learner that trains them.

    Raises:
        ValueError: sequences are asked for, and the encoder has no state.
    """
    shape, num_actions = obs_shape_of(env), len(env.action_meanings)
    online = checkpoint.build_network(config, shape, num_actions).to(device)
    target = checkpoint.build_network(config, shape, num_actions).to(device)
    _check_sequences(config, online.initial_state(1))
    return Learner(config.learner, online, target, device=device, ranks=ranks)


def build_replay(
    config: Config, env: GameVecEnv, state: State, device: torch.device, ranks: Ranks = ALONE
) -> Replay:
    """An empty replay.

    Args:
        config: of the run.
        env: whose steps it will hold.
        state: an example of the encoder's recurrent state, each [1, ...].
        device: where it lives.
        ranks: of whose replays it is one.

    Raises:
        ValueError: it does not fit into memory.
    """
    kind = storages[config.replay.storage]
    if not issubclass(kind, Replay):
        raise ValueError(
            f"replay.storage: {config.replay.storage} ({kind.__module__}) is no subclass of "
            f"{Replay.__module__}.{Replay.__name__}"
        )
    home = kind.home(device)
    num_envs, shape = config.env.num_envs, obs_shape_of(env)
    size = replay_bytes(
        config.replay,
        num_envs=num_envs,
        obs_shape=shape,
        state=state,
        frame_channels=env.step_spec.channels,
    )
    check_memory(*size, home, sharing=1 if home.type == "cuda" else ranks.local_size)
    what = f"replay.storage: {config.replay.storage}"
    with foreign_errors(what, kind), explained_out_of_memory(size[0], home):
        return _empty_replay(kind, config, env, state=state, device=device, ranks=ranks)


def _empty_replay(
    kind: type[Replay],
    config: Config,
    env: GameVecEnv,
    **where: Any,
) -> Replay:
    return kind(
        config.replay,
        ReturnConfig(
            n_steps=config.learner.n_steps,
            discount=config.learner.discount,
            reward_clip=config.learner.reward_clip,
            terminal_on_life_loss=env.protocol.terminal_on_life_loss,
        ),
        num_envs=config.env.num_envs,
        obs_shape=obs_shape_of(env),
        frame_channels=env.step_spec.channels,
        **where,
    )


def _check_sequences(config: Config, state: State) -> None:
    replay = config.replay
    if not state and replay.sequence_steps + replay.burn_in_steps > 1:
        raise ValueError(
            f"replay.sequence_steps: {replay.sequence_steps} is not allowed: encoder "
            f"{config.encoder!r} has no state (as many steps: --replay.sequence-steps 1 "
            "--replay.overlap-steps 0 --replay.burn-in-steps 0 --replay.batch-size "
            f"{replay.batch_size * replay.stride_steps})"
        )
    if state and replay.sequence_steps == 1:
        print(
            f"note: encoder {config.encoder!r} is trained on single steps from stored states; "
            "set --replay.sequence-steps (rltime: 20) for gradients through time"
        )
