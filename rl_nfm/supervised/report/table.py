"""One row per setting: mean ± sample standard deviation over seeds, beside the published row."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rl_nfm.supervised.columns import Columns, Published
from rl_nfm.supervised.loop.options import plain
from rl_nfm.supervised.loop.reporting import mean_and_deviation
from rl_nfm.supervised.registry import TaskEntry
from rl_nfm.supervised.report.finished import FinishedRun, distinguish, rows_of, settings_of

_MAX_SEEDS_LISTED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row: runs with equal settings."""

    name: str
    runs: Sequence[FinishedRun]
    mean: Mapping[str, float]
    deviation: Mapping[str, float]
    """Empty for a single run."""
    published: Published | None
    differs: Mapping[str, tuple[Any, Any]]
    """Options that differ from the preset `paper`: (value, value in the preset)."""

    @property
    def minutes(self) -> float | None:
        """Mean minutes of training."""
        known = [run.minutes for run in self.runs if run.minutes is not None]
        return sum(known) / len(known) if known else None

    def to_plain(self) -> dict[str, Any]:
        """JSON values."""
        published = self.published
        return {
            "name": self.name,
            "settings": dict(self.runs[0].settings),
            "seeds": [run.seed for run in self.runs],
            "parameters": self.runs[0].parameters,
            "minutes": self.minutes,
            "mean": dict(self.mean),
            "deviation": dict(self.deviation),
            "published": None
            if published is None
            else {
                "source": published.source,
                "mean": dict(published.mean),
                "deviation": dict(published.deviation),
            },
            "differs_from_paper": {name: list(pair) for name, pair in self.differs.items()},
        }


def make_rows(entry: TaskEntry, runs: Sequence[FinishedRun], notes: list[str]) -> list[Row]:
    """The rows of one task.

    Args:
        entry: the task.
        runs: its finished runs.
        notes: receives what does not fit into a row's name.

    Raises:
        ValueError: see `rows_of`.
    """
    groups = rows_of(runs)
    settings = [group[0].settings for group in groups]
    names = distinguish(
        [str(setting.get("model", entry.name)) for setting in settings], settings, notes
    )
    rows = []
    for name, group in zip(names, groups, strict=True):
        mean, deviation = mean_and_deviation([run.metrics for run in group])
        published = _published(entry.columns, group[0].settings)
        rows.append(
            Row(
                name=name,
                runs=group,
                mean=mean,
                deviation=deviation,
                published=published,
                differs=_differences(entry, group[0].settings, published),
            )
        )
    return rows


def model_of(row: Row) -> str | None:
    """The option `model` of a row's runs."""
    return row.runs[0].settings.get("model")


def _published(columns: Columns, settings: Mapping[str, Any]) -> Published | None:
    """The published row with the most options among those that match a run's settings."""
    fitting = [row for row in columns.published if row.stands_beside(settings)]
    return max(fitting, key=lambda row: len(row.setting), default=None)


def _differences(
    entry: TaskEntry, settings: Mapping[str, Any], published: Published | None
) -> dict[str, tuple[Any, Any]]:
    """How a run's settings differ from the published setting of the same model.

    What the row beside it is published for is no difference, though the preset has another value.
    """
    if "paper" not in entry.presets:
        return {}
    paper = settings_of(plain(entry.presets["paper"]))
    return {
        name: (value, paper[name])
        for name, value in settings.items()
        if name != "model"
        and (published is None or name not in published.setting)
        and settings.get("model") in entry.used_by.get(name.split(".")[0], [settings.get("model")])
        and name in paper
        and value != paper[name]
    }


def shown_metrics(columns: Columns, rows: Sequence[Row]) -> list[str]:
    """The metrics that have a column in the table."""
    return columns.choose([*dict.fromkeys(name for row in rows for name in row.mean)])


def markdown(entry: TaskEntry, rows: Sequence[Row]) -> list[str]:
    """The lines of one task's table."""
    columns = entry.columns
    names = shown_metrics(columns, rows)
    head = ["model", "parameters", "seeds"]
    head += [f"{name} %" if columns.is_share(name) else name for name in names]
    lines = [[*head, "minutes"], ["---"] * (len(head) + 1)]
    for row in rows:
        size = row.runs[0].parameters
        cells = [row.name, "-" if size is None else f"{size:,}", _seeds(row)]
        cells += [_cell(columns, name, row.mean, row.deviation) for name in names]
        lines.append([*cells, "-" if row.minutes is None else _minutes(row.minutes)])
        if (beside := row.published) is not None:
            cells = [f"*{row.name}, published: {beside.source}*", "", ""]
            cells += [_cell(columns, name, beside.mean, beside.deviation) for name in names]
            lines.append([*cells, ""])
    lines += _baselines(columns, names, rows)
    return ["| " + " | ".join(line) + " |" for line in lines]


def _baselines(columns: Columns, names: Sequence[str], rows: Sequence[Row]) -> list[list[str]]:
    """What is reached without learning: one line, or one for each kind of data in the table."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        baselines, _ = mean_and_deviation([run.baselines for run in row.runs])
        if baselines:
            cells = tuple(_cell(columns, name, baselines, {}) for name in names)
            kinds.setdefault(cells, []).append(row.name)
    label = "baseline: nothing learned"
    return [
        [f"*{label}*" if len(kinds) == 1 else f"*{label}, for {', '.join(of)}*", "", "", *cells, ""]
        for cells, of in kinds.items()
    ]


def setting_lines(rows: Sequence[Row]) -> list[str]:
    """A line for each way to differ from the published setting, with its rows."""
    names_by_text: dict[str, list[str]] = {}
    for row in rows:
        if row.differs:
            text = ", ".join(f"{name} {old} ({new})" for name, (old, new) in row.differs.items())
            names_by_text.setdefault(text, []).append(row.name)
    return [f"{', '.join(names)}: {text}" for text, names in names_by_text.items()]


def _minutes(minutes: float) -> str:
    return f"{minutes:.1f}" if minutes >= 1 else f"{minutes:.2g}"


def _seeds(row: Row) -> str:
    seeds = [run.seed for run in row.runs]
    return ", ".join(map(str, seeds)) if len(seeds) <= _MAX_SEEDS_LISTED else f"{len(seeds)} seeds"


def _cell(
    columns: Columns, name: str, mean: Mapping[str, float], deviation: Mapping[str, float]
) -> str:
    if name not in mean:
        return "-"
    spread = deviation.get(name)
    if columns.is_share(name):
        return f"{100 * mean[name]:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")
    return f"{mean[name]:.4g}" + ("" if spread is None else f" ± {spread:.2g}")
