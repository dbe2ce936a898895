"""Replays by name: `replay.storage` chooses one.

One file each in this folder, which registers a subclass of `Replay`; the option's name is that of
the registration.
"""

from collections.abc import Callable
from typing import Any

from rl_nfm.support.configuration import nearest

_STORAGES: dict[str, type[Any]] = {}


def register_storage(name: str) -> Callable[[type[Any]], type[Any]]:
    """Class decorator: register a replay under a name.

    Raises:
        ValueError: the name is taken or no identifier.
    """
    if not name.isidentifier() or name in _STORAGES:
        raise ValueError(f"replay storage {name!r} must be a free Python identifier")

    def register(replay: type[Any]) -> type[Any]:
        _STORAGES[name] = replay
        return replay

    return register


def storage_names() -> list[str]:
    """All registered names."""
    return list(_STORAGES)


def replay_class(name: str) -> type[Any]:
    """The replay of that name, a subclass of `agents.replay.buffer.Replay`.

    Raises:
        ValueError: an unknown name, with the nearest one.
    """
    if name not in _STORAGES:
        raise ValueError(nearest("replay.storage", name, storage_names()))
    return _STORAGES[name]
