"""Files that register themselves: those of a folder, and those of other packages by entry point."""

import importlib
import logging
import pkgutil
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any

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
    registry: dict[str, Any],
    check: Callable[[Iterable[str]], None] = lambda names: None,
) -> None:
    """Import the modules of other packages that register something; a broken one is left out.

    Args:
        group: of the entry points.
        kind: of what they register, for the warning.
        registry: by name; as it was before where a plug-in is left out.
        check: raises where the new names it is given cannot be used.
    """
    for point in entry_points(group=group):
        known = dict(registry)
        try:
            point.load()
            check(registry.keys() - known.keys())
        except (Exception, SystemExit) as error:  # whatever foreign code may raise
            registry.clear()
            registry.update(known)
            reason = (str(error).splitlines() or [""])[0]
            _LOG.warning(
                "rl-nfm: the %s plug-in %s (%s) is left out: %s: %s",
                *(kind, point.name, point.value, type(error).__name__, reason),
            )
