"""Classes by name, which a decorator registers here or in an installed package."""

from collections.abc import Callable, Iterator
from typing import Any

from rl_nfm.support.configuration import nearest
from rl_nfm.support.discovery import load_plugins


class Named:
    """A registry of classes."""

    def __init__(self, kind: str, base: type[Any] = object, *, option: str, plugins: str):
        """Make an empty one.

        Args:
            kind: what the classes are, for errors.
            base: what they all derive from.
            option: that chooses one by its name, for errors.
            plugins: the group of entry points in which packages name modules that register more;
                they are imported when a name is first asked for.
        """
        self.kind, self.base, self.option, self._plugins = kind, base, option, plugins
        self._classes: dict[str, type[Any]] = {}
        self._complete = False

    def register(self, name: str) -> Callable[[type[Any]], type[Any]]:
        """Class decorator: register the class under a name.

        Raises:
            ValueError: the name is taken or no identifier, or the class has another base.
        """
        if not name.isidentifier() or name in self._classes:
            raise ValueError(f"{self.kind} {name!r} must be a free Python identifier")

        def add(cls: type[Any]) -> type[Any]:
            if not (isinstance(cls, type) and issubclass(cls, self.base)):
                raise ValueError(f"{self.kind} {name!r} must be a class of {self.base.__name__}")
            self._classes[name] = cls
            return cls

        return add

    def __iter__(self) -> Iterator[str]:
        """All names, in the order of registration."""
        return iter(self._all())

    def __getitem__(self, name: str) -> type[Any]:
        """The class of that name.

        Raises:
            ValueError: an unknown name, with the nearest one.
        """
        if name not in self._all():
            unknown = nearest(self.option, name, list(self))
            raise ValueError(f"{unknown}; one of another package needs that package installed")
        return self._classes[name]

    def _all(self) -> dict[str, type[Any]]:
        if not self._complete:
            self._complete = True
            load_plugins(self._plugins, self.kind, self._classes)
        return self._classes
