"""A run of a supervised task: its parts, trained one after the other, and its result.

A task defines its data, model, loss and metrics (`Task`), and `Trial` trains one seed of it, or a
batch of seeds (`SeedBatchTask`). The loop uses no framework: on one device Lightning Fabric would
replace about five lines (moving to the device), but its checkpoints are pickles and it needs a
dozen packages.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rl_nfm.supervised.loop.options import (
    RunConfig,
    parse_config,
    plain,
    run_folder,
    write_config,
)
from rl_nfm.supervised.loop.presets import Presets
from rl_nfm.supervised.loop.reporting import RESULT_FILE, versions, write_result
from rl_nfm.supervised.loop.task import LoopConfig, Task
from rl_nfm.supervised.loop.trainee import Metrics, Trainee
from rl_nfm.supervised.loop.trial import Trial
from rl_nfm.supervised.registry import TaskEntry, WriteTable, register_task
from rl_nfm.support.bare_flags import spell_out
from rl_nfm.support.device import choose_device
from rl_nfm.support.errors import foreign_errors
from rl_nfm.support.memory import keep_freed_memory
from rl_nfm.support.output_files import check_file

__all__ = ["LoopConfig", "Metrics", "Task", "register_loop_task", "run_trials"]


def register_loop_task(
    name: str,
    summary: str,
    task: type[Trainee[Any]],
    presets: Mapping[str, RunConfig],
    *,
    description: str = "",
    write_table: WriteTable | None = None,
) -> None:
    """Register a task that this loop trains.

    Args:
        name: its name on the command line.
        summary: one line that describes it.
        task: its class.
        presets: configs by name, the default one first.
        description: the text of its `--help`; by default the summary.
        write_table: see `TaskEntry.write_table`.
    """
    if not isinstance(presets, Presets):
        presets = Presets(name, type(next(iter(presets.values()))), presets)
    presets.models = task.models

    def parse(argv: Sequence[str]) -> RunConfig:
        return parse_config(
            spell_out(argv, type(next(iter(presets.values())))),
            task=name,
            presets=presets,
            description=description or summary,
            models=task.models,
        )

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
            write_table=write_table,
            task=task,
        )
    )


def run_trials(name: str, task: type[Trainee[Any]], config: RunConfig) -> dict[str, Any]:
    """Train all parts of a run and write the result; returns it.

    Raises:
        ValueError: a bad option or run folder, or a loss that is not finite.
        OSError: a file cannot be written.
    """
    if config.json is not None:
        check_file("json", config.json)
    device = choose_device(config.device)
    keep_freed_memory(device)
    folder = run_folder(config, task=name)
    what, code = f"task {name!r}", [task]
    if task.models is not None:
        model = vars(config)["model"]
        what, code = f"{what}, model {model!r}", [task, task.models[model].build]
    with foreign_errors(what, *code, value_errors=False):
        return _run_parts(name, task, config, device, folder)


def _run_parts(
    name: str, task: type[Trainee[Any]], config: RunConfig, device: torch.device, folder: Path
) -> dict[str, Any]:
    outcomes = []
    for index, part in enumerate(task.parts(config)):
        trial = Trial(task, part.config, device, folder / part.folder, part.seed)
        if index == 0:  # only after data and model were made, so that a failed start leaves no run
            write_config(folder, config, task=name)
            print(f"run: {folder}", flush=True)
        outcomes.append(trial.run())
    result = {
        "task": name,
        "config": plain(config),
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        **task.result(outcomes),
    }
    write_result(result, folder / RESULT_FILE, *([config.json] if config.json else []))
    print(task.report(folder, result))
    return result
