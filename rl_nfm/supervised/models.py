"""The models of supervised tasks, by name.

Each task has a table of models; tasks may share one, as the sequence tasks share their recurrent
cores. A package outside this project adds a model by calling `register` of a task's table at import
and naming the module in its entry points, group `rl_nfm.models`.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from rl_nfm.support.configuration import nearest
from rl_nfm.support.near import did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One registered model."""

    build: Callable[..., Any]
    """What it is called with is up to the table; in most, with the `Task`."""
    summary: str
    reads: Collection[str]


MODELS: dict[tuple[str, str], ModelEntry] = {}
"""All models, by the names of their table and of their own."""


class Models:
    """A table of models.

    Args:
        name: of the task, or of what the tasks that share the table have in common.
    """

    def __init__(self, name: str):
        self.name = name

    def register(
        self, name: str, summary: str, *, reads: Collection[str] = ()
    ) -> Callable[..., Any]:
        """Decorator: register a builder under a name.

        Args:
            name: what `--model` calls it.
            summary: a few words for `--help`.
            reads: the options that it reads and some other model of the table does not; setting one
                of them with a model that does not read it is refused.

        Raises:
            ValueError: the name is taken.
        """
        if (self.name, name) in MODELS:
            raise ValueError(f"model {name!r} of {self.name} is already registered")

        def register(build: Callable[..., Any]) -> Callable[..., Any]:
            MODELS[self.name, name] = ModelEntry(build=build, summary=summary, reads=reads)
            return build

        return register

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of registration."""
        return (name for table, name in MODELS if table == self.name)

    def __getitem__(self, name: str) -> ModelEntry:
        """The entry of a model.

        Raises:
            ValueError: unknown, with the nearest name and all of them.
        """
        if (self.name, name) not in MODELS:
            raise ValueError(nearest("model", name, [*self]))
        return MODELS[self.name, name]

    @property
    def used_by(self) -> dict[str, list[str]]:
        """For each option that not all models read, those that do."""
        options = dict.fromkeys(option for name in self for option in self[name].reads)
        return {option: [n for n in self if option in self[n].reads] for option in options}

    def describe(self) -> str:
        """Names and summaries, a line each, for `--help`."""
        width = max(map(len, self), default=0)
        return "\n".join(["models:", *(f"  {n:{width}}  {self[n].summary}" for n in self)])


def check_reads(keys: Iterable[tuple[str, str]]) -> None:
    """Check that added models name no option that every model of their task reads.

    Raises:
        ValueError: naming the first such option.
    """
    added = set(keys)
    for table, name in added:
        known = {o for k, e in MODELS.items() if k[0] == table and k not in added for o in e.reads}
        for option in MODELS[table, name].reads:
            if option not in known:
                hint = did_you_mean(option, known)
                raise ValueError(
                    f"reads: {option!r} of model {name!r} is no option that only some models of "
                    f"{table} read{hint}"
                )
