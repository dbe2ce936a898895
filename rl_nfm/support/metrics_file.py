"""metrics.jsonl: one line of JSON each time a run logs, and how damaged lines are handled.

A process that is killed while it writes leaves an incomplete last line. That line is skipped
without a warning, because a resumed run writes it again. Any other line that cannot be read is
damage: it is reported by its number, reading continues after it, and a copy of the damaged file is
kept when the file is rewritten.
"""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_nfm.support.output_files import finite, written

_LOG = logging.getLogger(__name__)
Line = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """What a metrics file holds."""

    lines: list[Line]
    """The lines that can be read."""
    damaged: list[int]
    """Numbers, counted from 1, of the lines that cannot be read."""
    torn: bool
    """Whether the last line is incomplete."""


class MetricsFile:
    """The lines of a run's metrics.

    Args:
        path: the file, which need not exist.
        counter: the key, present in every line, of a count that is an integer from 0 on.
    """

    def __init__(self, path: Path, counter: str):
        self.path, self.counter = path, counter

    def read(self) -> Content:
        """Everything that can be read; a missing file is empty.

        Raises:
            ValueError: if the file cannot be read at all.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return Content(lines=[], damaged=[], torn=False)
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be read ({error.strerror})") from None
        *texts, end = content.split(b"\n")
        parsed = [self._parse(text) for text in texts]
        last = self._parse(end)  # perhaps only its newline is missing
        return Content(
            lines=[line for line in [*parsed, last] if line is not None],
            damaged=[number for number, line in enumerate(parsed, 1) if line is None],
            torn=bool(end) and last is None,
        )

    def append(self, line: Mapping[str, Any]) -> Line:
        """Append one line, with null for NaN and infinity; returns the line as written.

        Raises:
            OSError: if it cannot be written.
        """
        values = finite(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        return values

    def sync(self) -> None:
        """Wait until the disk has what was appended, which a power cut could take otherwise."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def cut(self, count: int) -> list[Line]:
        """Remove the lines after `count` and return the others.

        If lines are damaged, a copy is kept as `*.damaged.jsonl` and a warning names them.

        Raises:
            ValueError: if the file cannot be read at all.
            OSError: if it cannot be written.
        """
        content = self.read()
        if content.damaged:
            kept = self._free_name("damaged")
            shutil.copyfile(self.path, kept)
            message = self.describe(content.damaged)
            _LOG.warning("rl-nfm: %s; the file as it was: %s", message, kept)
        lines = [line for line in content.lines if line[self.counter] <= count]
        with written(self.path) as partial:
            partial.write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
        return lines

    def set_aside(self) -> Path | None:
        """Keep a copy as `*.before.jsonl` of a file whose lines are about to be lost; its path."""
        if not any(line[self.counter] for line in self.read().lines):
            return None
        kept = self._free_name("before")
        shutil.copyfile(self.path, kept)
        return kept

    def describe(self, damaged: list[int]) -> str:
        """One sentence that names the damaged lines."""
        shown = ", ".join(map(str, damaged[:10])) + (", ..." if len(damaged) > 10 else "")
        plural = "s" if len(damaged) > 1 else ""
        return f"{self.path}: line{plural} {shown} cannot be read: left out"

    def _parse(self, text: bytes) -> Line | None:
        try:
            line = json.loads(text.decode("utf-8"))
            count = line[self.counter]
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            return None
        whole = isinstance(count, int) and not isinstance(count, bool) and count >= 0
        return line if isinstance(line, dict) and whole else None

    def _free_name(self, why: str) -> Path:
        names = (f"{self.path.stem}.{why}{n or ''}.jsonl" for n in range(10_000))
        return next(path for path in map(self.path.with_name, names) if not path.exists())
