"""Speed of every preset: its update, its acting, its environments, and the whole run."""

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.config import Config
from agents.training.train import train
from envs import GameVecEnv
from gpu_stages.common import (
    DEVICE,
    REHEARSAL,
    burst_ms,
    case_config,
    filled_trainer,
    learning_lines,
    median_ms,
    replaced,
    run_until,
    synchronize,
)

RUN_SECONDS = 12.0
"""Of a whole run, from its first line with updates: environments are made and code is compiled
before. Of the lines after it, the first half does not count."""


def case(name: str) -> Iterator[dict[str, Any]]:
    """One preset: ms of an update and of an act, steps/s of the parts alone and of a run."""
    config = case_config(name)
    row: dict[str, Any] = {"case": name}
    with filled_trainer(config) as trainer:
        begin = time.perf_counter()
        for _ in range(6):  # eager ones, capture, and compiling where the preset asks for it
            trainer.step()
        synchronize()
        row["first_updates_s"] = time.perf_counter() - begin
        row["update_ms"] = median_ms(trainer.step, 0.8)
        count = max(5, int(700 / row["update_ms"]))
        burst = burst_ms(trainer.step, count)
        row["learner_steps_s"] = config.learner.steps_per_update / burst * 1e3
        row["env_steps_s"] = _envs_alone(trainer.turns.envs)
        if DEVICE.type == "cuda":
            row["update_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    yield row
    torch.cuda.empty_cache()
    yield {"case": name, **whole_run(config)}
    alone = min(row["learner_steps_s"], row["env_steps_s"])
    yield {"case": name, "smaller_of_parts_steps_s": alone}


def whole_run(config: Config, seconds: float = RUN_SECONDS) -> dict[str, Any]:
    """A real run of a few seconds: median steps/s of its second half, and how time was spent."""
    log = 80 if REHEARSAL else max(1000, config.env.num_envs * 40)
    seconds = 0.5 if REHEARSAL else seconds
    config = replaced(
        config, "run", log_every_steps=log, eval_episodes=0, save_replay=False,
        checkpoint_every_steps=10**9,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        learnt: list[float] = []

        def is_over() -> bool:
            if not learnt and learning_lines(out):
                learnt.append(time.perf_counter())
            return bool(learnt) and time.perf_counter() - learnt[0] >= seconds

        begin = time.perf_counter()
        run_until(is_over, lambda: train(config, out=out))
        total = time.perf_counter() - begin
        lines = learning_lines(out)
    half = lines[len(lines) // 2 :]
    if not half:
        return {"problem": "no update in the time given"}
    row = {
        "run_steps_s": statistics.median(line["steps_per_second"] for line in half),
        "lines": len(half),
        "start_s": total - seconds,
        "loss": half[-1].get("loss"),
    }
    times = {key for line in half for key in line if key.startswith("time")}
    for key in sorted(times):
        row[key] = round(statistics.median(line.get(key, 0.0) for line in half), 5)
    return row


def _envs_alone(envs: Sequence[GameVecEnv]) -> float:
    generator = np.random.default_rng(0)
    actions = len(envs[0].action_meanings)

    def send(env: GameVecEnv) -> None:
        env.send(generator.integers(actions, size=env.num_envs))

    for env in envs:
        env.reset()
        send(env)
    steps, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < (0.2 if REHEARSAL else 1.0):
        for env in envs:
            env.recv()
            send(env)
            steps += env.num_envs
    return steps / (time.perf_counter() - begin)
