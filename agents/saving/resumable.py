"""What may change when a run goes on, and how two configs differ."""

from collections.abc import Mapping
from typing import Any

from agents.config import Config, to_plain

RESUMABLE = (
    "steps",
    "device",
    "run",
    "env.num_threads",
    "env.num_groups",
    "env.vectorization",
    "replay.storage",
    "learner.precision",
    "learner.compile",
    "learner.cuda_graph",
)
"""What may change when a run goes on."""


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of values that differ."""
    names = []
    for key in {**old, **new}:
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += changed_fields(a, b, f"{name}.")
        elif a != b:
            names.append(name)
    return names


def check_resumable(old: Config, new: Config) -> None:
    """Refuse a change that the saved state does not fit.

    Raises:
        ValueError: naming the fields and what may change.
    """
    for name in changed_fields(to_plain(old), to_plain(new)):
        if not any(name == allowed or name.startswith(f"{allowed}.") for allowed in RESUMABLE):
            raise ValueError(
                f"{name}: cannot change when a run goes on (may change: {', '.join(RESUMABLE)})"
            )
