"""Where the runs of a sweep lie: GAME/METHOD/seed-N, or TASK/MODEL/seed-N."""

import os
from pathlib import Path


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
