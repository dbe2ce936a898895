"""The table of supervised tasks: a name, one line of description and a `main(argv) -> int`.

A task that fits the shared loop registers with `loop.register_loop_task`; one with a command line
or a loop of its own (all seeds in one batch, say) registers its `main` with `register_task`.
"""

import dataclasses
from collections.abc import Callable, Sequence

from rl_nfm.support.configuration import nearest

Main = Callable[[Sequence[str]], int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """One registered task."""

    name: str
    summary: str
    main: Main
    """Parses its own flags, runs, returns the exit status; raises ValueError or OSError."""


_TASKS: dict[str, TaskEntry] = {}


def register_task(name: str, summary: str) -> Callable[[Main], Main]:
    """Decorator: register `main` as the task `name`.

    Raises:
        ValueError: if the name is taken.
    """
    if name in _TASKS:
        raise ValueError(f"supervised task {name!r} is already registered")

    def register(main: Main) -> Main:
        _TASKS[name] = TaskEntry(name=name, summary=summary, main=main)
        return main

    return register


def task_names() -> list[str]:
    """All registered names, in the order of registration."""
    return list(_TASKS)


def task_entry(name: str) -> TaskEntry:
    """The entry of `name`.

    Raises:
        ValueError: for an unknown name, with the nearest one.
    """
    if name not in _TASKS:
        raise ValueError(nearest("task", name, task_names()))
    return _TASKS[name]
