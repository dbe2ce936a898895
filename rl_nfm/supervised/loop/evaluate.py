"""`rl-nfm supervised evaluate RUN`: metrics of trained weights, also on other test data."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import nn

from rl_nfm.supervised.loop.options import RunConfig, plain, read_config, read_saved
from rl_nfm.supervised.loop.reporting import (
    format_metrics,
    mean_and_deviation,
    value_text,
    write_result,
)
from rl_nfm.supervised.loop.seed_batch import SeedBatchTask
from rl_nfm.supervised.loop.trainee import Metrics, Trainee
from rl_nfm.supervised.loop.trial import BEST, CHECKPOINT, load_weights
from rl_nfm.supervised.registry import task_entry
from rl_nfm.support.configuration import plain_values, validate
from rl_nfm.support.device import choose_device
from rl_nfm.support.flags import parse_flags
from rl_nfm.support.output_files import check_file
from rl_nfm.support.storage import present

Weights = Literal["best", "last"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A trained model and the task that tests it."""

    task: Trainee[Any]
    model: nn.Module
    """The model in eval mode, on the task's device."""
    epoch: int
    """The epoch after which the weights were kept."""
    weights: Weights
    seeds: Sequence[int]

    def evaluate(self) -> Metrics:
        """The task's metrics, including those that are computed once at the end of training."""
        with torch.no_grad(), self.task.autocast():
            return {**self.task.evaluate(self.model), **self.task.test(self.model)}

    def write_video(self, path: Path) -> None:
        """See `Trainee.write_video`."""
        with torch.no_grad(), self.task.autocast():
            self.task.write_video(self.model, path)


def load_trained(
    run: Path | str, *, trial: int = 0, weights: Weights | None = None, **changes: Any
) -> Loaded:
    """A trained model, with its task, from a run of the shared loop.

    Args:
        run: the folder of the run.
        trial: which of its seeds, from 0.
        weights: those of the best validation or of the end; none: the best if they were kept.
        changes: options of the test data (`Task.free_in_evaluation`) and `device`.

    Raises:
        ValueError: no such run or trial, a change that is not allowed, or a damaged checkpoint.
    """
    if weights not in (None, "best", "last"):
        raise ValueError(f"weights: {weights!r} is not allowed: must be 'best', 'last' or None")
    config = _read(Path(run))
    changed = validate(type(config), {**plain_values(config), **changes})
    _check_changes(Path(run), config, changed)
    return _load(Path(run), changed, trial, weights)


def _read(run: Path) -> RunConfig:
    name, _ = read_saved(run, option="run")
    entry = task_entry(name)
    if entry.task is None:
        raise ValueError(f"run: a run of task {name!r} is not evaluated again: see its result.json")
    cls = type(next(iter(entry.presets.values())))
    return read_config(run, cls, task=name, models=entry.models)


def _task_of(run: Path) -> type[Trainee[Any]]:
    name, _ = read_saved(run, option="run")
    return task_entry(name).task


def _check_changes(run: Path, old: RunConfig, new: RunConfig) -> None:
    """Refuse a change of anything but the test data and the device."""
    free = ("device", *_task_of(run).free_in_evaluation)
    for name in plain(old):
        if name not in free and getattr(new, name) != getattr(old, name):
            raise ValueError(
                f"{name}: cannot change in an evaluation (free to change: {', '.join(free)})"
            )


def _changeable(run: Path, config: RunConfig) -> str:
    """What an evaluation of this run may change, with the values that hold unless it does."""
    values = plain(config)
    flags = [
        f"  --{name.replace('_', '-')} {value_text(values[name])}"
        for name in _task_of(run).free_in_evaluation
    ]
    return "\n".join([f"Options of what {run} is tested on, with the run's values:", *flags])


