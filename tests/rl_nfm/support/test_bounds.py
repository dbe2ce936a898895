"""Configs made in Python refuse what files and flags may not say either."""

import dataclasses
import math
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt

from rl_nfm.nfm import NFMConfig
from rl_nfm.support.bounds import Bounded
from rl_nfm.support.configuration import validate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner(Bounded):
    share: Annotated[float, Ge(0), Lt(1)] = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer(Bounded):
    count: Annotated[int, Gt(0), Le(9)] = 3
    limit: Annotated[float, Gt(0)] | None = None
    mode: Literal["a", "b"] | None = "a"
    places: tuple[Annotated[int, Ge(0)], ...] | None = None
    fast: bool = False
    name: str = "x"
    inner: Inner = dataclasses.field(default_factory=Inner)
    anything: object = None
    pairs: dict[str, Annotated[float, Gt(0)]] = dataclasses.field(default_factory=dict)


GOOD = [
    {"count": 1},
    {"count": 9},
    {"limit": 1e-300},
    {"limit": 3},
    {"mode": None},
    {"places": (0, 5)},
    {"places": ()},
    {"fast": True},
    {"inner": Inner(share=0.0)},
    {"anything": [1]},
    {"pairs": {"a": 1.0}},
]
BAD = [
    ({"count": 0}, "count: 0 is not allowed: must be above 0"),
    ({"count": 10}, "count: 10 is not allowed: must be at most 9"),
    ({"count": 2.0}, "count: 2.0 is not allowed: must be an integer"),
    ({"count": True}, "count: True is not allowed: must be an integer"),
    ({"count": None}, "count: None is not allowed: must be an integer"),
    ({"limit": 0.0}, "limit: 0.0 is not allowed: must be above 0 or none"),
    ({"limit": math.inf}, "limit: inf is not allowed: must be a finite number or none"),
    ({"mode": "c"}, "mode: 'c' is not allowed: must be one of 'a', 'b' or none"),
    ({"places": (0, -1)}, "places: (0, -1) is not allowed: must be at least 0 or none"),
    ({"places": 3}, "places: 3 is not allowed: must be a tuple or none"),
    ({"fast": 1}, "fast: 1 is not allowed: must be true or false"),
    ({"name": 3}, "name: 3 is not allowed: must be of type str"),
    ({"inner": 3}, "inner: 3 is not allowed: must be of type Inner"),
    ({"pairs": 3}, "pairs: 3 is not allowed: must be a mapping"),
    ({"pairs": {"a": -1}}, "pairs: {'a': -1} is not allowed: must be a mapping to what is above 0"),
    (
        {"pairs": {1: 1}},
        "pairs: {1: 1} is not allowed: must be a mapping with keys of type str",
    ),
]


@pytest.mark.parametrize("values", GOOD)
def test_what_is_allowed_is_taken(values):
    assert vars(Outer(**values)) == {**vars(Outer()), **values}


@pytest.mark.parametrize(("values", "message"), BAD)
def test_what_is_not_is_one_line(values, message):
    with pytest.raises(ValueError, match="is not allowed") as told:
        Outer(**values)
    assert str(told.value) == message


@pytest.mark.parametrize("share", [1.0, -1e-9, math.nan, 1])
def test_the_limits_of_an_interval(share):
    with pytest.raises(ValueError, match=f"share: {share} is not allowed"):
        Inner(share=share)


def test_replacing_and_reading_check_too():
    with pytest.raises(ValueError, match="count: 0"):
        dataclasses.replace(Outer(), count=0)
    assert validate(Outer, {"limit": "1e-3", "inner": {"share": 0}}).limit == 0.001
    with pytest.raises(ValueError, match="top_k: 0 is not allowed: must be above 0"):
        NFMConfig(top_k=0)
