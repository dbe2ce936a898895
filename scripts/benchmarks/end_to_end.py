"""Agent steps per second of a whole training run beside Stable-Baselines3's DQN.

Ms. Pacman, no sticky actions, 8 environments, batch 32, one update per 4 steps, after 1,000 steps
of warm-up. Contenders run one after the other, each in its own process, and report the rate of
their second half.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from agents.learning.config import native_bf16
from benchmarks._options import positive

CONTENDERS = ("sb3_dqn", "dqn", "rainbow_8", "rainbow_8_compiled", "rainbow_64")
TARGETS = {"dqn": (1.5, 1.5), "rainbow_8": (1.5, 1.0), "rainbow_8_compiled": (1.5, 1.0)}
"""Wanted ratio to SB3's DQN where bf16 runs in hardware, and where not."""


def run_sb3(steps: int) -> float:
    import ale_py
    import gymnasium
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gymnasium.register_envs(ale_py)

    class Clock(BaseCallback):
        half = 0.0

        def _on_step(self) -> bool:
            if not self.half and self.num_timesteps >= steps // 2:
                self.half = time.perf_counter()
            return True

    env = VecFrameStack(make_atari_env("MsPacmanNoFrameskip-v4", n_envs=8, seed=0), 4)
    model = DQN(
        "CnnPolicy",
        env,
        buffer_size=50_000,
        learning_starts=1000,
        batch_size=32,
        train_freq=4,
        gradient_steps=8,
    )
    clock = Clock()
    model.learn(steps, callback=clock)
    return (steps - steps // 2) / (time.perf_counter() - clock.half)


def run_ours(name: str, steps: int) -> float:
    import tempfile

    from agents.config import make_config
    from agents.saving.run_folder import read_metrics
    from agents.training.train import train
    from benchmarks.update import OURS
    from rl_nfm.support.memory import keep_freed_memory

    keep_freed_memory(torch.device("cpu"))  # as `rl-nfm train`
    learner, head, exponent = OURS[name]
    config = make_config(
        {
            "steps": steps,
            "env": {"protocol": "rltime", "num_envs": 8, "stack_num": 4},
            "learner": {**learner, "steps_per_update": 4},
            "head": head,
            "replay": {
                "capacity_steps": 50_000,
                "min_steps": 1000,
                "priority_exponent": exponent,
            },
            "exploration": {"epsilon_decay_steps": steps // 10},
            "run": {"log_every_steps": steps // 2, "eval_episodes": 0, "save_replay": False},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        path = train(config, out=Path(folder) / "run")
        return read_metrics(path / "metrics.jsonl")[-1]["steps_per_second"]


def command_of(name: str, steps: int) -> list[str]:
    """What runs one contender in a process of its own."""
    script = Path(__file__).parent.parent / "benchmark.py"
    return [sys.executable, str(script), "end_to_end", "--one", name, "--steps", str(steps)]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=positive, default=8000)
    parser.add_argument("--rounds", type=positive, default=2)
    parser.add_argument("--one", choices=CONTENDERS, help="run this one alone and print its rate")
    options = parser.parse_args(argv)
    if options.one:
        run = run_sb3 if options.one == "sb3_dqn" else lambda n: run_ours(options.one, n)
        print(f"rate {run(options.steps)}")
        return
    rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(options.rounds):
        for name in CONTENDERS:
            command = command_of(name, options.steps)
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rates[name].append(float(output.rpartition("rate ")[2]))
            print(f"{name}: {rates[name][-1]:.1f} steps/s", flush=True)
    print(
        f"{'steps/s':12s} {'median':>8s} {'min':>8s} {'max':>8s} {'to sb3_dqn':>11s} {'target':>7s}"
    )
    base = np.median(rates["sb3_dqn"])
    for name, values in rates.items():
        column = 0 if native_bf16(torch.device("cpu")) else 1
        wanted = f"{TARGETS[name][column]:.2f}" if name in TARGETS else ""
        columns = f"{np.median(values):8.1f} {min(values):8.1f} {max(values):8.1f}"
        print(f"{name:12s} {columns} {np.median(values) / base:11.2f} {wanted:>7s}")
