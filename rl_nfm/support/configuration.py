"""The strict reader: frozen dataclasses from YAML, flags and checkpoints.

Unknown keys, wrong types and values out of range become one `ValueError` whose lines name the
field, the value and what is allowed. Values are checked by pydantic; YAML files are read in
`yaml_file`, flags in `flags`, so that whoever builds a network needs neither.
"""

import dataclasses
import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from rl_nfm.support.former import renamed_options

T = TypeVar("T")
MAX_ERROR_LINES = 10
MAX_INTEGER = 2**53
"""Largest integer option: what JSON, float64 and a 64-bit counter hold alike."""
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 100


@cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    return TypeAdapter(_strict(cls))


@cache
def _strict(cls: type) -> type:
    """Forbid unknown keys in `cls` and in every dataclass among its fields."""
    cls.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # pyright: ignore
    for field in dataclasses.fields(cls):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            _strict(field.type)
    return cls


def validate(cls: type[T], values: Mapping[str, Any] | T, *, where: str = "") -> T:
    """Build a `cls` from plain values, or check an instance again.

    Args:
        cls: a frozen dataclass, whose fields may be dataclasses.
        values: a mapping (defaults fill what is missing) or an instance of `cls`.
        where: put before field names in errors, such as the file the values come from.

    Raises:
        ValueError: unknown key (with the nearest known one), wrong type or value out of range.
    """
    plain: Any = dataclasses.asdict(values) if dataclasses.is_dataclass(values) else values  # pyright: ignore
    checked: Any = None
    try:
        checked = _adapter(cls).validate_python(plain)
        lines = list(_implausible(plain, checked))
    except ValidationError as error:
        lines = [_explain(cls, dict(e)) for e in error.errors()]
    if lines:
        prefix = f"{where}: " if where else ""
        shown = (_printable(prefix + line) for line in lines[:MAX_ERROR_LINES])
        raise ValueError("\n".join(shown))
    return checked


def short(value: Any) -> str:
    """A value as Python writes it, cut to a length that fits an error message."""
    return _repr.repr(value)


def _printable(line: str) -> str:
    """One line, whatever names and values in it hold."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def _implausible(plain: Mapping[str, Any], checked: Any, path: str = "") -> Iterator[str]:
    """What pydantic takes and should not: booleans mixed with other types, giant integers."""
    for key, value in plain.items():
        found = getattr(checked, key)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(found):
            yield from _implausible(value, found, f"{path}{key}.")
        elif isinstance(found, bool) != isinstance(value, bool):
            allowed = "true or false" if isinstance(found, bool) else "a number"
            yield f"{path}{key}: {short(value)} is not allowed: must be {allowed}"
        elif isinstance(found, int) and abs(found) > MAX_INTEGER:
            yield f"{path}{key}: {short(found)} is not allowed: must be at most {MAX_INTEGER}"


def _explain(cls: type, error: dict[str, Any]) -> str:
    path = [str(part) for part in error["loc"]]
    path = [part if len(part) < 100 else f"{part[:100]}..." for part in path]
    name = ".".join(path) or "config"
    if error["type"] == "unexpected_keyword_argument":
        if name in (renamed := renamed_options(cls)):
            return f"{name} is now {renamed[name]}"
        return nearest(name, path[-1], _field_names(cls, path[:-1]))
    if error["type"] == "value_error":  # of a __post_init__, which names field and value itself
        return ".".join([*path, error["msg"].removeprefix("Value error, ")])
    return f"{name}: {short(error['input'])} is not allowed: {error['msg']}"


def nearest(field: str, value: str, allowed: Sequence[str]) -> str:
    """The message for an unknown name: the field, the value, the nearest and all allowed ones."""
    near = difflib.get_close_matches(value, allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{field}: {short(value)} is unknown{hint} (allowed: {', '.join(allowed)})"


def _field_names(cls: type, path: Sequence[str]) -> list[str]:
    for part in path:
        nested = {f.name: f.type for f in dataclasses.fields(cls)}.get(part)
        if not (isinstance(nested, type) and dataclasses.is_dataclass(nested)):
            return []
        cls = nested
    return [f.name for f in dataclasses.fields(cls)]
