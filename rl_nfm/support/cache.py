"""The user's folder for what is found out or built once on a machine."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder of ours below XDG_CACHE_HOME, or ~/.cache; it need not exist."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "rl_nfm" / name
