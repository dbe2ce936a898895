"""The columns of a table of a task's runs, and the rows that papers have published for it."""

import dataclasses
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A row of a paper's table."""

    source: str
    """Paper and table."""
    setting: Mapping[str, Any]
    """Options, by dotted name, that a run must have to be compared with this row."""
    mean: Mapping[str, float]
    """Values by metric, in the units that runs report: shares, not percent."""
    deviation: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The deviation printed beside the mean, if there is one."""
    never: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options, by dotted name, that a run must not have."""

    def stands_beside(self, settings: Mapping[str, Any]) -> bool:
        """Whether runs of these settings can be compared with this row."""
        return all(settings.get(name) == value for name, value in self.setting.items()) and all(
            settings.get(name) != value for name, value in self.never.items()
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """The metrics of a run that the table shows; JSON and CSV hold all of them."""

    shown: Sequence[str] = ("*",)
    """Patterns of metric names, with the wildcards of file names, in the order of the columns."""
    percent: Sequence[str] = ()
    """Patterns of the metrics that are shares and printed in %."""
    published: Sequence[Published] = ()
    step: str = "step"
    """What a step of `Task.by_step` is: the label of its axis."""

    def choose(self, names: Sequence[str]) -> list[str]:
        """The names of the metrics to show; all of them if no pattern matches."""
        chosen = [name for shown in self.shown for name in names if fnmatchcase(name, shown)]
        return list(dict.fromkeys(chosen)) or list(names)

    def is_share(self, name: str) -> bool:
        """Whether a metric is printed in %."""
        return any(fnmatchcase(name, pattern) for pattern in self.percent)
