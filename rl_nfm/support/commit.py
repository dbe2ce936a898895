"""Which version of the code is running."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_ROOT = Path(__file__).parents[2]


@cache
def commit() -> str:
    """The commit of a checkout, with "-dirty" if files have changed; otherwise the version."""
    if (_ROOT / ".git").exists():
        command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        try:
            return subprocess.run(
                command, check=True, capture_output=True, text=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            pass  # no git here, or not our checkout
    return release()


def release() -> str:
    """The version of the installed package."""
    try:
        return version("rl-nfm")
    except PackageNotFoundError:
        return "unknown"
