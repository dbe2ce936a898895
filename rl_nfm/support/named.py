"""Classes by name, which a decorator registers."""

from collections.abc import Callable, Iterator
from typing import Any

from rl_nfm.support.configuration import nearest


class Named:
    """A registry of classes."""

    def __init__(self, kind: str, *, option: str):
        """Make an empty one.

        Args:
            kind: what the classes are, for errors.
            option: that chooses one by its name, for errors.
        """
        self.kind, self.option = kind, option
        self._classes: dict[str, type[Any]] = {}

    def register(self, name: str) -> Callable[[type[Any]], type[Any]]:
        """Class decorator: register the class under a name.

        Raises:
            ValueError: the name is taken or no identifier.
        """
        if not name.isidentifier() or name in self._classes:
            raise ValueError(f"{self.kind} {name!r} must be a free Python identifier")

        def add(cls: type[Any]) -> type[Any]:
            self._classes[name] = cls
            return cls

        return add

    def __iter__(self) -> Iterator[str]:
        """All names, in the order of registration."""
        return iter(self._classes)

    def __getitem__(self, name: str) -> type[Any]:
        """The class of that name.

        Raises:
            ValueError: an unknown name, with the nearest one.
        """
        if name not in self._classes:
            raise ValueError(nearest(self.option, name, list(self)))
        return self._classes[name]
