"""Speed of the environments beside their peers, as ratios of decisions per second.

All play the same game at random: frame skip 4, max-pooling, 84x84 grey, stack 4, no sticky actions.
Every contender is stepped for a short time in each round, so that other work disturbs all alike.
`bare` is ale-py's AtariVectorEnv, `16_of_32` its asynchronous mode.
"""

import argparse
import contextlib
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

from benchmarks._options import positive
from envs import make_atari, resolve_game

SETTINGS: dict[str, Any] = {
    "repeat_action_probability": 0.0,
    "noop_max": 30,
    "use_fire_reset": True,
}
TARGETS = [
    ("ours_16", "sb3_subproc_8", 2.5),
    ("ours_16", "bare_16", 0.95),
    ("ours_8", "bare_8", 0.95),
    ("ours_16_of_32", "bare_16_of_32", 0.95),
    ("ours_16", "sb3_dummy_8", 0.0),
]
"""Our environment, the peer, and the smallest ratio wanted (0: for information only)."""


def emulator(game: str, **kwargs: Any) -> gym.Env:
    """One environment without frame skip; called in SB3's worker processes."""
    gym.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner
    name = "".join(word.capitalize() for word in game.split("_"))
    return gym.make(f"{name}NoFrameskip-v4", **kwargs)


def sb3(game: str, cls: type) -> VecFrameStack:
    """SB3's usual Atari environment: 8 environments, stacked by its wrapper."""
    env = make_atari_env(
        partial(emulator, game),
        n_envs=8,
        seed=0,
        vec_env_cls=cls,
        wrapper_kwargs={"terminal_on_life_loss": False, "clip_reward": False},
    )
    return VecFrameStack(env, 4)


def bare(game: str, num_envs: int, batch_size: int = 0) -> AtariVectorEnv:
    return AtariVectorEnv(game, num_envs, batch_size=batch_size, reward_clipping=False, **SETTINGS)


def contenders(game: str) -> dict[str, Callable[[], Any]]:
    """Functions that build an environment, by name."""
    return {
        "ours_8": lambda: make_atari(game, num_envs=8, **SETTINGS),
        "bare_8": lambda: bare(game, 8),
        "ours_16": lambda: make_atari(game, num_envs=16, **SETTINGS),
        "bare_16": lambda: bare(game, 16),
        "ours_16_of_32": lambda: make_atari(game, num_envs=32, batch_size=16, **SETTINGS),
        "bare_16_of_32": lambda: bare(game, 32, 16),
        "sb3_subproc_8": lambda: sb3(game, SubprocVecEnv),
        "sb3_dummy_8": lambda: sb3(game, DummyVecEnv),
    }


def cpu_seconds(workers: list[int]) -> float:
    """CPU time so far of this process and of these worker processes (known on Linux only)."""
    total = time.process_time()
    for pid in workers:
        with contextlib.suppress(FileNotFoundError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def play(env: Any, actions: np.ndarray, seconds: float) -> tuple[float, float]:
    """Decisions per second of stepping `env` for about `seconds`, and the cores it used."""
    workers = [process.pid for process in getattr(env.unwrapped, "processes", [])]
    count = 0
    cpu, began = cpu_seconds(workers), time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        env.step(actions[count % len(actions)])
        count += 1
    return count * actions.shape[1] / elapsed, (cpu_seconds(workers) - cpu) / elapsed


def measure(game: str, rounds: int, seconds: float) -> dict[str, np.ndarray]:
    """The results of `play` for each contender, [rounds, 2]; the rounds are interleaved."""
    rng = np.random.default_rng(0)
    measured: dict[str, list[tuple[float, float]]] = {}
    with contextlib.ExitStack() as stack:
        running = {}
        for name, build in contenders(game).items():
            env = build()
            stack.callback(env.close)
            env.reset()
            rows = getattr(env, "batch_size", env.num_envs)
            single = getattr(env, "single_action_space", env.action_space)
            running[name] = env, rng.integers(single.n, size=(1000, rows))
        for counts in range(rounds + 1):  # the first is a warm-up
            for name, (env, actions) in running.items():
                result = play(env, actions, seconds)
                if counts:
                    measured.setdefault(name, []).append(result)
    return {name: np.array(values) for name, values in measured.items()}


def report(measured: dict[str, np.ndarray]) -> None:
    print(f"{'decisions/s':16s} {'median':>8s} {'best decile':>12s} {'min':>8s} {'max':>8s} cores")
    for name, values in measured.items():
        speed, cores = values.T
        summary = np.median(speed), np.quantile(speed, 0.9), speed.min(), speed.max()
        columns = "{:8.0f} {:12.0f} {:8.0f} {:8.0f} {:5.2f}".format(*summary, np.median(cores))
        print(f"{name:16s} {columns}")
    titles = "medians", "by round", "best decile", "per core"
    print(f"\n{'ratio of':32s} " + " ".join(f"{title:>11s}" for title in titles) + "  target")
    for ours, peer, target in TARGETS:
        (a, a_cores), (b, b_cores) = measured[ours].T, measured[peer].T
        ratios = (
            np.median(a) / np.median(b),
            np.median(a / b),
            np.quantile(a, 0.9) / np.quantile(b, 0.9),
            np.median(a / a_cores) / np.median(b / b_cores),
        )
        verdict = f"{target:6.2f} {'met' if ratios[0] >= target else 'MISSED'}" if target else ""
        columns = " ".join(f"{ratio:11.3f}" for ratio in ratios)
        print(f"{ours + ' / ' + peer:32s} {columns}  {verdict}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--game", default="ms_pacman", type=resolve_game)
    parser.add_argument("--rounds", type=positive, default=20)
    parser.add_argument("--seconds", default=0.5, type=float, help="per contender and round")
    args = parser.parse_args(argv)
    print(f"{args.game}, {args.rounds} rounds of {args.seconds} s each, {os.cpu_count()} cores")
    print("cores: CPU seconds per second, with worker processes; low values mean a shared machine,")
    print("on which more processes get a larger share. per core: decisions per CPU second\n")
    report(measure(args.game, args.rounds, args.seconds))
