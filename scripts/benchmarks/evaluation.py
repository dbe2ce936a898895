"""Evaluation beside Stable-Baselines3's `evaluate_policy`: one agent, played by both.

A fresh Nature network with quantiles plays Ms. Pacman without sticky actions, greedily. SB3 plays
it through its own environments (`make_atari_env`, stacks of 4) and `agents.Agent.predict`. Reported
are agent steps per second of processor time (of all threads) and by the clock, in turns: episodes
of two protocols differ in length, steps cost the same in every episode.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from agents.config import Config, make_config
from agents.playing.evaluate import NUM_ENVS, play
from agents.playing.policy import Agent
from agents.saving.checkpoint import build_network
from benchmarks._options import positive

SHAPE, ACTIONS, FRAMESKIP = (4, 84, 84), 9, 4
WANTED = 4.0
OURS = f"ours ({NUM_ENVS})"


def config() -> Config:
    """Of the agent."""
    return make_config(
        {
            "env": {"protocol": "rltime", "stack_num": 4},
            "learner": {"num_action_quantiles": 8},
            "head": {"quantile_layer": "hidden"},
        }
    )


def ours(agent: Agent, episodes: int, num_envs: int) -> int:
    """Agent steps of so many episodes."""
    scores = play(
        agent.network, agent.config, episodes=episodes, epsilon=0.0, seed=1, num_envs=num_envs
    )
    return sum(scores.lengths)


def sb3(agent: Agent, env: Any, episodes: int) -> int:
    """Likewise, by `evaluate_policy`, whose lengths are in frames: its Monitor lies innermost."""
    from stable_baselines3.common.evaluation import evaluate_policy

    _, lengths = evaluate_policy(agent, env, episodes, return_episode_rewards=True)  # pyright: ignore[reportArgumentType]
    assert isinstance(lengths, list)
    return sum(lengths) // FRAMESKIP


def sb3_env(num_envs: int) -> Any:
    """SB3's environments, as its zoo evaluates in them."""
    import ale_py
    import gymnasium
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gymnasium.register_envs(ale_py)
    return VecFrameStack(make_atari_env("MsPacmanNoFrameskip-v4", n_envs=num_envs, seed=1), 4)


def rates(run: Callable[[], int]) -> tuple[float, float]:
    """Steps per second of processor time, and by the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    steps = run()
    return steps / (time.process_time() - cpu), steps / (time.perf_counter() - clock)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=positive, default=100)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    of = config()
    agent = Agent(build_network(of, SHAPE, ACTIONS), of, SHAPE)
    contenders: dict[str, Callable[[], int]] = {
        OURS: functools.partial(ours, agent, options.episodes, NUM_ENVS),
        "sb3 (8)": functools.partial(sb3, agent, sb3_env(8), options.episodes),
        "sb3 (1)": functools.partial(sb3, agent, sb3_env(1), options.episodes),
    }
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, run in contenders.items():
            measured[name].append(rates(run))
    medians = {n: [statistics.median(c) for c in zip(*r, strict=True)] for n, r in measured.items()}
    cpu, clock = medians[OURS]
    print(f"{'steps/s of':10s} {'processor time':>15s} {'ours over':>10s} {'clock':>9s} ours over")
    for name, (one, other) in medians.items():
        print(f"{name:10s} {one:15.0f} {cpu / one:10.2f} {other:9.0f} {clock / other:9.2f}")
    print(f"wanted: {WANTED}")
