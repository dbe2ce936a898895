"""A report over runs: scores as Markdown, CSV, JSON and one HTML page, and figures as PNG.

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
from agents.reporting.blocks import to_markdown
from agents.reporting.comparison import method_sizes
from agents.reporting.methods import OBSERVATION
from agents.reporting.page import PAGE, write_page
from agents.reporting.references import references as find_references
from agents.reporting.results import Result, Source
from agents.reporting.runs_shown import runs_text
from agents.reporting.search_figures import draw_search
from agents.reporting.sources import read_results
from agents.reporting.tables import TITLES, Row, Tables, make_tables
from agents.reporting.text import report_text, span
from rl_nfm.support.configuration import nearest
from rl_nfm.support.output_files import check_file, made_folder, write_json, written

REPORT = "report.json"
"""Marks a folder as that of a report, which the next one may replace."""
_HIDDEN = {"env_id", "seed", "num_envs", *OBSERVATION}
"""Of the protocol block: what the report gives per run or method, or leaves out."""
_FIGURE = re.compile(r"(curves|profiles|search)_\w+\.png")


def write_report(
    paths: Sequence[Path],
    out: Path,
    *,
    force: bool = False,
    against: str | None = None,
    references: bool = True,
) -> list[Path]:
    """Read runs and score files, and write the report of them.

    Args:
        paths: folders of runs and of sweeps, and files of `rl-nfm evaluate --json`.
        out: folder; an earlier report in it is replaced.
        force: write into a folder of other things too, over files of the same names.
        against: method that all others are compared with; none: all pairs.
        references: draw public scores beside those of the same protocol.

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
    if not (out / REPORT).exists():  # the folder is known as a report's wherever an error ends this
        write_json(out / REPORT, {"protocol": {}, "tables": {}, "notes": [], "figures": []})
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
    public = _public(results) if references else set()
    content = {"protocol": protocol, "tables": plain, "notes": notes, "figures": figures}
    content["sizes"] = sizes
    write_json(out / REPORT, content)
    text = report_text(protocol, sizes, tables, figures, notes, public=public)
    with written(out / "report.md") as partial:
        partial.write_text(to_markdown(text), encoding="utf-8")
    write_page(out / PAGE, text, runs_text(results, out))
    names = ["report.md", REPORT, "scores.csv", "runs.csv", PAGE, *figures]
    return [out / name for name in names]


def _make_folder(out: Path, force: bool) -> list[str]:
    """Make the folder, or find it empty or with a report; the names of that report's figures."""
    with made_folder("out", out):
        earlier = _earlier_figures(out)
        if earlier is None and not force and any(out.iterdir()):
            raise ValueError(
                f"out: {out} is not empty and holds no report; --force writes there anyway"
            )
    check_file("out", out / "report.md")
    return earlier or []


def _earlier_figures(folder: Path) -> list[str] | None:
    """The figures of the report that is there; None where there is none."""
    try:
        content = json.loads((folder / REPORT).read_text(encoding="utf-8"))
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
        public = find_references(game, runs[0].protocol) if references else ()
        report_figures.learning_curves(out / names[-1], game, runs, methods, public)
    for source, table in tables.items():
        if table.strata:
            names.append(f"profiles_{source}.png")
            title = f"{TITLES[source]}: {table.aggregates[0]['games']} games"
            report_figures.profiles(out / names[-1], table.strata, methods, title)
    return names


def _public(results: Iterable[Result]) -> set[str]:
    """Protocols of the public scores that `_draw` finds for any game."""
    curves = [result for result in results if result.has_curve]
    return {found.protocol for r in curves for found in find_references(r.game, r.protocol)}


def _protocol(results: Iterable[Result]) -> dict[str, Any]:
    """The block that all scores share; a list where versions or names differ."""
    values: dict[str, list[Any]] = {}
    for result in results:
        for key, value in result.protocol.items():
            random = result.steps is None and key in ("epsilon", "fractions")
            if key not in _HIDDEN and not random and value not in values.setdefault(key, []):
                values[key].append(value)
    return {key: seen[0] if len(seen) == 1 else seen for key, seen in values.items() if seen}


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    with written(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        for row in rows:
            writer.writerow({key: span(value) for key, value in row.items()})
