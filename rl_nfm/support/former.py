"""Options that had another name in an earlier version.

A config class lists them beside its fields: `FORMER_NAMES` maps an option's former name to its
current one, and `FORMER_VALUES` maps a current name to its former values and their replacements. A
former name on the command line is answered with the current one; configs that earlier versions
saved are read under the current names.
"""

from collections.abc import Mapping
from typing import Any

from rl_nfm.support.hints import groups_of


def renamed_options(cls: type, prefix: str = "") -> dict[str, str]:
    """Former names to current ones, dotted, for a dataclass and the dataclasses inside it."""
    found = {
        f"{prefix}{old}": f"{prefix}{new}" for old, new in _merged(cls, "FORMER_NAMES").items()
    }
    for name, group in groups_of(cls).items():
        found |= renamed_options(group, f"{prefix}{name}.")
    return found


def with_current_names(cls: type, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a `cls` that an earlier version saved, under the current names."""
    names, values = _merged(cls, "FORMER_NAMES"), _merged(cls, "FORMER_VALUES")
    groups = groups_of(cls)
    found: dict[str, Any] = {}
    for saved_name, value in saved.items():
        name = names.get(saved_name, saved_name)
        if name in groups and isinstance(value, Mapping):
            value = with_current_names(groups[name], value)
        elif isinstance(value, (str, int, float)) and value in (now := values.get(name, {})):
            value = now[value]
        found[name] = value
    return found


def _merged(cls: type, attribute: str) -> dict[str, Any]:
    """A class's table together with those of its bases."""
    return {
        key: value
        for base in reversed(cls.__mro__)
        for key, value in vars(base).get(attribute, {}).items()
    }
