"""Checks of arguments; errors name the field, its value and what is allowed, in one line."""

import difflib
import numbers
import operator
import typing
from collections.abc import Iterable
from typing import Any

from annotated_types import Ge, Le

_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a name"}


def check(field: str, value: Any, hint: Any) -> Any:
    """`value` as a plain Python value of the annotated type `hint`.

    Raises:
        ValueError: wrong type or out of bounds; the message names the field and what is allowed.
    """
    kind, *bounds = typing.get_args(hint) or (hint,)
    low = next((b.ge for b in bounds if isinstance(b, Ge)), None)
    high = next((b.le for b in bounds if isinstance(b, Le)), None)
    if kind is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        plain: Any = operator.index(value)
    elif kind is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        plain = float(value)
    elif kind in (bool, str) and isinstance(value, kind):
        return value
    else:
        plain = None
    # Negated, so that NaN is refused too.
    if plain is None or not ((low is None or plain >= low) and (high is None or plain <= high)):  # pyright: ignore[reportOperatorIssue]
        span = f" from {low} to {high}" if bounds else ""
        raise ValueError(f"{field}: {value!r} is not allowed, must be {_KINDS[kind]}{span}")
    return plain


def check_known(what: str, name: Any, known: typing.Collection[str]) -> None:
    """Refuse a name that is not among `known`, and suggest the nearest.

    Raises:
        ValueError: unknown.
    """
    if isinstance(name, str) and name in known:
        return
    hint = did_you_mean(str(name), known)
    raise ValueError(f"{what}: {name!r} is unknown{hint} (allowed: {', '.join(known)})")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'NEAREST'?`, to be put behind the name; empty where no known one is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
