"""Code that the stages share: settings, timing, and trainers that can learn at once."""

import contextlib
import dataclasses
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from agents.config import Config, make_config
from agents.presets import preset_path
from agents.saving.run_folder import read_metrics
from agents.training.train import Stop, Trainer
from rl_nfm.support.yaml_file import read_yaml

REHEARSAL = os.environ.get("RL_NFM_REHEARSAL") == "1"
"""Whether to use small sizes on a CPU, to see that every stage runs."""
DEVICE = torch.device("cpu" if REHEARSAL else "cuda")

SMALL_REPLAY = {"replay": {"capacity_steps": 200_000, "min_steps": 2_000}}
BTR = {
    "encoder": "impala",
    "env": {"num_envs": 64},
    "replay": {"capacity_steps": 200_000, "min_steps": 2_000, "batch_size": 256},
    "learner": {
        "num_quantiles": 8,
        "num_target_quantiles": 8,
        "num_action_quantiles": 8,
        "steps_per_update": 64,
    },
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "nfm_paper": ("nfm_paper", SMALL_REPLAY),
    "resnet_paper": ("resnet_paper", SMALL_REPLAY),
    "rim": ("rim", SMALL_REPLAY),
    "r2d2": ("r2d2", SMALL_REPLAY),
    "btr_like": ("rainbow_iqn", BTR),
    "rainbow_iqn": ("rainbow_iqn", SMALL_REPLAY),
    "dopamine_iqn": ("dopamine_iqn", SMALL_REPLAY),
    "atari_100k": ("atari_100k", {"replay": {"min_steps": 1_600}}),
}
"""The measured cases by name: a preset and changes to it."""

TINY: dict[str, Any] = {
    "env": {"num_envs": 4},
    "replay": {"capacity_steps": 6_000, "min_steps": 200, "batch_size": 2},
    "nfm": {"width": 8, "depth": 10},
    "resnet": {"width": 8, "depth": 10},
    "impala": {"width": 4},
    "head": {"hidden_size": 16},
    "learner": {"compile": False},
}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` inside its groups."""
    out = dict(base)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merged(out[key], value)
        else:
            out[key] = value
    return out


def case_config(name: str, changes: dict[str, Any] | None = None) -> Config:
    """The config of a case; in a rehearsal a tiny one with the same parts."""
    preset, case_values = CASES[name]
    values = merged(read_yaml(preset_path(preset)), case_values)
    if REHEARSAL:
        values = merged(values, TINY)
        if values["replay"].get("sequence_steps", 1) > 10:
            short = {"sequence_steps": 6, "overlap_steps": 2, "burn_in_steps": 2}
            values["replay"] = merged(values["replay"], short)
        values["learner"]["steps_per_update"] = 40
    values = merged(values, {"device": DEVICE.type, **(changes or {})})
    return make_config(values)


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def median_ms(run: Callable[[], object], seconds: float = 1.0, warm_ups: int = 5) -> float:
    """Median time of single runs, waiting for the device after each."""
    if REHEARSAL:
        seconds, warm_ups = 0.0, 1
    for _ in range(warm_ups):
        run()
    synchronize()
    times: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times) < 3:
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def burst_ms(run: Callable[[], object], count: int) -> float:
    """Mean time of many runs, waiting for the device once at the end."""
    count = 2 if REHEARSAL else count
    synchronize()
    start = time.perf_counter()
    for _ in range(count):
        run()
    synchronize()
    return (time.perf_counter() - start) / count * 1e3


@contextlib.contextmanager
def filled_trainer(config: Config) -> Iterator[Trainer]:
    """A trainer whose replay holds random rows, so that updates can be timed at once."""
    trainer = Trainer(config, torch.device(config.device))
    try:
        fill(trainer)
        yield trainer
    finally:
        trainer.turns.close()


def fill(trainer: Trainer) -> None:
    """Add random rows."""
    replay, generator = trainer.replay, torch.Generator().manual_seed(0)
    count, frame = replay.num_envs, replay.frame.shape[2:]
    replay_config = trainer.config.replay
    rows = 3 * (replay_config.sequence_steps + replay_config.burn_in_steps) + 300

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, (count, *shape), generator=generator).to(replay.device)

    zeros = torch.zeros(count, dtype=torch.bool, device=replay.device)
    for _ in range(rows):
        replay.add(
            frame=draw(256, *frame).to(torch.uint8),
            action=draw(6),
            reward=torch.randn(count, generator=generator).to(replay.device),
            discount=draw(100) > 0,
            episode_start=draw(100) == 0,
            life_loss=zeros,
            episode_step=draw(1000),
            state=trainer.learner.online.initial_state(count),
        )


def replaced(config: Config, group: str, **changes: Any) -> Config:
    """The config with fields of one group changed."""
    return dataclasses.replace(
        config, **{group: dataclasses.replace(getattr(config, group), **changes)}
    )


def learning_lines(folder: Path) -> list[dict[str, Any]]:
    """What a run has logged since it began to learn."""
    return [line for line in read_metrics(folder / "metrics.jsonl") if line["updates"] > 0]


def run_until(is_over: Callable[[], bool], run: Callable[[], object]) -> None:
    """Train in this process until it ends or `is_over`, which a thread asks now and then."""

    def stop() -> None:
        while not ended.wait(0.2):
            if is_over():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    ended = threading.Event()
    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        run()
    except Stop:
        pass
    finally:
        ended.set()
        stopper.join()
