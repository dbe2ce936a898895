"""The table of supervised tasks: a name, one line of description and how to start a run.

A task that the shared loop trains registers with `loop.run.register_loop_task`; one with another
loop registers its `main` with `register_task`.
Other packages name the modules of their tasks in entry points of the group `rl_nfm.tasks`, and
those that add models to a task in the group `rl_nfm.models` (see `models`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.models import MODELS, Models, check_reads
from rl_nfm.support.configuration import nearest
from rl_nfm.support.discovery import load_plugins

RESERVED_NAMES = frozenset({"report", "evaluate"})
"""The commands beside the tasks' names on the command line."""
Main = Callable[[Sequence[str]], int]
WriteTable = Callable[[Path, Sequence[Mapping[str, Any]]], str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """One registered task."""

    name: str
    summary: str
    main: Main
    """Parses its own flags, runs, returns the exit status; raises ValueError or OSError."""
    parse: Callable[[Sequence[str]], Any]
    """The checked config of a run from its flags; raises ValueError."""
    presets: Mapping[str, Any]
    """Name to config."""
    models: Models | None = None
    """What `--model` chooses from; none: the task has one model, or names them in its config."""
    columns: Columns = dataclasses.field(default_factory=Columns)
    """Columns of a table of its runs."""
    write_table: WriteTable | None = None
    """Writes this task's table and pictures for a report; none: the common table is used."""
    task: Any = None
    """The `loop.trainee.Trainee` that the shared loop trains; none if the task has another loop."""

    @property
    def used_by(self) -> Mapping[str, Sequence[str]]:
        """Option to the models that read it; with any other model, setting it is refused."""
        return {} if self.models is None else self.models.used_by


_TASKS: dict[str, TaskEntry] = {}
_plugins_loaded = False


def register_task(entry: TaskEntry) -> None:
    """Add a task to the table.

    Raises:
        ValueError: if the name is taken, or that of a command.
    """
    if entry.name in RESERVED_NAMES:
        raise ValueError(f"supervised task {entry.name!r} is not allowed: a command is called so")
    if entry.name in _TASKS:
        raise ValueError(f"supervised task {entry.name!r} is already registered")
    _TASKS[entry.name] = entry


def _load_plugins() -> None:
    """Load the tasks and models of other packages, once."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    load_plugins("rl_nfm.tasks", "task", _TASKS)
    load_plugins("rl_nfm.models", "model", MODELS, _check_models)


def _check_models(keys: Iterable[tuple[str, str]]) -> None:
    """Check that added models fit the tasks that they are added to.

    Raises:
        ValueError: see `check_reads`; or options whose name a task has already.
    """
    added = set(keys)
    check_reads(added)
    tables = {table for table, name in added}
    for entry in _TASKS.values():
        if entry.models is not None and entry.models.name in tables:
            _ = [*entry.presets.values()]


def task_names() -> list[str]:
    """All registered names, in the order of registration."""
    _load_plugins()
    return list(_TASKS)


def task_entry(name: str) -> TaskEntry:
    """The entry of `name`.

    Raises:
        ValueError: for an unknown name, with the nearest one.
    """
    if name not in task_names():
        raise ValueError(nearest("task", name, task_names()))
    return _TASKS[name]
