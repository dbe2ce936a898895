"""Import modules that register themselves: those of a folder, and plug-ins of other packages."""

import importlib
import logging
import pkgutil
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from rl_nfm.support.errors import named_line

K = TypeVar("K")
_LOG = logging.getLogger(__name__)


def import_modules(package: str, folders: Iterable[str]) -> None:
    """Import every module of a package, in the order of their names.

    Args:
        package: its dotted name.
        folders: its `__path__`.
    """
    for module in pkgutil.iter_modules(folders):
        importlib.import_module(f"{package}.{module.name}")


def load_plugins(
    group: str,
    kind: str,
    registry: dict[K, Any],
    check: Callable[[Iterable[K]], None] = lambda names: None,
) -> None:
    """Import the modules that other packages name in their entry points; skip broken ones.

    Args:
        group: the group of entry points.
        kind: what the plug-ins register, for the warning.
        registry: what is registered, by name; a broken plug-in leaves it unchanged.
        check: raises an error if the newly registered names, its argument, cannot be used.
    """
    for point in entry_points(group=group):
        known = dict(registry)
        try:
            point.load()
            check(registry.keys() - known.keys())
        except (Exception, SystemExit) as error:  # whatever foreign code may raise
            registry.clear()
            registry.update(known)
            _LOG.warning(
                "rl-nfm: the %s plug-in %s (%s) is left out: %s",
                *(kind, point.name, point.value, named_line(error)),
            )
