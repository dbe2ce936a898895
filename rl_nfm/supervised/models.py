"""The models of supervised tasks, by name.

Each task has a table of models; tasks may share one, as the sequence tasks share their recurrent
cores. A package outside this project adds a model by calling `register` of a task's table at import
and naming the module in its entry points, group `rl_nfm.models`.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from typing import Any, TypeVar, cast

from rl_nfm.support.configuration import nearest
from rl_nfm.support.near import did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One registered model."""

    build: Callable[..., Any]
    """What it is called with is up to the table; in most, with the `Task`."""
    summary: str
    reads: Collection[str]
    options: type[Any] | None = None
    """Class of a group of options that only this model reads; the group is named like the model."""


MODELS: dict[tuple[str, str], ModelEntry] = {}
"""All models, by the names of their table and of their own."""


ConfigT = TypeVar("ConfigT")
GROUPS = "groups_of_models"
"""Attribute of a class of options that names the groups which models have brought."""


class UnknownModelError(ValueError):
    """A saved run has a model that is not registered here."""


class Models:
    """A table of models.

    Args:
        name: of the task, or of what the tasks that share the table have in common.
    """

    def __init__(self, name: str):
        self.name = name

    def register(
        self,
        name: str,
        summary: str,
        *,
        reads: Collection[str] = (),
        options: type[Any] | None = None,
    ) -> Callable[..., Any]:
        """Decorator: register a builder under a name.

        Args:
            name: what `--model` calls it.
            summary: a few words for `--help`.
            reads: the options that it reads and some other model of the table does not; setting one
                of them with a model that does not read it is refused.
            options: a frozen keyword-only dataclass with defaults and a docstring under each field:
                options that the model brings along. They are the field `name` of the task's config,
                and `--NAME.OPTION` on the command line.

        Raises:
            ValueError: the name is taken, or cannot be that of a group of options.
        """
        if (self.name, name) in MODELS:
            raise ValueError(f"model {name!r} of {self.name} is already registered")
        if options is not None:
            if not (name.isidentifier() and dataclasses.is_dataclass(options)):
                raise ValueError(
                    f"model {name!r} of {self.name}: with options of its own, its name must be a "
                    "Python identifier and they a dataclass"
                )
            reads = (*reads, name)

        def register(build: Callable[..., Any]) -> Callable[..., Any]:
            MODELS[self.name, name] = ModelEntry(
                build=build, summary=summary, reads=reads, options=options
            )
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

    def check_saved(self, name: Any, *, where: str) -> None:
        """Check that the model of a saved run is registered.

        Raises:
            UnknownModelError: it is not.
        """
        if isinstance(name, str) and (self.name, name) not in MODELS:
            raise UnknownModelError(
                f"{where}: {nearest('model', name, [*self])}; one of another package needs that "
                "package installed"
            )

    @property
    def used_by(self) -> dict[str, list[str]]:
        """For each option that not all models read, those that do."""
        options = dict.fromkeys(option for name in self for option in self[name].reads)
        return {option: [n for n in self if option in self[n].reads] for option in options}

    def with_options(self, config: type[ConfigT]) -> type[ConfigT]:
        """A task's class of options with a group for each model that brings options of its own.

        Raises:
            ValueError: the task has an option of that name.
        """
        entries = {name: self[name].options for name in self}
        brought = tuple((name, options) for name, options in entries.items() if options is not None)
        return cast("type[ConfigT]", _with_groups(config, brought)) if brought else config

    def describe(self) -> str:
        """Names and summaries, a line each, for `--help`."""
        width = max(map(len, self), default=0)
        return "\n".join(["models:", *(f"  {n:{width}}  {self[n].summary}" for n in self)])


@cache
def _with_groups(config: type[Any], groups: tuple[tuple[str, type[Any]], ...]) -> type[Any]:
    taken = {field.name for field in dataclasses.fields(config)}.intersection(dict(groups))
    if taken:
        name = min(taken)
        raise ValueError(f"model {name!r}: {config.__name__} has an option of that name already")
    fields: list[Any] = [(n, cls, dataclasses.field(default_factory=cls)) for n, cls in groups]
    extended = dataclasses.make_dataclass(
        config.__name__,
        fields,
        bases=(config,),
        frozen=True,
        kw_only=True,
        namespace={GROUPS: tuple(dict(groups))},
    )
    extended.__doc__ = config.__doc__
    return extended


def check_reads(keys: Iterable[tuple[str, str]]) -> None:
    """Check that added models name no option that every model of their task reads.

    Raises:
        ValueError: naming the first such option.
    """
    added = set(keys)
    for table, name in added:
        known = {o for k, e in MODELS.items() if k[0] == table and k not in added for o in e.reads}
        for option in MODELS[table, name].reads:
            if option not in known and not (option == name and MODELS[table, name].options):
                hint = did_you_mean(option, known)
                raise ValueError(
                    f"reads: {option!r} of model {name!r} is no option that only some models of "
                    f"{table} read{hint}"
                )
