"""One short training loop for the supervised tasks: a run is one or more trials and their mean.

A task defines its data, model, loss and metrics (`Task`), and `Trial` trains one seed of it. The
loop uses no framework: on one device Lightning Fabric would replace about five lines (moving to the
device), but its checkpoints are pickles and it needs a dozen packages.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rl_nfm.supervised.loop.options import (
    parse_config,
    plain,
    refuse_unused,
    run_folder,
    write_config,
)
from rl_nfm.supervised.loop.reporting import (
    format_metrics,
    mean_and_deviation,
    versions,
    write_result,
)
from rl_nfm.supervised.loop.task import LoopConfig, Metrics, Task
from rl_nfm.supervised.loop.trial import Trial
from rl_nfm.supervised.registry import TaskEntry, register_task
from rl_nfm.support.device import choose_device
from rl_nfm.support.memory import keep_freed_memory

__all__ = ["LoopConfig", "Metrics", "Task", "register_loop_task", "run_trials"]


def register_loop_task(
    name: str, summary: str, task: type[Task[Any]], presets: Mapping[str, LoopConfig]
) -> None:
    """Register a task that this loop trains.

    Args:
        name: its name on the command line.
        summary: one line that describes it.
        task: the class of one trial.
        presets: configs by name, the default one first.
    """

    def parse(argv: Sequence[str]) -> LoopConfig:
        config = parse_config(
            argv, task=name, presets=presets, description=summary, models=task.models
        )
        if task.models is None and "model" in vars(config):
            refuse_unused(config, presets, task.used_by)
        return config

    def main(argv: Sequence[str]) -> int:
        run_trials(name, task, parse(argv))
        return 0

    register_task(
        TaskEntry(
            name=name,
            summary=summary,
            main=main,
            parse=parse,
            presets=presets,
            models=task.models,
            columns=task.columns,
            task=task,
        )
    )


def run_trials(name: str, task: type[Task[Any]], config: LoopConfig) -> dict[str, Any]:
    """Train `config.trials` seeds and write the result; returns it.

    Raises:
        ValueError: a bad option or run folder, or a loss that is not finite.
        OSError: a file cannot be written.
    """
    device = choose_device(config.device)
    keep_freed_memory(device)
    folder = run_folder(config, task=name)
    rows, baselines, by_step = [], {}, {}
    for index in range(config.trials):
        trial = Trial(task, config, device, folder / f"trial{index}", config.seed + index)
        if index == 0:  # only after data and model were made, so that a failed start leaves no run
            write_config(folder, config, task=name)
        rows.append(trial.run())
        baselines, by_step = trial.task.baselines(), trial.task.baselines_by_step()
    mean, deviation = mean_and_deviation([row["metrics"] for row in rows])
    result = {
        "task": name,
        "config": plain(config),
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "trials": rows,
        "mean": mean,
        "deviation": deviation,
        "baselines": baselines,
        **({"baselines_by_step": by_step} if by_step else {}),
    }
    write_result(result, folder / "result.json", *([config.json] if config.json else []))
    print(f"{name}: {config.trials} trial(s), {folder / 'result.json'}")
    print(format_metrics(mean, deviation, baselines))
    return result
