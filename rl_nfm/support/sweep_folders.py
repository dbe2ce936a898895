"""Where the runs of a sweep lie, GAME/METHOD/seed-N or TASK/MODEL/seed-N, and their logs."""

import os
from pathlib import Path

LOG_HEADER = "# code at "
"""Begins the line of a run's log that says which code it was begun or continued with."""


def seed_folders(sweep: Path) -> list[Path]:
    """The folders of its runs, in the order of their names; empty for what is no folder.

    Unlike `Path.glob`, which passes over what it may not read.

    Raises:
        OSError: a folder cannot be read.
    """
    found = [sweep] if sweep.is_dir() else []
    for prefix in ("", "", "seed-"):
        below = [path for folder in found for path in _folders(folder)]
        found = [path for path in below if path.name.startswith(prefix)]
    return found


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir())


def code_in_log(log: Path) -> list[str]:
    """The commits with which a run was begun and resumed, in their order; none without a log."""
    if not log.is_file():
        return []
    text = log.read_bytes().decode("utf-8", "replace")
    starts = [line for line in text.splitlines() if line.startswith(LOG_HEADER)]
    return list(dict.fromkeys(line.removeprefix(LOG_HEADER) for line in starts))
