"""Reading finished runs, one entry per seed, and grouping them into the rows of a table.

Runs share a row if all their options are equal, apart from the seed and from options that cannot
change a result (files, device).
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_nfm.supervised.loop.options import CONFIG_FILE, plain
from rl_nfm.supervised.loop.reporting import RESULT_FILE, read_metrics, value_text
from rl_nfm.supervised.models import UnknownModelError
from rl_nfm.supervised.registry import TaskEntry, task_entry
from rl_nfm.support.configuration import validate
from rl_nfm.support.former import with_current_names
from rl_nfm.support.sweep_folders import seed_folders

_LOGS = "*/*/seed-*.log"
"""Of the runs inside the folder of a sweep."""
_NO_SETTING = frozenset(
    {"json", "out", "resume", "device", "seed", "trials", "preset", "nfm.preset"}
    | {"result_path", "dataset_path"}
)
_FACTS_THAT_SET_APART = ("learning_rates", "data_digest", "dataset_split")
"""Of a run that was resumed with more epochs, of one that read its data from files, and of one that
was trained on several shares of the rows, each by itself."""
_MAX_SETTINGS_IN_NAME = 3

Result = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """One seed of a finished run."""

    task: str
    settings: Mapping[str, Any]
    """Every option that can change the result, by dotted name."""
    seed: int
    parameters: int | None
    minutes: float | None
    """Minutes of training."""
    metrics: Mapping[str, float]
    baselines: Mapping[str, float]
    history: Sequence[Mapping[str, float]]
    """Metrics of each evaluation, with `updates`."""
    where: Path
    """The result file."""
    folder: Path
    """Of the seed's own files; it need not exist."""
    by_step: Mapping[str, Sequence[float | None]] = dataclasses.field(default_factory=dict)
    """A loss or score at each step of the test sequences, by test set."""
    baselines_by_step: Mapping[str, Mapping[str, Sequence[float | None]]] = dataclasses.field(
        default_factory=dict
    )
    """The same of models that have learned nothing, by test set and name."""


def read_results(paths: Sequence[Path], notes: list[str]) -> dict[Path, Result]:
    """The results in folders of runs, folders of sweeps and result files, each once.

    Args:
        paths: what the user named.
        notes: receives a line about each unfinished run, and each of a model that is not here.

    Raises:
        ValueError: a path without a result, or with a damaged one.
    """
    found: dict[Path, Result] = {}
    for path in paths:
        if not path.exists():
            raise ValueError(f"nothing to report: {path} does not exist")
        if path.is_dir() and not (path / CONFIG_FILE).is_file():
            alone = sorted(file.parent for file in path.glob(f"*/{CONFIG_FILE}"))
            folders = [*seed_folders(path), *alone]
            begun = {folder for folder in folders if (folder / CONFIG_FILE).is_file()}
            begun |= {log.with_suffix("") for log in path.glob(_LOGS)}
            done = [run / RESULT_FILE for run in folders if (run / RESULT_FILE).is_file()]
            notes += [
                f"{run} is not finished" for run in sorted(begun - {file.parent for file in done})
            ]
            if not begun:
                agents = [*path.glob("config.yaml"), *path.glob("*/*/seed-*/config.yaml")]
                hint = "; rl-nfm report takes agents" if agents else ""
                raise ValueError(f"nothing to report: no supervised run in {path}{hint}")
        else:
            done = [path / RESULT_FILE if path.is_dir() else path]
            done = [file for file in done if file.is_file()]
            notes += [] if done else [f"{path} is not finished"]
        for file in done:
            try:
                found[file.resolve()] = _read(file)
            except UnknownModelError as error:
                notes.append(f"left out: {error}")
    if not found:
        raise ValueError(f"nothing to report: {'; '.join(notes)}")
    return found


def _read(file: Path) -> Result:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        task, config = str(content["task"]), dict(content["config"])
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{file}: damaged, or no result of a supervised task") from None
    return {**content, "task": task, "config": _current(file, task_entry(task), config)}


