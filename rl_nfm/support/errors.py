"""Errors of foreign code in one line."""

import contextlib
import functools
import signal
from collections.abc import Iterator
from typing import Any

_OWN = frozenset({"rl_nfm", "agents", "envs"})


def foreign_modules(*code: Any) -> list[str]:
    """The modules, of other packages than this project's, that classes and functions are of."""
    functions = (part.func if isinstance(part, functools.partial) else part for part in code)
    modules = dict.fromkeys(function.__module__ for function in functions)
    return [module for module in modules if module.partition(".")[0] not in _OWN]


@contextlib.contextmanager
def foreign_errors(what: str, *code: Any, value_errors: bool = True) -> Iterator[None]:
    """Inside, what code of other packages raises becomes one line that names it.

    Where nothing is foreign, errors stay as they are, and so do those of files.

    Args:
        what: what the code is of, such as "encoder 'mine'".
        code: the classes and functions.
        value_errors: name it in these too; they may be for the user, but rarely say of what.

    Raises:
        ValueError: instead of any other error; RL_NFM_TRACEBACK=1 shows that one's traceback.
    """
    try:
        yield
    except Exception as error:
        foreign = foreign_modules(*code)
        told = isinstance(error, ValueError | OSError)
        named = value_errors and type(error) is ValueError
        if not foreign or (told and not named):
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
