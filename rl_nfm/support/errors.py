"""Errors of foreign code in one line."""

import contextlib
import signal
from collections.abc import Iterator

_OWN = frozenset({"rl_nfm", "agents", "envs"})


def is_foreign(module: str) -> bool:
    """Whether a module is of another package than this project's."""
    return module.partition(".")[0] not in _OWN


@contextlib.contextmanager
def foreign_errors(what: str, *modules: str) -> Iterator[None]:
    """Inside, what code of other packages raises becomes one line that names it.

    Where nothing is foreign, errors stay as they are, and so do those of files.

    Args:
        what: what the code is of, such as "encoder 'mine'".
        modules: where it comes from.

    Raises:
        ValueError: instead of any other error; RL_NFM_TRACEBACK=1 shows that one's traceback.
    """
    try:
        yield
    except Exception as error:
        foreign = [module for module in modules if is_foreign(module)]
        told = isinstance(error, ValueError | OSError)
        if not foreign or (told and type(error) is not ValueError):  # such as a full disk
            raise
        line = first_line(error) if told else named_line(error)
        hint = "" if told else " (RL_NFM_TRACEBACK=1 shows where)"
        raise ValueError(f"{what} ({', '.join(foreign)}): {line}{hint}") from error


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
