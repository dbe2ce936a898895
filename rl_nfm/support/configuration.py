"""The strict reader: frozen dataclasses from YAML, flags and checkpoints.

Unknown keys, wrong types and values out of range become one `ValueError` whose lines name the
field, the value and what is allowed. Values are checked by pydantic; YAML files are read in
`yaml_file` and flags in `flags`, so that building a network imports neither.
"""

import dataclasses
import math
import reprlib
import types
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from rl_nfm.support.former import renamed_options
from rl_nfm.support.hints import groups_of, hints_of
from rl_nfm.support.near import did_you_mean

T = TypeVar("T")
NONE_WORDS = ("none", "None", "null")
"""What may be written for None."""
MAX_ERROR_LINES = 10
MAX_INTEGER = 2**53
"""Largest integer option; JSON, float64 and a 64-bit counter all represent it exactly."""
_ALLOWED: Mapping[str, str] = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "dataclass_type": "must be a group of options",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be an integer"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
}
"""Our words for pydantic's kinds of error, as in the checks that are not pydantic's."""
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 100


@cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def validate(cls: type[T], values: Mapping[str, Any] | T, *, where: str = "") -> T:
    """Build a `cls` from plain values, or check an instance again.

    Args:
        cls: a frozen dataclass, whose fields may be dataclasses.
        values: a mapping (defaults fill what is missing) or an instance of `cls`.
        where: prefix of field names in errors, such as the file the values come from.

    Raises:
        ValueError: unknown key (with the nearest known one), wrong type or value out of range.
    """
    plain: Any = dataclasses.asdict(values) if dataclasses.is_dataclass(values) else values  # pyright: ignore
    plain = _with_none(cls, plain)
    checked: Any = None
    # pydantic forbids unknown keys only by a setting on the class, which may be someone else's
    lines = list(_unknown(cls, plain))
    try:
        checked = _adapter(cls).validate_python(plain)
        lines = lines or list(_implausible(plain, checked))
    except ValidationError as error:
        lines += [_explain(dict(e)) for e in error.errors()]
    if lines:
        prefix = f"{where}: " if where else ""
        shown = (_printable(prefix + line) for line in lines[:MAX_ERROR_LINES])
        raise ValueError("\n".join(shown))
    return checked


def plain_values(config: Any) -> dict[str, Any]:
    """A config dataclass as values of JSON and YAML, from which `validate` makes an equal one.

    Raises:
        ValueError: a value that no such file can hold, with the name of its type.
    """
    try:
        return _adapter(type(config)).dump_python(config, mode="json", warnings=False)
    except PydanticSerializationError as error:
        raise ValueError(f"options of {type(config).__name__} cannot be saved: {error}") from None


def may_be_none(hint: Any) -> bool:
    """Whether None is among the values of a field, and no text is, so that "none" means None."""
    if get_origin(hint) is Annotated:
        return may_be_none(get_args(hint)[0])
    if get_origin(hint) not in (Union, types.UnionType):
        return False
    kinds = get_args(hint)
    return type(None) in kinds and not any(kind in (str, Path) for kind in kinds)


def _with_none(cls: type, plain: Any) -> Any:
    """The values with None where a field without text has one of `NONE_WORDS`."""
    if not isinstance(plain, Mapping):
        return plain
    hints, groups, found = hints_of(cls), groups_of(cls), dict(plain)
    for key, value in plain.items():
        if isinstance(value, str) and value in NONE_WORDS and may_be_none(hints.get(key)):
            found[key] = None
        elif key in groups:
            found[key] = _with_none(groups[key], value)
    return found


def short(value: Any) -> str:
    """The `repr` of a value, shortened to fit into an error message."""
    return _repr.repr(value)


def _printable(line: str) -> str:
    """The text as one printable line, whatever characters it contains."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def _unknown(cls: type, plain: Any, path: str = "") -> Iterator[str]:
    """A message for each key that is no field of `cls` or of the dataclasses inside it."""
    known, groups = hints_of(cls), groups_of(cls)
    renamed = renamed_options(cls)
    for key, value in plain.items() if isinstance(plain, Mapping) else ():
        name = f"{path}{_cut(str(key))}"
        if key in groups:
            yield from _unknown(groups[key], value, f"{name}.")
        elif key in renamed:
            yield f"{name} is now {path}{renamed[key]}"
        elif key not in known:
            yield nearest(name, str(key), list(known))


def _cut(name: str) -> str:
    return name if len(name) < 100 else f"{name[:100]}..."


def _implausible(plain: Mapping[str, Any], checked: Any, path: str = "") -> Iterator[str]:
    """A message for each value that pydantic wrongly accepts: booleans, infinite numbers, ..."""
    for key, value in plain.items():
        if not hasattr(checked, key):  # of a union of groups, which `_unknown` does not look into
            yield nearest(f"{path}{_cut(str(key))}", str(key), list(hints_of(type(checked))))
            continue
        found = getattr(checked, key)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(found):
            yield from _implausible(value, found, f"{path}{key}.")
        elif isinstance(found, bool) != isinstance(value, bool):
            allowed = "true or false" if isinstance(found, bool) else "a number"
            yield f"{path}{key}: {short(value)} is not allowed: must be {allowed}"
        elif isinstance(found, int) and abs(found) > MAX_INTEGER:
            yield f"{path}{key}: {short(found)} is not allowed: must be at most {MAX_INTEGER}"
        elif not _finite(found):
            yield f"{path}{key}: {short(value)} is not allowed: must be a finite number"


def _finite(value: Any) -> bool:
    """Whether no number in a value is infinite or NaN."""
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, tuple | list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _explain(error: dict[str, Any]) -> str:
    path = [_cut(str(part)) for part in error["loc"]]
    name = ".".join(path) or "config"
    if error["type"] == "value_error":  # of a __post_init__, which names field and value itself
        return ".".join([*path, error["msg"].removeprefix("Value error, ")])
    words = _ALLOWED.get(error["type"])
    allowed = error["msg"] if words is None else words.format(**error.get("ctx", {}))
    return f"{name}: {short(error['input'])} is not allowed: {allowed}"


def nearest(field: str, value: str, allowed: Sequence[str]) -> str:
    """The message for an unknown name: field, value, the nearest name and all allowed ones."""
    hint = did_you_mean(value, allowed)
    return f"{field}: {short(value)} is unknown{hint} (allowed: {', '.join(allowed)})"
