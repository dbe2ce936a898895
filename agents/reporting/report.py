"""A report over runs: tables of scores as Markdown, CSV and JSON, and learning curves as PNG.

Follows Agarwal et al. 2021 (see `agents.reporting.statistics`). Scores of different protocols are
refused, and each source of scores (evaluation, training) has its own table.
"""

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.reporting import figures as report_figures
from agents.reporting.comparison import (
    ESTIMATE,
    atari5_rows,
    games_by_methods,
    method_sizes,
)
from agents.reporting.methods import OBSERVATION
from agents.reporting.references import references as find_references
from agents.reporting.results import Result, Source
from agents.reporting.search_figures import draw_search
from agents.reporting.sources import read_results
from agents.reporting.tables import TITLES, Row, Tables, make_tables
from rl_nfm.support.configuration import nearest
from rl_nfm.support.output_files import check_file, write_json, written

_HIDDEN = {"env_id", "seed", "num_envs", *OBSERVATION}
"""Of the protocol block: told per run or method, or of no interest here."""
_FIGURE = re.compile(r"(curves|profiles|search)_\w+\.png")


def write_report(
    paths: Sequence[Path],
    out: Path,
    *,
    force: bool = False,
    against: str | None = None,
    references: bool = False,
) -> list[Path]:
    """Read runs and score files, and write the report of them.

    Args:
        paths: folders of runs and of sweeps, and files of `rl-nfm evaluate --json`.
        out: folder; an earlier report in it is replaced.
        force: write into a folder of other things too, over files of the same names.
        against: method that all others are compared with; none: all pairs.
        references: draw public curves beside those of the same protocol.

    Returns:
        The files written, the one to read first.

    Raises:
        ValueError: see `read_results`; nothing to report; or `out` cannot be written.
    """
    results, notes = read_results(paths)
    if not any(result.returns or result.has_curve for result in results):
        raise ValueError("\n".join(["nothing to report: no episode has ended", *notes]))
    methods = sorted({result.method for result in results})
    if against is not None and against not in methods:
        raise ValueError(nearest("against", against, methods))
    earlier = _make_folder(out, force)
    tables: dict[Source, Tables] = {}
    for source in TITLES:
        part = [r for r in results if r.source == source and r.returns]
        if part:
            tables[source] = make_tables(part, notes, against=against)
    figures = _draw(results, tables, out, references)
    figures += [name for path in paths for name in draw_search(path, out, notes)]
    protocol = _protocol(results)
    plain = {source: t.to_plain() for source, t in tables.items()}
    sizes = method_sizes(results)
    for name in ("scores", "runs"):
        _write_csv(out / f"{name}.csv", [row for t in plain.values() for row in t[name]])
    for name in set(earlier) - set(figures):
        (out / name).unlink(missing_ok=True)
    content = {"protocol": protocol, "tables": plain, "notes": notes, "figures": figures}
    content["sizes"] = sizes
    write_json(out / "report.json", content)
    with written(out / "report.md") as partial:
        partial.write_text(_markdown(protocol, sizes, tables, figures, notes), encoding="utf-8")
    names = ["report.md", "report.json", "scores.csv", "runs.csv", *figures]
    return [out / name for name in names]