def _current(file: Path, entry: TaskEntry, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A saved config under the current names, with defaults for newer options."""
    if not entry.presets:
        return config
    if entry.models is not None:
        entry.models.check_saved(config.get("model"), where=str(file))
    cls = type(next(iter(entry.presets.values())))
    return plain(validate(cls, with_current_names(cls, config), where=str(file)))


def finished_runs(file: Path, result: Result) -> list[FinishedRun]:
    """The seeds of a result, for each share of the rows where there are several (modular).

    Raises:
        ValueError: damaged.
    """
    try:
        parts = [{**result, **split} for split in result.get("splits", [result])]
        runs = [_run(file, part, index) for part in parts for index in range(len(part["trials"]))]
        if not runs:
            raise ValueError("no seed")
        return runs
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError):
        raise ValueError(f"{file}: damaged, or no result of a supervised task") from None


def _run(file: Path, result: Result, index: int) -> FinishedRun:
    trial = result["trials"][index]
    seconds = trial.get("train_seconds", result.get("train_seconds"))
    values = trial.get("metrics", trial)  # the results of a batch of seeds have no group of metrics
    metrics = {
        name: float(value)
        for name, value in values.items()
        if name != "seed" and isinstance(value, int | float) and math.isfinite(value)
    }
    each = trial["updates"] / trial["epochs"] if trial.get("epochs") else 0.0
    folder = file.parent / f"trial{index}"
    rows = read_metrics(folder) if each else []
    settings = settings_of(result["config"])
    facts = {**result, **trial}
    settings |= {name: facts[name] for name in _FACTS_THAT_SET_APART if name in facts}
    if "data_digest" in settings:
        settings.pop("data_folder", None)
    return FinishedRun(
        task=result["task"],
        settings=settings,
        seed=_whole(trial["seed"]),
        parameters=None if (size := facts.get("parameters")) is None else _whole(size),
        minutes=None if seconds is None else seconds / 60,
        metrics=metrics,
        baselines=_numbers(result.get("baselines", {})),
        history=[{**row, "updates": row["epoch"] * each} for row in rows],
        where=file,
        folder=folder,
        by_step=_curves(trial.get("by_step", {})),
        baselines_by_step={
            name: _curves(of) for name, of in result.get("baselines_by_step", {}).items()
        },
    )


def _whole(value: Any) -> int:
    """A whole number; `bool` is none."""
    if type(value) is not int:
        raise TypeError
    return value


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those that were finite; the others are null. Text has no sum with a number."""
    return {name: 0.0 + value for name, value in values.items() if value is not None}


def _curves(curves: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Values by step; null where one was not finite."""
    return {
        name: [None if value is None else 0.0 + value for value in curve]
        for name, curve in curves.items()
    }


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of a config that can change a result, by dotted name.

    Of the data's folder only its own name: it may lie elsewhere on another machine.
    """
    settings = {name: value for name, value in _flat(config) if name not in _NO_SETTING}
    if folder := settings.get("data_folder"):
        settings["data_folder"] = Path(folder).name
    return settings


def _flat(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in group.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def rows_of(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Groups of runs with equal settings, sorted by seed, in the order of their first runs.

    Raises:
        ValueError: a seed occurs twice.
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
    """Make names distinct: where models of one name differ in settings, add what differs.

    Args:
        names: the names of the models.
        settings: the settings of each, by dotted name.
        notes: receives a line for each model whose differences are too many for a name.
    """
    labels: list[str] = []
    for name, setting in zip(names, settings, strict=True):
        others = [s for n, s in zip(names, settings, strict=True) if n == name]
        keys = [k for k in dict.fromkeys(k for s in others for k in s) if _differ(k, others)]
        text = ", ".join(f"{key}={value_text(setting.get(key))}" for key in keys)
        if len(keys) > _MAX_SETTINGS_IN_NAME:
            number = 1 + [_cut(s, keys) for s in others].index(_cut(setting, keys))
            notes.append(f"{name} #{number}: {text}")
            labels.append(f"{name} #{number}")
        else:
            labels.append(f"{name} ({text})" if keys else name)
    return labels


def _differ(key: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    return any(setting.get(key) != settings[0].get(key) for setting in settings)


def _cut(settings: Mapping[str, Any], keys: Sequence[str]) -> list[Any]:
    return [settings.get(key) for key in keys]
