"""`rl-nfm supervised report RUN...`: a table of runs and sweeps in the form that papers use."""

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from rl_nfm.supervised.registry import TaskEntry, task_entry
from rl_nfm.supervised.report.curves import draw_by_step, draw_curves
from rl_nfm.supervised.report.finished import FinishedRun, Result, finished_runs, read_results
from rl_nfm.supervised.report.intervals import (
    Difference,
    differences,
    differences_markdown,
    row_interval,
)
from rl_nfm.supervised.report.kept import keep
from rl_nfm.supervised.report.pictures import copy_pictures, pictures_markdown
from rl_nfm.supervised.report.seeds import draw_seeds
from rl_nfm.supervised.report.table import (
    Row,
    make_rows,
    markdown,
    model_of,
    setting_lines,
    shown_metrics,
)
from rl_nfm.support.flags import parse_flags
from rl_nfm.support.output_files import check_file, made_folder, write_json, written

DESCRIPTION = """Tables of finished runs of supervised tasks: mean ± sample standard deviation over
seeds, parameters, minutes of training, baselines, the published row where a run has its setting;
differences between rows with 95 % intervals; every seed as a point, and curves over
updates. Runs of different settings never share a row."""
_REPORT = "report.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to report."""

    path: tyro.conf.Positional[tuple[Path, ...]]
    """Runs' folders, folders of `rl-nfm sweep supervised:TASK`, and result.json files."""

    out: Path = Path("report")
    """Folder to write to; an earlier report in it is replaced."""

    keep: Path | None = None
    """Also keep the config, result and metrics of every finished run here, as small text files that
    can be committed and reported again; runs kept there before are left alone."""

    against: str | None = None
    """Row of the table that the others are compared with; or a model, whose row with the nearest
    settings those of other models are compared with (default: the model of the first row)."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse_flags(Options, argv, prog="rl-nfm supervised report", description=DESCRIPTION)
    if not options.path:
        raise ValueError(
            "path: at least one run is needed, as in: rl-nfm supervised report runs/supervised/*"
        )
    files = write_report(options.path, options.out, options.against)
    if options.keep is not None:
        kept = keep(read_results(options.path, []), options.path, options.keep)
        print(f"kept in {options.keep}: {len(kept)} more runs")
    print(files[0].read_text(encoding="utf-8"))
    print("written: " + ", ".join(map(str, files)))
    return 0


def write_report(paths: Sequence[Path], out: Path, against: str | None = None) -> list[Path]:
    """Read finished runs, and write report.md, report.json, runs.csv and pictures.

    Args:
        paths: runs' folders, sweeps' folders and result files.
        out: folder; an earlier report in it is replaced.
        against: row or model to compare with, see `differences`; None: the first row's model.

    Returns:
        The files written; the first is the one to read.

    Raises:
        ValueError: see `read_results` and `rows_of`; an unknown task; `against` is in no table;
            `out` cannot be written.
    """
    notes: list[str] = []
    results = read_results(paths, notes)
    tasks = {name: task_entry(name) for name in dict.fromkeys(r["task"] for r in results.values())}
    text: list[str] = []
    content: dict[str, Any] = {}
    runs: list[tuple[str, FinishedRun]] = []
    files: list[Path] = []
    sections = []
    for name, entry in tasks.items():
        task_results = {file: result for file, result in results.items() if result["task"] == name}
        rows = _rows(entry, task_results, notes)
        sections.append((entry, task_results, rows))
    _check_against(against, [rows for _, _, rows in sections])
    _make_folder(out)
    if not (
        out / _REPORT
    ).exists():  # so that it is known as a report's wherever an error ends this
        write_json(out / _REPORT, {"supervised": {}, "notes": []})
    for entry, task_results, rows in sections:
        text += [f"# {entry.name}", ""]
        runs += [(row.name, run) for row in rows for run in row.runs]
        if entry.write_table is not None:
            text += [entry.write_table(out, list(task_results.values())), ""]
            content[entry.name] = {"results": list(task_results.values())}
            continue
        drawn = _draw(entry, rows, out)
        files += drawn
        apart = differences(rows, _base(rows, against))
        if against is not None and not apart:
            notes.append(f"{entry.name}: nothing to compare with {against}")
        text += _section(entry, rows, apart, [picture.name for picture in drawn])
        pictures = copy_pictures(rows, out, entry.name)
        files += [copy for _, copies in pictures for copy in copies]
        text += pictures_markdown(pictures)
        content[entry.name] = _plain(rows, apart)
    if notes:
        text += ["## Notes", "", *(f"* {note}" for note in notes), ""]
    _write_csv(out / "runs.csv", runs)
    write_json(out / _REPORT, {"supervised": content, "notes": notes})
    with written(out / "report.md") as partial:
        partial.write_text("\n".join(text), encoding="utf-8")
    return [out / "report.md", out / _REPORT, out / "runs.csv", *files]


def _rows(entry: TaskEntry, results: dict[Path, Result], notes: list[str]) -> list[Row]:
    if entry.write_table is not None:  # only the task itself may know its results
        results = {f: result for f, result in results.items() if {"trials", "splits"} & {*result}}
    runs = [run for file, result in results.items() for run in finished_runs(file, result)]
    return make_rows(entry, runs, notes)


def _check_against(against: str | None, tables: Sequence[Sequence[Row]]) -> None:
    rows = [row for table in tables for row in table]
    known = dict.fromkeys([*filter(None, map(model_of, rows)), *(row.name for row in rows)])
    if against is not None and against not in known:
        raise ValueError(f"against: {against!r} is no row or model (allowed: {', '.join(known)})")


def _base(rows: Sequence[Row], against: str | None) -> str:
    """The row or model that others are compared with; the first row where all have one model."""
    if against is not None:
        return against
    models = {model_of(row) for row in rows}
    return rows[0].name if len(models) == 1 else str(model_of(rows[0]))


def _plain(rows: Sequence[Row], apart: Sequence[Difference]) -> dict[str, Any]:
    """JSON values of a table."""
    plain_rows = []
    for row in rows:
        found = {name: row_interval(row, name) for name in row.mean}
        intervals = {name: i.to_plain() for name, i in found.items() if i is not None}
        plain_rows.append({**row.to_plain(), "interval": intervals})
    return {"rows": plain_rows, "differences": [line.to_plain() for line in apart]}


def _draw(entry: TaskEntry, rows: Sequence[Row], out: Path) -> list[Path]:
    """The pictures of a task that there was something to draw in."""
    kinds = ("seeds", "curves", "steps")
    by_seed, over_updates, over_steps = (out / f"{kind}_{entry.name}.png" for kind in kinds)
    drawn = {
        by_seed: draw_seeds(entry.columns, rows, by_seed),
        over_updates: draw_curves(entry.columns, rows, over_updates),
        over_steps: draw_by_step(entry.columns, rows, over_steps),
    }
    return [path for path, is_drawn in drawn.items() if is_drawn]


def _section(
    entry: TaskEntry, rows: Sequence[Row], apart: Sequence[Difference], pictures: Sequence[str]
) -> list[str]:
    shares = "; accuracies in %" if entry.columns.percent else ""
    lines = [
        f"Mean ± sample standard deviation over seeds{shares}.",
        "",
        *markdown(entry, rows),
        "",
    ]
    if apart:
        lines += [
            "Differences of means, with 95 % intervals over seeds (Welch's t, each by itself);"
            " bold: the interval does not hold zero.",
            "",
            *differences_markdown(entry.columns, apart, shown_metrics(entry.columns, rows)),
            "",
        ]
    if settings := setting_lines(rows):
        lines += ["Not at the published setting, whose values are in parentheses:", ""]
        lines += [*(f"* {line}" for line in settings), ""]
    for picture in pictures:
        lines += [f"![{picture}]({picture})", ""]
    return lines


def _make_folder(out: Path) -> None:
    """Create the folder, or check that it is empty or holds a report of supervised tasks."""
    with made_folder("out", out):
        if any(out.iterdir()) and not _is_report(out / _REPORT):
            raise ValueError(f"out: {out} is not empty and holds no report of supervised tasks")
    check_file("out", out / "report.md")


def _is_report(path: Path) -> bool:
    try:
        return "supervised" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _write_csv(path: Path, runs: Sequence[tuple[str, FinishedRun]]) -> None:
    names = list(dict.fromkeys(name for _, run in runs for name in run.metrics))
    with written(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "model", "seed", "parameters", "minutes", *names])
        for name, run in runs:
            values = [run.metrics.get(metric) for metric in names]
            writer.writerow([run.task, name, run.seed, run.parameters, run.minutes, *values])