def _make_folder(out: Path, force: bool) -> list[str]:
    """Make the folder, or find it empty or with a report; the names of that report's figures."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        earlier = _earlier_figures(out)
        if earlier is None and not force and any(out.iterdir()):
            raise ValueError(
                f"out: {out} is not empty and holds no report; --force writes there anyway"
            )
    except OSError as error:
        raise ValueError(f"out: {out} cannot be made ({error.strerror})") from None
    check_file("out", out / "report.md")
    return earlier or []


def _earlier_figures(folder: Path) -> list[str] | None:
    """The figures of the report that is there; None where there is none."""
    try:
        content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or not {"protocol", "tables", "notes"} <= set(content):
        return None
    names = content.get("figures")
    names = [str(name) for name in names] if isinstance(names, list) else []
    return [name for name in names if _FIGURE.fullmatch(name)]


def _draw(
    results: Sequence[Result], tables: Mapping[Source, Tables], out: Path, references: bool
) -> list[str]:
    """All figures; returns their names."""
    methods = sorted({result.method for result in results})
    names = []
    for game in sorted({result.game for result in results if result.has_curve}):
        runs = [r for r in results if r.game == game and r.curve is not None]
        name = re.sub(r"\W", "_", game)
        names.append(f"curves_{name}.png")
        public = find_references(game, runs[0].protocol) if references else []
        report_figures.learning_curves(out / names[-1], game, runs, methods, public)
    for source, table in tables.items():
        if table.strata:
            names.append(f"profiles_{source}.png")
            title = f"{TITLES[source]}: {table.aggregates[0]['games']} games"
            report_figures.profiles(out / names[-1], table.strata, methods, title)
    return names


def _protocol(results: Iterable[Result]) -> dict[str, Any]:
    """The block that all scores share; a list where versions or names differ."""
    values: dict[str, list[Any]] = {}
    for result in results:
        for key, value in result.protocol.items():
            random = result.steps is None and key in ("epsilon", "fractions", "noise")
            if key not in _HIDDEN and not random and value not in values.setdefault(key, []):
                values[key].append(value)
    return {key: seen[0] if len(seen) == 1 else seen for key, seen in values.items() if seen}


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    with written(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _span(value) for key, value in row.items()})


def _span(value: Any) -> Any:
    """A list of steps as one cell: "300", or "100-300"."""
    if not isinstance(value, list):
        return value
    return "-".join(str(end) for end in dict.fromkeys([value[0], value[-1]])) if value else None


def _markdown(
    protocol: Mapping[str, Any],
    sizes: Sequence[Row],
    tables: Mapping[Source, Tables],
    figures: Sequence[str],
    notes: Sequence[str],
) -> str:
    lines = ["# Scores", "", "Protocol of every score here:", ""]
    lines += [f"* {key}: {value}" for key, value in protocol.items()]
    if sizes:
        lines += ["", "Encoders (with the head: all actions, the whole network):", ""]
        lines += _table(_size_cells(row) for row in sizes)
    for source, table in tables.items():
        lines += ["", f"## {TITLES[source]}", ""]
        if len({row["method"] for row in table.scores}) > 1:
            lines += ["Mean over seeds ± standard deviation (number of seeds):", ""]
            lines += [*_table(games_by_methods(table.runs)), ""]
        lines += [
            "Mean, median and interquartile mean (IQM) of the return over what the column `over` "
            "says, with a 95 % bootstrap interval of the IQM over the same. HNS: the mean, "
            "human-normalised. Steps are agent steps.",
            "",
        ]
        lines += _table(_score_cells(row) for row in table.scores)
        if table.aggregates:
            lines += ["", "Human-normalised over games, 95 % stratified bootstrap intervals:", ""]
            lines += _table(_aggregate_cells(row) for row in table.aggregates)
        if estimates := atari5_rows(table.scores):
            lines += ["", "Estimated from the five games of Atari-5 (see `envs.atari.suites`):", ""]
            lines += _table({**row, ESTIMATE: f"{row[ESTIMATE]:.3f}"} for row in estimates)
        if table.improvements:
            lines += ["", "Probability that a run of the first method beats one of the second:", ""]
            lines += _table(_improvement_cells(row) for row in table.improvements)
    lines += ["", *(f"![{name}]({name})" for name in figures)]
    if notes:
        lines += ["", "## Notes", "", *(f"* {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    rows = list(rows)
    header = "| " + " | ".join(rows[0]) + " |"
    body = ["| " + " | ".join(str(cell) for cell in row.values()) + " |" for row in rows]
    return [header, "|" + " --- |" * len(rows[0]), *body]


def _score_cells(row: Row) -> dict[str, str]:
    return {
        "game": row["game"],
        "method": row["method"],
        "steps": _span(row["steps"]) or "-",
        "over": row["over"],
        "mean": f"{row['mean']:.1f}",
        "median": f"{row['median']:.1f}",
        "HNS": "-" if row["hns"] is None else f"{row['hns']:.3f}",
        "IQM": f"{row['iqm']:.1f}",
        "95 % interval": _bounds(row["iqm_low"], row["iqm_high"], 1),
    }


def _size_cells(row: Row) -> dict[str, str]:
    return {
        "method": row["method"],
        "parameters": f"{row['parameters']:,}",
        "MACs": f"{row['macs']:,}",
        "parameters with the head": f"{row['network_parameters']:,}",
    }


def _aggregate_cells(row: Row) -> dict[str, str]:
    cells = {"method": row["method"], "games": str(row["games"]), "runs": str(row["runs"])}
    for name, head in (("iqm", "IQM"), ("mean", "mean"), ("median", "median")):
        bounds = _bounds(row[f"{name}_low"], row[f"{name}_high"], 3)
        cells[head] = f"{row[name]:.3f} {bounds}"
    return cells


def _improvement_cells(row: Row) -> dict[str, str]:
    return {
        "first": row["first"],
        "second": row["second"],
        "games": str(row["games"]),
        "probability": f"{row['probability']:.2f} {_bounds(row['low'], row['high'], 2)}",
    }


def _bounds(low: float | None, high: float | None, digits: int) -> str:
    return "-" if low is None else f"[{low:.{digits}f}, {high:.{digits}f}]"
