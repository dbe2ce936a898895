"""What a table of a task's runs shows, and the rows that papers have printed for it."""

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
    """Options, as dotted names, that a run must have for the row to stand beside it."""
    mean: Mapping[str, float]
    """By metric, as runs report it: shares, not percent."""
    deviation: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """As printed beside the mean, where it is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Which figures of a run the table shows; JSON and CSV hold all of them."""

    shown: Sequence[str] = ("*",)
    """Patterns of metrics, as for file names, in the order of the columns."""
    percent: Sequence[str] = ()
    """Patterns of metrics that are shares, printed in %."""
    published: Sequence[Published] = ()

    def choose(self, names: Sequence[str]) -> list[str]:
        """The shown ones among the names of metrics; all of them where none is."""
        chosen = [name for shown in self.shown for name in names if fnmatchcase(name, shown)]
        return list(dict.fromkeys(chosen)) or list(names)

    def is_share(self, name: str) -> bool:
        """Whether a metric is printed in %."""
        return any(fnmatchcase(name, pattern) for pattern in self.percent)
