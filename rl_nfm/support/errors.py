"""Errors of foreign code in one line."""

import signal


def first_line(error: BaseException) -> str:
    """The first line of what it says that is not empty; without any, what kind of error it is."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def named_line(error: BaseException) -> str:
    """The kind of the error, and the first line of what it says, if anything."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


def signal_name(number: int) -> str:
    """Such as SIGTERM; real-time signals have numbers alone."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
