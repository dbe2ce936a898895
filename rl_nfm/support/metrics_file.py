"""metrics.jsonl: one line of JSON each time a run logs, and what becomes of damaged lines.

A process killed while it writes leaves a torn last line, which is left out without a word, since a
resumed run writes it again. Any other line that cannot be read is damage: it is named, never taken
for the end of the file, and kept beside when the file is written anew.
"""

import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_nfm.support.output_files import written

_LOG = logging.getLogger(__name__)
Line = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """What a metrics file holds."""

    lines: list[Line]
    """Those that can be read."""
    damaged: list[int]
    """Numbers, from 1, of those that cannot."""
    torn: bool
    """Whether the writing of the last line was cut short."""


class MetricsFile:
    """The lines of a run's metrics.

    Args:
        path: need not exist.
        counter: key of the count, an integer from 0, that every line has.
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
        last = self._parse(end)  # perhaps only its end of line is missing
        return Content(
            lines=[line for line in [*parsed, last] if line is not None],
            damaged=[number for number, line in enumerate(parsed, 1) if line is None],
            torn=bool(end) and last is None,
        )

    def append(self, line: Mapping[str, Any]) -> Line:
        """Append one line, with null for numbers that JSON does not have; returns it as written.

        Raises:
            OSError: if it cannot be written.
        """
        finite = {key: _finite(value) for key, value in line.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")
        return finite

    def cut(self, count: int) -> list[Line]:
        """Drop the lines after `count` and return the others.

        A file with damaged lines is kept beside as `*.damaged.jsonl`, and a warning names them.

        Raises:
            ValueError: if the file cannot be read at all.
            OSError: if it cannot be written.
        """
        content = self.read()
        if content.damaged:
            kept = self._free_name()
            shutil.copyfile(self.path, kept)
            message = self.describe(content.damaged)
            _LOG.warning("rl-nfm: %s; the file as it was: %s", message, kept)
        lines = [line for line in content.lines if line[self.counter] <= count]
        with written(self.path) as partial:
            partial.write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
        return lines

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

    def _free_name(self) -> Path:
        names = (f"{self.path.stem}.damaged{n or ''}.jsonl" for n in range(10_000))
        return next(path for path in map(self.path.with_name, names) if not path.exists())


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