def _load(run: Path, config: Any, trial: int, weights: Weights | None) -> Loaded:
    parts = dict(enumerate(_task_of(run).parts(config)))
    if trial not in parts:
        raise ValueError(f"{run}: no trial {trial} in it (it has {len(parts)})")
    part = parts[trial]
    folder = run / part.folder
    chosen: Weights = weights or ("best" if present(folder / BEST) else "last")
    place = present(folder / {"best": BEST, "last": CHECKPOINT}[chosen])
    if place is None:
        raise ValueError(f"{run}: no {chosen} weights of trial {trial} in it")
    device = choose_device(config.device)
    torch.manual_seed(part.seed)  # the data that the trial was trained on
    task = _task_of(run)(part.config, device)
    model = task.place_model().eval()
    meta = load_weights(place, model)
    same = meta.get("data", task.data_digest) == task.data_digest
    if task.same_data_in_evaluation and not same:
        raise ValueError(
            f"data: {run} was trained on others, without which its weights mean nothing"
        )
    if not same:
        task.use_data_facts(meta.get("data_facts", {}))
    seeds = task.seeds if isinstance(task, SeedBatchTask) else [part.seed]
    epoch = meta["epoch"] if "epoch" in meta else meta["updates"]
    return Loaded(task=task, model=model, epoch=epoch, weights=chosen, seeds=seeds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to evaluate of a run."""

    weights: Weights | None = None
    """Of the best validation or of the end of the training; none: the best where there are any."""

    trial: Annotated[int, Ge(0)] | None = None
    """Which of the run's seeds, from 0; none: all of them."""

    json: Path | None = None
    """Write the figures here."""

    video: Path | None = None
    """Write a video of the first seed's predictions to this .mp4 file (bouncing_balls)."""


HELP = """usage: rl-nfm supervised evaluate RUN [--weights best|last] [--trial N] [--json FILE]
                                  [--video FILE.mp4] [--device auto|cpu|cuda]
                                  [options of what is tested on]

Figures of a finished run's weights, those of its best validation where they were kept. Options of
what is tested on are the task's, and hold the run's values unless typed: other data, counts,
lengths or boxes, as in --occlusion 8, --test-blanks 100 or --data mnist --data-folder DIR. An
option that cannot change is answered with those that can. --video shows the first seed's
predictions, of a task whose predictions are pictures (bouncing_balls)."""


_OWN_FLAGS = frozenset(field.name for field in dataclasses.fields(Options))


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0
    place = _run_index(argv)
    run, argv = Path(argv[place]), [*argv[:place], *argv[place + 1 :]]
    config = _read(run)
    if {"-h", "--help"} & {*argv}:
        print(f"{HELP}\n\n{_changeable(run, config)}")
        return 0
    command_flags, task_flags = _split(argv)
    options = parse_flags(Options, command_flags, prog="rl-nfm supervised evaluate RUN")
    if options.json is not None:
        check_file("json", options.json, ".json")
    if options.video is not None:
        check_file("video", options.video, ".mp4")
    changed = parse_flags(
        type(config), task_flags, default=config, prog="rl-nfm supervised evaluate RUN"
    )
    _check_changes(run, config, changed)
    parts = _task_of(run).parts(changed)
    if options.trial is None and any(part.config != changed for part in parts):
        raise ValueError(f"trial: this run has {len(parts)} settings; choose one with --trial")
    trials = range(len(parts)) if options.trial is None else [options.trial]
    rows, seeds = [], []
    for trial in trials:
        loaded = _load(run, changed, trial, options.weights)
        named = f"seed{'s' * (len(loaded.seeds) > 1)} {', '.join(map(str, loaded.seeds))}"
        print(f"{run} {named}: {loaded.weights} weights, of epoch {loaded.epoch}", flush=True)
        if options.video is not None and trial == trials[0]:
            loaded.write_video(options.video)
        rows.append(loaded.evaluate())
        seeds += loaded.seeds
    mean, deviation = mean_and_deviation(rows)
    print(format_metrics(mean, deviation, {}))
    if options.json is not None:
        result = {"run": str(run), "config": plain(changed), "seeds": seeds, "metrics": rows}
        write_result({**result, "mean": mean, "deviation": deviation}, options.json)
    return 0


def _run_index(argv: Sequence[str]) -> int:
    """Which word is the run: the first folder that is no flag's value, or the first word.

    The task's flags, which would tell words from values, are known only with the run.
    """
    for index, word in enumerate(argv):
        after_flag = index > 0 and argv[index - 1].startswith("--") and "=" not in argv[index - 1]
        if not word.startswith("--") and not after_flag and Path(word).is_dir():
            return index
    return 0


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags of this command, and those of the task."""
    command_flags: list[str] = []
    task_flags: list[str] = []
    current = task_flags
    for word in argv:
        if word.startswith("--"):
            name = word.removeprefix("--").split("=")[0].replace("-", "_")
            current = command_flags if name in _OWN_FLAGS else task_flags
        current.append(word)
    return command_flags, task_flags


__all__ = ["Loaded", "load_trained", "main"]
