"""Results to be committed: what tables and curves need of every finished run, as small text files.

A kept run is a run's folder without checkpoints, so whatever reads runs reads it: `config.yaml`,
`metrics.jsonl` of about 40 lines (with all training episodes and all evaluations), and
`kept.json`, which says with which code and versions it was made. A few kB, to be committed.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agents.config import CONFIG_FILE, Config
from agents.reporting.swept import LAST_TENTH, SweptRun, differing, is_whole, swept_runs
from agents.saving.run_folder import RunFolder, read_metrics
from rl_nfm.support.output_files import write_json, written
from rl_nfm.support.sweep_folders import code_in_log

KEPT_FILE = "kept.json"
_LINES = 40


def keep(sweep: Path, into: Path) -> list[Path]:
    """Keep every finished run of a sweep; runs that are kept already are left alone.

    Args:
        sweep: its folder.
        into: folder of kept results, made where there is none.

    Returns:
        The folders that are new.

    Raises:
        ValueError: no sweep, or a run kept there had other settings.
        OSError: a file cannot be written.
    """
    runs = swept_runs(sweep)
    if not runs:
        raise ValueError(f"keep: {sweep} is no sweep (no GAME/METHOD/seed-N in it)")
    new = []
    for run in runs:
        folder = RunFolder(run.path)
        config, target = folder.config(), into / run.name
        if is_kept(target):
            check_same(config, target)
            continue
        if is_whole(run.path):
            lines = read_metrics(folder.metrics_path)
            _keep_run(run, thinned(lines, config.steps), target)
            new.append(target)
    return new


def is_kept(folder: Path) -> bool:
    """Whether a finished run is kept there."""
    return (folder / KEPT_FILE).is_file()


def check_same(config: Config, kept: Path) -> None:
    """Refuse a kept run that was made with other settings than `config`, or is not whole.

    Raises:
        ValueError: naming the first that differs.
    """
    if (field := differing(RunFolder(kept).config(), config)) is not None:
        raise ValueError(f"known: {kept} was made with another {field}")
    if not is_whole(kept):
        raise ValueError(f"known: {kept}: its metrics.jsonl is missing or ends too early")


def _keep_run(run: SweptRun, lines: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Write the three files; the last one marks the run as kept."""
    target.mkdir(parents=True, exist_ok=True)
    with written(target / CONFIG_FILE) as partial:
        partial.write_bytes((run.path / CONFIG_FILE).read_bytes())
    with written(target / "metrics.jsonl") as partial:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        partial.write_text(text, encoding="utf-8")
    content = {
        "run": run.name,
        "code": code_in_log(run.path.with_suffix(".log")),
        "versions": {name: version(name) for name in ("torch", "numpy", "ale-py")},
    }
    write_json(target / KEPT_FILE, content)


def thinned(
    lines: Sequence[Mapping[str, Any]], steps: int, count: int = _LINES
) -> list[dict[str, Any]]:
    """Fewer lines of metrics: each holds the numbers of the last of those that it stands for.

    Lists (returns and lengths of episodes) are joined, so no episode is lost; a line with an
    evaluation ends its group, so no evaluation is either, and so does the one before the last
    tenth of the planned steps, so that the scores of both are the same.
    """
    every = -(-len(lines) // count)
    border = (1 - LAST_TENTH) * steps
    early = sum(line["steps"] <= border for line in lines)
    kept: list[dict[str, Any]] = []
    lists: dict[str, list[Any]] = {}
    for number, line in enumerate(lines, 1):
        for name, value in line.items():
            if isinstance(value, list):
                lists.setdefault(name, []).extend(value)
        evaluated = any(name.startswith("eval_") for name in line)
        if evaluated or number % every == 0 or number in (early, len(lines)):
            numbers = {name: _short(value) for name, value in line.items()}
            kept.append({**numbers, **lists})
            lists = {}
    return kept


def _short(value: Any) -> Any:
    """Round to six digits, which are enough for noisy numbers."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
