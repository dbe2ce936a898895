"""Folders whose files register themselves: to add one is to add a file."""

import importlib
import pkgutil
from collections.abc import Iterable


def import_modules(package: str, folders: Iterable[str]) -> None:
    """Import every module of a package, in the order of their names.

    Args:
        package: its dotted name.
        folders: its `__path__`.
    """
    for module in pkgutil.iter_modules(folders):
        importlib.import_module(f"{package}.{module.name}")
