"""The types of a dataclass's fields, also where its module writes them as text.

`from __future__ import annotations` makes `Field.type` a string; packages outside this project may
use it.
"""

import dataclasses
import types
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints


@cache
def hints_of(cls: type) -> Mapping[str, Any]:
    """The type of each field, by its name, with what `Annotated` says of it."""
    names = {field.name for field in dataclasses.fields(cls)}
    hints = get_type_hints(cls, include_extras=True)
    return {name: hint for name, hint in hints.items() if name in names}


@cache
def groups_of(cls: type) -> Mapping[str, type]:
    """The fields that are groups of options, by name: a dataclass, or one or None."""
    found = {name: _group(hint) for name, hint in hints_of(cls).items()}
    return {name: group for name, group in found.items() if group is not None}


def _group(hint: Any) -> type | None:
    if get_origin(hint) is Annotated:
        return _group(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return _group(kinds[0]) if len(kinds) == 1 else None
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None
