"""95 % intervals over seeds: of a row's mean, and of its difference from another row's.

Student's t: seeds are few, and a percentile bootstrap of three values is far too narrow. The
intervals take the values of seeds as normal, and none is corrected for how many are looked at.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.report.table import Row, model_of

_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Interval:
    """The mean of one value a seed, and the ends of its interval."""

    mean: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether the interval does not tell the mean from zero."""
        return self.low <= 0 <= self.high

    def to_plain(self) -> dict[str, float]:
        """JSON values."""
        return dataclasses.asdict(self)


def interval(values: Sequence[float]) -> Interval | None:
    """The 95 % interval of the mean of independent values; None for fewer than two."""
    from scipy.stats import t as student

    count = len(values)
    if count < 2:
        return None
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(count)
    half = float(student.ppf(0.5 + _LEVEL / 2, count - 1)) * error
    return Interval(mean, mean - half, mean + half)


def seed_values(row: Row, metric: str) -> list[float]:
    """A metric of each seed that has it."""
    return [run.metrics[metric] for run in row.runs if metric in run.metrics]


def row_interval(row: Row, metric: str) -> Interval | None:
    """Of the mean of a row."""
    return interval(seed_values(row, metric))


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval | None:
    """The 95 % interval of the difference of two means (Welch 1947: deviations may differ).

    Not paired: runs of one seed share their data set, but neither its order nor their noise, which
    are drawn after the weights. None for fewer than two values on a side, or where none varies.
    """
    from scipy.stats import ttest_ind

    if min(len(ours), len(theirs)) < 2 or len({*ours}) == len({*theirs}) == 1:
        return None
    mean = statistics.fmean(ours) - statistics.fmean(theirs)
    low, high = ttest_ind(ours, theirs, equal_var=False).confidence_interval(_LEVEL)
    return Interval(mean, float(low), float(high))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One row of a table minus another, for each metric of which both have two seeds at least."""

    row: Row
    other: Row
    by_metric: Mapping[str, Interval]

    def to_plain(self) -> dict[str, Any]:
        """JSON values."""
        by_metric = {metric: found.to_plain() for metric, found in self.by_metric.items()}
        return {"row": self.row.name, "from": self.other.name, "difference": by_metric}


def differences(rows: Sequence[Row], against: str) -> list[Difference]:
    """Of each row from the one it is to be compared with, where seeds allow it.

    Args:
        rows: of one table.
        against: the name of a row, which all others are compared with; or of a model, whose row
            nearest in its settings every row of another model is compared with.
    """
    found = []
    for row in rows:
        other = _counterpart(row, rows, against)
        if other is None:
            continue
        intervals = {
            metric: difference(seed_values(row, metric), seed_values(other, metric))
            for metric in row.mean
        }
        by_metric = {metric: i for metric, i in intervals.items() if i is not None}
        if by_metric:
            found.append(Difference(row=row, other=other, by_metric=by_metric))
    return found


def _counterpart(row: Row, rows: Sequence[Row], against: str) -> Row | None:
    for other in rows:
        if other.name == against:
            return None if row is other else other
    if model_of(row) == against:
        return None
    settings = row.runs[0].settings
    return min(
        (other for other in rows if model_of(other) == against),
        key=lambda other: sum(
            value != settings.get(name) for name, value in other.runs[0].settings.items()
        ),
        default=None,
    )


def differences_markdown(
    columns: Columns, found: Sequence[Difference], metrics: Sequence[str]
) -> list[str]:
    """The lines of a table; bold where the interval does not hold zero."""
    names = [name for name in metrics if any(name in line.by_metric for line in found)]
    titles = [f"{name} %" if columns.is_share(name) else name for name in names]
    lines = [["difference", *titles], ["---"] * (1 + len(names))]
    for line in found:
        cells = [_cell(columns.is_share(name), line.by_metric.get(name)) for name in names]
        lines.append([f"{line.row.name} − {line.other.name}", *cells])
    return ["| " + " | ".join(line) + " |" for line in lines]


def _cell(is_share: bool, found: Interval | None) -> str:
    if found is None:
        return "-"
    scale, form = (100, "+.2f") if is_share else (1, "+.3g")
    mean, low, high = (format(scale * value, form) for value in dataclasses.astuple(found))
    return f"{mean} [{low}, {high}]" if found.holds_zero else f"**{mean}** [{low}, {high}]"
