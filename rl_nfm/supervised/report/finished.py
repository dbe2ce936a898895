"""Finished runs read back, each seed apart, and which of them may share a row.

Runs share a row where all their options are equal but for the seed and for what cannot change a
result (files, device). So runs of different settings never do.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_nfm.supervised.loop.options import CONFIG_FILE, plain
from rl_nfm.supervised.loop.reporting import read_metrics
from rl_nfm.supervised.registry import TaskEntry, task_entry
from rl_nfm.support.configuration import validate
from rl_nfm.support.former import with_current_names

RESULT_FILE = "result.json"
_SWEPT = "*/*/seed-*"
"""Where the runs of a sweep lie in its folder."""
_NO_SETTING = frozenset(
    {"json", "out", "resume", "device", "seed", "trials", "preset", "nfm.preset"}
    | {"result_path", "dataset_path"}
)
_MAX_SETTINGS_IN_NAME = 3

Result = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """One seed."""

    task: str
    settings: Mapping[str, Any]
    """Dotted name to value of every option that can change the result."""
    seed: int
    parameters: int | None
    minutes: float | None
    """Of training."""
    metrics: Mapping[str, float]
    baselines: Mapping[str, float]
    history: Sequence[Mapping[str, float]]
    """Of each evaluation, with `updates`."""
    where: Path
    """Its result file."""


def read_results(paths: Sequence[Path], notes: list[str]) -> dict[Path, Result]:
    """The results of runs' folders, sweeps' folders and result files, each once.

    Args:
        paths: given by a user.
        notes: gets a line on runs of a sweep that are not finished.

    Raises:
        ValueError: none in one of them, or a damaged one.
    """
    found: dict[Path, Result] = {}
    for path in paths:
        if path.is_dir() and not (path / CONFIG_FILE).is_file():
            begun = {file.parent for file in path.glob(f"{_SWEPT}/{CONFIG_FILE}")}
            done = sorted(path.glob(f"{_SWEPT}/{RESULT_FILE}"))
            notes += [
                f"{run} is not finished" for run in sorted(begun - {file.parent for file in done})
            ]
        else:
            done = [path / RESULT_FILE if path.is_dir() else path]
            done = [file for file in done if file.is_file()]
        if not done:
            raise ValueError(f"nothing to report: no supervised run in {path} is finished")
        found |= {file.resolve(): _read(file) for file in done}
    return found


def _read(file: Path) -> Result:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        task, config = str(content["task"]), dict(content["config"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{file}: damaged, or no result of a supervised task") from None
    return {**content, "task": task, "config": _current(file, task_entry(task), config)}


def _current(file: Path, entry: TaskEntry, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A saved config under today's names, with the defaults of options that are newer."""
    if not entry.presets:
        return config
    cls = type(next(iter(entry.presets.values())))
    return plain(validate(cls, with_current_names(cls, config), where=str(file)))


def finished_runs(file: Path, result: Result) -> list[FinishedRun]:
    """The seeds of a result.

    Raises:
        ValueError: damaged.
    """
    try:
        return [_run(file, result, index) for index in range(len(result["trials"]))]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{file}: damaged, or no result of a supervised task") from None


def _run(file: Path, result: Result, index: int) -> FinishedRun:
    trial = result["trials"][index]
    seconds = trial.get("train_seconds", result.get("train_seconds"))
    own = trial.get("metrics", trial)  # a batch of seeds has them beside the seed
    metrics = {
        name: float(value)
        for name, value in own.items()
        if name != "seed" and isinstance(value, int | float) and math.isfinite(value)
    }
    each = trial["updates"] / trial["epochs"] if trial.get("epochs") else 0.0
    rows = read_metrics(file.parent / f"trial{index}") if each else []
    return FinishedRun(
        task=result["task"],
        settings=settings_of(result["config"]),
        seed=trial["seed"],
        parameters=trial.get("parameters"),
        minutes=None if seconds is None else seconds / 60,
        metrics=metrics,
        baselines=result.get("baselines", {}),
        history=[{**row, "updates": row["epoch"] * each} for row in rows],
        where=file,
    )


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name to value of every option in a config that can change a result."""
    return {name: value for name, value in _flat(config) if name not in _NO_SETTING}


def _flat(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in group.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def rows_of(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Runs of equal settings together, by seed; rows in the order of their first run.

    Raises:
        ValueError: a seed is there twice.
    """
    rows: dict[str, list[FinishedRun]] = {}
    for run in runs:
        rows.setdefault(json.dumps([run.task, run.settings], sort_keys=True), []).append(run)
    for row in rows.values():
        seen: dict[int, Path] = {}
        for run in row:
            if run.seed in seen:
                raise ValueError(
                    f"seed: {run.seed} twice with equal settings: {seen[run.seed]} and {run.where}"
                )
            seen[run.seed] = run.where
    return [sorted(row, key=lambda run: run.seed) for row in rows.values()]


def distinguish(
    names: Sequence[str], settings: Sequence[Mapping[str, Any]], notes: list[str]
) -> list[str]:
    """Different names for different settings: what differs among those of one name is added.

    Args:
        names: of the models.
        settings: of each, dotted name to value.
        notes: gets a line for each that differs in too much to fit into a name.
    """
    told: list[str] = []
    for name, own in zip(names, settings, strict=True):
        others = [s for n, s in zip(names, settings, strict=True) if n == name]
        keys = [k for k in dict.fromkeys(k for s in others for k in s) if _differ(k, others)]
        text = ", ".join(f"{key}={_value(own.get(key))}" for key in keys)
        if len(keys) > _MAX_SETTINGS_IN_NAME:
            number = 1 + [_cut(s, keys) for s in others].index(_cut(own, keys))
            notes.append(f"{name} #{number}: {text}")
            told.append(f"{name} #{number}")
        else:
            told.append(f"{name} ({text})" if keys else name)
    return told


def _differ(key: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    return any(own.get(key) != settings[0].get(key) for own in settings)


def _cut(settings: Mapping[str, Any], keys: Sequence[str]) -> list[Any]:
    return [settings.get(key) for key in keys]


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
