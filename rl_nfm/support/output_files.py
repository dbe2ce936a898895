"""Files that commands write: atomically, and checked to be writable before the work starts."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary path with the same suffix, which is renamed to `path` unless an error is raised.

    Raises:
        OSError: it cannot be written; the error names `path`, whose earlier content is intact.
    """
    path = path.resolve() if path.is_symlink() else path  # the link stays one
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut could leave the new name without content
        partial.replace(path)
    except OSError as error:  # a failing write does not name its file
        if error.errno is None:  # the message is complete, but for the name
            raise OSError(str(error).replace(str(partial), str(path))) from None
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write plain values, atomically.

    Raises:
        OSError: it cannot be written; the earlier content is intact.
    """
    with written(path) as partial:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """Plain values, in which null stands for each number that is not finite: JSON has none."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def made_folder(option: str, path: Path) -> Iterator[None]:
    """Make a folder and those above it; inside, errors of reading it are told in the same way.

    Args:
        option: the option to name in the error.
        path: the folder, which may exist.

    Raises:
        ValueError: it cannot be made or read.
    """
    check_name(option, path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ValueError(f"{option}: {path} cannot be made ({error.strerror})") from None


def check_name(option: str, path: Path) -> None:
    """Check that other programs can be told of a path: names may be any bytes, texts may not.

    Raises:
        ValueError: naming the option.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{option}: {str(path)!r} is not allowed: it is no UTF-8") from None


def check_file(option: str, path: Path, suffix: str = "") -> None:
    """Check, before hours of work, that a file can be written.

    Args:
        option: the option to name in the error.
        path: the file, which is not changed if it exists.
        suffix: what the name must end in.

    Raises:
        ValueError: it is a folder or a device, has another suffix, or cannot be written.
    """
    if path.is_dir():
        raise ValueError(f"{option}: {path} is a folder, must be a file")
    if path.exists() and not path.is_file():  # whose name the new file would take
        raise ValueError(f"{option}: {path} is a device or a pipe, must be a file")
    if suffix and path.suffix != suffix:
        raise ValueError(f"{option}: {str(path)!r} is not allowed, must end in {suffix}")
    probe = path.with_name(f".{path.name}.probe")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{option}: {path} cannot be written ({error.strerror})") from None
