"""The text of a report, as a list of blocks."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from agents.reporting.blocks import Block, Bullets, Heading, Link, Paragraph, Picture, Table
from agents.reporting.comparison import ESTIMATE, atari5_rows, decimals_of, games_by_methods
from agents.reporting.results import Source
from agents.reporting.tables import TITLES, Row, Tables

_SOURCES = {
    "statistics": Link(
        "Agarwal et al. 2021: interquartile mean, stratified bootstrap, performance profiles",
        "https://arxiv.org/abs/2108.13264",
    ),
    "protocol": Link(
        "Machado et al. 2018: protocols of the Arcade Learning Environment",
        "https://arxiv.org/abs/1709.06009",
    ),
    "scores": Link(
        "Wang et al. 2016: scores of random play and of a human tester from no-op starts",
        "https://arxiv.org/abs/1511.06581",
    ),
    "atari5": Link("Aitchison et al. 2023: Atari-5", "https://arxiv.org/abs/2210.02019"),
}
_PUBLIC = {
    "dopamine": [
        Link(
            "Castro et al. 2018: Dopamine, whose public curves are drawn",
            "https://arxiv.org/abs/1812.06110",
        )
    ],
    "atari100k": [
        Link("van Hasselt et al. 2019: data-efficient Rainbow", "https://arxiv.org/abs/1906.05243"),
        Link("Kostrikov et al. 2021: DrQ", "https://arxiv.org/abs/2004.13649"),
        Link("Schwarzer et al. 2021: SPR", "https://arxiv.org/abs/2007.05929"),
    ],
}
"""Sources of public scores, by their protocol."""


_WITHIN: dict[Source, str] = {"last_evaluations": "evaluations"}
"""What a run's mean is over, where not over episodes."""


def report_text(
    protocol: Mapping[str, Any],
    sizes: Sequence[Row],
    tables: Mapping[Source, Tables],
    figures: Sequence[str],
    notes: Sequence[str],
    *,
    public: Collection[str],
) -> list[Block]:
    """The report, without what only the page has.

    Args:
        protocol: that all scores share.
        sizes: of the encoders.
        tables: by source.
        figures: names.
        notes: on what is left out.
        public: protocols of the public scores in the figures.
    """
    blocks: list[Block] = [
        Heading(1, "Scores"),
        Paragraph("Protocol of every score here:"),
        Bullets([f"{key}: {value}" for key, value in protocol.items()]),
    ]
    if sizes:
        about = "Encoders, as built for 18 actions (with the head: the whole network):"
        blocks.append(Paragraph(about))
        blocks.append(Table([_size_cells(row) for row in sizes]))
    for source, table in tables.items():
        blocks += _source_text(source, table)
    blocks += map(Picture, figures)
    if notes:
        blocks += [Heading(2, "Notes"), Bullets(list(notes))]
    used = ["statistics", "protocol", "scores"]
    used += ["atari5"] if any(atari5_rows(table.scores) for table in tables.values()) else []
    sources = [_SOURCES[name] for name in used]
    sources += [link for name, links in _PUBLIC.items() if name in public for link in links]
    return [*blocks, Heading(2, "References"), Bullets(sources)]


def _source_text(source: Source, table: Tables) -> Iterable[Block]:
    """The tables of one source of scores."""
    yield Heading(2, TITLES[source])
    if len({row["method"] for row in table.scores}) > 1:
        yield Paragraph("Mean over seeds ± standard deviation (number of seeds):")
        yield Table(games_by_methods(table.runs))
    yield Paragraph(
        "Mean, median and interquartile mean (IQM) of the return over what the column `over` "
        "says, with 95 % bootstrap intervals: that of the IQM over the same, that of the mean over "
        f"runs and, within each, {_WITHIN.get(source, 'episodes')}. HNS: the mean, "
        "human-normalised. Steps are agent steps."
    )
    yield Table([_score_cells(row) for row in table.scores])
    if table.aggregates:
        yield Paragraph("Human-normalised over games, 95 % stratified bootstrap intervals:")
        yield Table([_aggregate_cells(row) for row in table.aggregates])
    if estimates := atari5_rows(table.scores):
        yield Paragraph("Estimated from the five games of Atari-5 (see `envs.atari.suites`):")
        yield Table([{**row, ESTIMATE: f"{row[ESTIMATE]:.3f}"} for row in estimates])
    if table.improvements:
        yield Paragraph("Probability that a run of the first method beats one of the second:")
        yield Table([_improvement_cells(row) for row in table.improvements])


def span(value: Any) -> Any:
    """A list of steps as one cell: "300", or "100-300"."""
    if not isinstance(value, list):
        return value
    return "-".join(str(end) for end in dict.fromkeys([value[0], value[-1]])) if value else None


def _score_cells(row: Row) -> dict[str, str]:
    shown = [row[name] for name in ("mean_high", "mean", "median", "iqm", "iqm_high")]
    digits = decimals_of([value for value in shown if value is not None])
    return {
        "game": row["game"],
        "method": row["method"],
        "steps": span(row["steps"]) or "-",
        "over": row["over"],
        "mean": _with_bounds("mean", row, digits),
        "median": f"{row['median']:.{digits}f}",
        "HNS": "-" if row["hns"] is None else f"{row['hns']:.3f}",
        "IQM": _with_bounds("iqm", row, digits),
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
        cells[head] = _with_bounds(name, row, 3)
    return cells


def _improvement_cells(row: Row) -> dict[str, str]:
    return {
        "first": row["first"],
        "second": row["second"],
        "games": str(row["games"]),
        "probability": f"{row['probability']:.2f} {_bounds(row['low'], row['high'], 2)}",
    }


def _with_bounds(name: str, row: Row, digits: int) -> str:
    """A number and, where there is one, its interval."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    value = f"{row[name]:.{digits}f}"
    return value if low is None else f"{value} {_bounds(low, high, digits)}"


def _bounds(low: float | None, high: float | None, digits: int) -> str:
    return "-" if low is None else f"[{low:.{digits}f}, {high:.{digits}f}]"
