"""The strict reader: frozen dataclasses from YAML, flags and checkpoints.

Unknown keys, wrong types and values out of range become one `ValueError` whose lines name the
field, the value and what is allowed. Flags are parsed by tyro, values checked by pydantic.
"""

import contextlib
import dataclasses
import difflib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")
MAX_ERROR_LINES = 10


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
        lines = list(_mixed_up(plain, checked))
    except ValidationError as error:
        lines = [_explain(cls, dict(e)) for e in error.errors()]
    if lines:
        prefix = f"{where}: " if where else ""
        raise ValueError("\n".join(prefix + line for line in lines[:MAX_ERROR_LINES]))
    return checked


def _mixed_up(plain: Mapping[str, Any], checked: Any, path: str = "") -> Iterator[str]:
    """Numbers and texts that pydantic took for booleans, and booleans that it took for numbers."""
    for key, value in plain.items():
        found = getattr(checked, key)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(found):
            yield from _mixed_up(value, found, f"{path}{key}.")
        elif isinstance(found, bool) != isinstance(value, bool):
            allowed = "true or false" if isinstance(found, bool) else "a number"
            yield f"{path}{key}: {value!r} is not allowed: must be {allowed}"


def _explain(cls: type, error: dict[str, Any]) -> str:
    path = [str(part) for part in error["loc"]]
    name = ".".join(path) or "config"
    if error["type"] == "unexpected_keyword_argument":
        return nearest(name, path[-1], _field_names(cls, path[:-1]))
    if error["type"] == "value_error":  # of a __post_init__, which names field and value itself
        return ".".join([*path, error["msg"].removeprefix("Value error, ")])
    return f"{name}: {error['input']!r} is not allowed: {error['msg']}"


def nearest(field: str, value: str, allowed: Sequence[str]) -> str:
    """The message for an unknown name: the field, the value, the nearest and all allowed ones."""
    near = difflib.get_close_matches(value, allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{field}: {value!r} is unknown{hint} (allowed: {', '.join(allowed)})"


def _field_names(cls: type, path: Sequence[str]) -> list[str]:
    for part in path:
        nested = {f.name: f.type for f in dataclasses.fields(cls)}.get(part)
        if not (isinstance(nested, type) and dataclasses.is_dataclass(nested)):
            return []
        cls = nested
    return [f.name for f in dataclasses.fields(cls)]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: if the file cannot be read, is no YAML or is not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"{path}: not valid YAML ({problem})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must be a mapping of options, got {type(values).__name__}")
    for key in values:
        if not isinstance(key, str):
            raise ValueError(f"{path}: keys must be names, got {key!r}")
    return values


def parse_flags(
    cls: type[T], argv: Sequence[str], *, default: T | None = None, prog: str, description: str = ""
) -> T:
    """A `cls` from command-line flags over `default`; `--help` shows its values and docstrings.

    Raises:
        ValueError: what the user typed is unknown or not allowed.
        SystemExit: 0 after `--help`.
    """
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            parsed: Any = tyro.cli(
                cls,
                args=list(argv),
                default=default,
                prog=prog,
                description=description,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            sys.stdout.write(out.getvalue())
            raise
        raise ValueError(_plain(err.getvalue() or out.getvalue())) from None
    return validate(cls, parsed)


def _plain(text: str) -> str:
    """Tyro's boxed message as a few plain lines, without the box's title, which comes first."""
    lines = [line.strip(" │╭╮╰╯─\t") for line in text.splitlines()]
    kept = [line for line in lines if line.strip("-") and not line.startswith("For full")]
    return "\n".join(kept[1 : MAX_ERROR_LINES + 1])
