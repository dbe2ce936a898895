"""Files that commands write: whole or not at all, and their place checked before the work."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A place to write to, of the same suffix; it becomes `path` unless something is raised.

    Raises:
        OSError: naming `path`, if it cannot be written; what was there before is whole.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut could leave the new name without content
        partial.replace(path)
    except OSError as error:  # a failing write does not name its file
        if error.errno is None:  # already told in words
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write plain values, atomically.

    Raises:
        OSError: if it cannot be written; what was there before is whole.
    """
    with written(path) as partial:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def check_file(option: str, path: Path, suffix: str = "") -> None:
    """Find out, before hours of work, whether a file can be written.

    Args:
        option: named in the error.
        path: may exist, and is left as it is.
        suffix: what the name must end in.

    Raises:
        ValueError: a folder, another suffix, or a place that cannot be written.
    """
    if path.is_dir():
        raise ValueError(f"{option}: {path} is a folder, must be a file")
    if suffix and path.suffix != suffix:
        raise ValueError(f"{option}: {str(path)!r} is not allowed, must end in {suffix}")
    probe = path.with_name(f".{path.name}.probe")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{option}: {path} cannot be written ({error.strerror})") from None
