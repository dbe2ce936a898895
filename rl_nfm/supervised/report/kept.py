"""Results to be committed: what tables and pictures need of every finished run, as text files.

A kept run is a run's folder without checkpoints and pictures, so whatever reports runs reports it.
Paths of the machine are left out; the commits that a sweep's log names are added.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_nfm.supervised.loop.options import CONFIG_FILE
from rl_nfm.supervised.loop.reporting import METRICS_FILE, RESULT_FILE
from rl_nfm.supervised.report.finished import Result, read_results, settings_of
from rl_nfm.support.output_files import write_json, written
from rl_nfm.support.sweep_folders import code_in_log

_PLACES = ("out", "json", "resume")


def keep(results: Mapping[Path, Result], paths: Sequence[Path], into: Path) -> list[Path]:
    """Keep finished runs; those that are kept already are left alone.

    Args:
        results: by result file, as `read_results` gives them.
        paths: what they were found in. A run of a sweep is kept as TASK/MODEL/seed-N, another
            under the name of its folder.
        into: folder of kept results, made where there is none.

    Returns:
        The folders that are new.

    Raises:
        ValueError: a run kept there had other settings, or two have one name.
        OSError: a file cannot be written.
    """
    targets = {file: into / _name(file.parent, paths) for file in results}
    _check(targets, results)
    new = [file for file, target in targets.items() if not (target / RESULT_FILE).is_file()]
    for file in new:
        _keep_run(file, targets[file])
    return [targets[file] for file in new]


def _name(run: Path, paths: Iterable[Path]) -> Path:
    for path in paths:
        folder = path.resolve()
        if folder != run and run.is_relative_to(folder):
            return run.relative_to(folder)
    return Path(run.name)


def _check(targets: Mapping[Path, Path], results: Mapping[Path, Result]) -> None:
    """Refuse what would lose a result."""
    seen: dict[Path, Path] = {}
    for file, target in targets.items():
        if target in seen:
            raise ValueError(f"keep: {seen[target].parent} and {file.parent} would be {target}")
        seen[target] = file
        if (target / RESULT_FILE).is_file():
            (kept,) = read_results([target / RESULT_FILE], []).values()
            ours, theirs = _identity(results[file]), _identity(kept)
            for name in {**ours, **theirs}:
                if ours.get(name) != theirs.get(name):
                    raise ValueError(f"keep: {target} was made with another {name}")


def _identity(result: Result) -> dict[str, Any]:
    config = result["config"]
    return {**settings_of(config), "seed": config.get("seed"), "trials": config.get("trials")}


def _keep_run(file: Path, target: Path) -> None:
    """Copy a run; the result comes last and marks it as kept."""
    run, result = file.parent, _plain(file)
    for metrics in sorted(run.glob(f"*/{METRICS_FILE}")):
        copy = target / metrics.relative_to(run)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with written(copy) as partial:
            partial.write_bytes(metrics.read_bytes())
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / CONFIG_FILE, {name: result[name] for name in ("task", "config")})
    code = code_in_log(run.with_name(run.name + ".log"))
    write_json(target / RESULT_FILE, {**result, "code": code} if code else result)


def _plain(file: Path) -> dict[str, Any]:
    """A result without paths of this machine."""
    result = json.loads(file.read_text(encoding="utf-8"))
    config = {name: None if name in _PLACES else value for name, value in result["config"].items()}
    for name, value in config.items():
        if isinstance(value, str) and Path(value).is_absolute():
            config[name] = Path(value).name
    return {**result, "config": config}
