"""Config dataclasses that refuse values out of range, even when they are created in Python.

Values from files and flags go through `rl_nfm.support.configuration`, which also converts them and
explains more. The checks here catch `NFMConfig(top_k=0)` in a program, and import only the standard
library and `annotated_types`.
"""

import dataclasses
import math
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from rl_nfm.support.hints import hints_of

_BOUNDS: dict[type, tuple[str, str, Callable[[Any, Any], bool]]] = {
    Gt: ("gt", "above", lambda value, bound: value > bound),
    Ge: ("ge", "at least", lambda value, bound: value >= bound),
    Lt: ("lt", "below", lambda value, bound: value < bound),
    Le: ("le", "at most", lambda value, bound: value <= bound),
}


class Bounded:
    """Base of config dataclasses: bounds and choices of their annotations hold for every instance.

    A subclass that defines `__post_init__` must call this one first.
    """

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: naming the field, the value and what is allowed.
        """
        for name, hint in hints_of(type(self)).items():
            value = getattr(self, name)
            if (problem := _problem(hint, value)) is not None:
                raise ValueError(f"{name}: {value!r} is not allowed: must be {problem}")


def _problem(hint: Any, value: Any) -> str | None:
    """What the value should have been; None if it is valid or the hint does not restrict it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _problem(arguments[0], value) or _out_of_bounds(arguments[1:], value)
    if origin in (Union, types.UnionType):
        problems = [_problem(argument, value) for argument in arguments]
        return None if None in problems else " or ".join(filter(None, problems))
    if origin is Literal:
        return None if value in arguments else f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        if not isinstance(value, tuple | list):
            return "a tuple"
        return next(filter(None, (_problem(arguments[0], item) for item in value)), None)
    if origin is dict:
        if not isinstance(value, dict):
            return "a mapping"
        keys = next(filter(None, (_problem(arguments[0], key) for key in value)), None)
        items = next(filter(None, (_problem(arguments[1], x) for x in value.values())), None)
        return (keys and f"a mapping with keys {keys}") or (
            items and f"a mapping to what is {items}"
        )
    return _wrong_type(hint, value)


def _wrong_type(hint: Any, value: Any) -> str | None:
    if hint is type(None):
        return None if value is None else "none"
    if hint is bool:
        return None if isinstance(value, bool) else "true or false"
    if hint in (int, float):
        allowed = int if hint is int else (int, float)
        right = isinstance(value, allowed) and not isinstance(value, bool) and math.isfinite(value)
        return None if right else ("an integer" if hint is int else "a finite number")
    if hint is str or (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
        return None if isinstance(value, hint) else f"of type {hint.__name__}"
    return None


def _out_of_bounds(metadata: tuple[Any, ...], value: Any) -> str | None:
    for bound in metadata:
        if type(bound) in _BOUNDS:
            attribute, words, holds = _BOUNDS[type(bound)]
            limit = getattr(bound, attribute)
            if not holds(value, limit):
                return f"{words} {limit}"
    return None
