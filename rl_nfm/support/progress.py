"""The progress of a long job: a bar on a terminal, one line a minute anywhere else.

Text in a log file or in a scheduler's output cannot be overwritten, so a bar would fill it with
carriage returns; printing nothing would make the job look as if it hung.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

LINE_EVERY_SECONDS = 60.0
FIRST_LINE_AFTER_SECONDS = 10.0
_REFRESH_SECONDS = 1.0

Values = Mapping[str, float]
"""Names and numbers to show beside the count."""


class Progress:
    """Counts steps of a job, and shows the count, its rate and further values.

    Where nothing can be written any more (no one reads it, or the disk is full), the job goes on in
    silence.
    """

    def __init__(
        self,
        total: int | None,
        *,
        begun: int = 0,
        unit: str = "step",
        name: str = "",
        values: Callable[[], Values] | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Start to show the progress.

        Args:
            total: the count at which the job is done; None if it is not known yet, see `expect`.
            begun: the count at which the job starts, if an earlier run did a part of it.
            unit: what is counted.
            name: the text at the start of each line.
            values: returns further numbers to show; called at most once a second.
            stream: where to write; None: standard error.
            clock: returns the time in seconds.
        """
        self.count, self.total, self.unit, self.name = begun, total, unit, name
        self._values = values or dict
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._begun = (clock(), begun)
        self._next = self._begun[0] + FIRST_LINE_AFTER_SECONDS
        self._shown = begun
        self._bar: tqdm | None = None
        self._silent = False
        if self._stream.isatty():
            self._next = self._begun[0]
            self._bar = tqdm(
                total=total,
                initial=begun,
                unit=unit,
                desc=name or None,
                file=self._stream,
                mininterval=_REFRESH_SECONDS,
                smoothing=0.05,
                **_width(self._stream),
            )

    def __enter__(self) -> "Progress":
        """Return this object, which is closed at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Show the last count."""
        self.close()

    def advance(self, count: int = 1) -> None:
        """Add to the count, and show it if it is time to."""
        self.count += count
        if self._clock() >= self._next:
            self.show()
        elif self._bar is not None:
            self._bar.update(count)
            self._shown = self.count

    def expect(self, total: int) -> None:
        """Set the count at which the job will be done."""
        self.total = total
        if self._bar is not None:
            self._bar.total = total

    def show(self) -> None:
        """Show the count now."""
        if self._bar is None:
            self._next = self._clock() + LINE_EVERY_SECONDS
            self._print(self.line())
        else:
            self._next = self._clock() + _REFRESH_SECONDS
            formatted = {key: _number(value) for key, value in self._values().items()}
            self._bar.set_postfix(formatted, refresh=False)
            self._bar.update(self.count - self._shown)
            self._bar.refresh()
        self._shown = self.count

    def write(self, text: str) -> None:
        """Print a line of text above the bar."""
        if self._bar is None:
            self._print(text)
        else:
            self._bar.write(text, file=self._stream)

    def _print(self, text: str) -> None:
        if not self._silent:
            try:
                print(text, file=self._stream, flush=True)
            except (OSError, ValueError):  # a ValueError where it is closed
                self._silent = True

    def close(self) -> None:
        """Show the last count, unless it has been shown already."""
        if self._bar is not None:
            self.show()
            self._bar.close()
        elif self._shown != self.count:
            self.show()

    def line(self) -> str:
        """The count, its rate and the further values as one line of text."""
        seconds = max(1e-9, self._clock() - self._begun[0])
        rate = (self.count - self._begun[1]) / seconds
        of = ""
        if self.total:
            of = f" of {self.total:,} {self.unit}s ({100 * self.count / self.total:.0f} %)"
        parts = [
            f"{self.count:,}{of or f' {self.unit}s'}",
            f"{_number(rate)} {self.unit}s/s",
            *(f"{name} {_number(value)}" for name, value in self._values().items()),
        ]
        if self.total and self.count < self.total and rate > 0:
            parts.append(f"{duration((self.total - self.count) / rate)} left")
        return (f"{self.name}: " if self.name else "") + ", ".join(parts)


def _width(stream: TextIO) -> dict[str, Any]:
    """A width for tqdm, which draws nothing if a terminal reports 0 columns (some containers)."""
    try:
        known = os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": 100, "nrows": 24}


def _number(value: float) -> str:
    """Three digits or whole numbers: 0.0123, 12.3, 4,321."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Like 2 d 5 h, 3 h 20 min, 4 min or 30 s."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
