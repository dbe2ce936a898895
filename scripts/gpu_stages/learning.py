"""Whether an agent learns on a GPU: `cpu_1m_frames` with evaluations and checkpoints."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agents.config import make_config
from agents.presets import preset_path
from agents.saving.run_folder import read_metrics
from agents.training.train import resume, train
from gpu_stages.common import DEVICE, REHEARSAL, TINY, learning_lines, merged, run_until
from rl_nfm.support.yaml_file import read_yaml

SECONDS = 150.0


def pacman(out: Path) -> Iterator[dict[str, Any]]:
    """A run stopped after some time, then continued for a while from its checkpoint."""
    values = read_yaml(preset_path("cpu_1m_frames"))
    changes: dict[str, Any] = {
        "device": DEVICE.type,
        "run": {
            "log_every_steps": 2_000, "eval_every_steps": 50_000, "eval_episodes": 8,
            "checkpoint_every_steps": 50_000,
        },
    }  # fmt: skip
    values = merged(values, changes)
    if REHEARSAL:
        run = {"log_every_steps": 80, "eval_every_steps": 10_000, "checkpoint_every_steps": 160}
        values = merged(merged(values, TINY), {"run": run})
    folder = out / "pacman"
    begin = time.perf_counter()
    _run_for(SECONDS, folder, lambda: train(make_config(values), out=folder))
    lines = read_metrics(folder / "metrics.jsonl")
    yield {"seconds": round(time.perf_counter() - begin, 1), **_summary(lines)}
    begin = time.perf_counter()
    _run_for(25, folder, lambda: resume(folder, lambda config: config))
    again = read_metrics(folder / "metrics.jsonl")
    yield {
        "resumed_seconds": round(time.perf_counter() - begin, 1), **_summary(again),
        "passed": again[: len(lines)] == lines and len(again) > len(lines),
    }  # fmt: skip
    for line in again:
        if "return_last_100" in line and line["steps"] % 10_000 == 0:
            kept = {"steps", "updates", "return_last_100", "eval_return_mean", "steps_per_second"}
            yield {key: value for key, value in line.items() if key in kept}
    shutil.copy(folder / "metrics.jsonl", out / "pacman_metrics.jsonl")
    shutil.rmtree(folder)


def _summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    last = lines[-1]
    keys = ("steps", "updates", "episodes", "return_last_100", "steps_per_second")
    return {
        **{key: last.get(key) for key in keys},
        "evaluations": [line["eval_return_mean"] for line in lines if "eval_return_mean" in line],
    }


def _run_for(seconds: float, folder: Path, run: Callable[[], object]) -> None:
    """Run for so many seconds; in a rehearsal until two more lines with updates are logged."""
    begin, before = time.monotonic(), len(learning_lines(folder))
    if REHEARSAL:
        run_until(lambda: len(learning_lines(folder)) >= before + 2, run)
    else:
        run_until(lambda: time.monotonic() - begin > seconds, run)
