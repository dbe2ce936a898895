"""The settings of a Gymnasium environment, and how its wrappers and arguments are written."""

import ast
import dataclasses
import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import gymnasium
from annotated_types import Ge, Le

from envs.checks import check, check_known


@dataclasses.dataclass(frozen=True, kw_only=True)
class GymProtocol:
    """Everything about a Gymnasium environment that a score depends on, apart from its id.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """

    name: str = "gymnasium"
    """Of these settings."""
    kwargs: str = ""
    """Arguments of the environment as Python writes them: `size=5, slippery=True`."""
    wrappers: tuple[str, ...] = ()
    """Around each environment, the innermost first: `module:Class`, or `module:Class(a=1)`."""
    max_episode_steps: int | None = None
    """Steps after which an episode is truncated; None: as the environment is registered."""
    stack_num: int = 1
    """Frames per observation, the newest last; zero frames pad the start of an episode."""
    vectorization: Literal["sync", "async"] = "sync"
    """All environments in this process, or each in a process of its own."""

    def __post_init__(self) -> None:
        check("stack_num", self.stack_num, Annotated[int, Ge(1), Le(16)])
        if self.max_episode_steps is not None:
            check("max_episode_steps", self.max_episode_steps, Annotated[int, Ge(1), Le(2**31 - 2)])
        check_known("vectorization", self.vectorization, ("sync", "async"))
        object.__setattr__(self, "wrappers", tuple(self.wrappers))
        keyword_arguments("kwargs", f"f({self.kwargs})")
        for wrapper in self.wrappers:
            _parse_wrapper(wrapper)

    @property
    def terminal_on_life_loss(self) -> bool:
        """Always false: there are no lives."""
        return False

    @property
    def render_fps(self) -> float:
        """Agent steps in a second of play."""
        return 15.0


_EXTRA = ("minigrid", "minatar")
"""Packages of the extra `gymnasium`."""
_FIELDS = tuple(field.name for field in dataclasses.fields(GymProtocol) if field.name != "name")


def protocol_of(options: Mapping[str, Any]) -> GymProtocol:
    """The settings that follow from a run's options; options of the Atari emulator are refused."""
    for name, value in options.items():
        if name not in ("protocol", *_FIELDS) and value is not None:
            raise ValueError(f"{name}: {value!r} is not allowed: no option of a gym: environment")
    return changed(GymProtocol(), options)


def changed(protocol: GymProtocol, fields: Mapping[str, Any]) -> GymProtocol:
    """A copy with these fields replaced; None leaves a field as it is."""
    changed = {k: v for k, v in fields.items() if k != "protocol" and v is not None}
    for name in changed:
        check_known("protocol field", name, _FIELDS)
    return dataclasses.replace(protocol, **changed)


def load_wrapper(text: str) -> Callable[[Any], Any]:
    """The wrapper that an import path names, with its arguments.

    Raises:
        ValueError: not found, or no wrapper.
    """
    module, name, arguments = _parse_wrapper(text)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        hint = "; pip install 'rl-nfm[gymnasium]'" if module.split(".")[0] in _EXTRA else ""
        raise ValueError(f"wrappers: {text!r} is not found: {error}{hint}") from None
    except Exception as error:  # whatever the module does
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"wrappers: {text!r} cannot be imported: {reason}") from None
    if not (isinstance(found, type) and issubclass(found, gymnasium.Wrapper)):
        raise ValueError(f"wrappers: {text!r} is not allowed, must be a gymnasium.Wrapper")
    return partial(found, **arguments)


def _parse_wrapper(text: str) -> tuple[str, str, dict[str, Any]]:
    module, colon, call = text.partition(":")
    name = call.partition("(")[0]
    if not (colon and module and name.isidentifier()):
        raise ValueError(
            f"wrappers: {text!r} is not allowed, must be 'module:Class' or 'module:Class(a=1)'"
        )
    return module, name, keyword_arguments("wrappers", call) if "(" in call else {}


def keyword_arguments(field: str, call: str) -> dict[str, Any]:
    """The keyword arguments of a call, plain values, as Python writes them.

    Raises:
        ValueError: anything else.
    """
    try:
        node = ast.parse(call, mode="eval").body
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Name)
        assert not node.args
        assert len({a.arg for a in node.keywords}) == len(node.keywords)
        return {str(a.arg or 1 / 0): ast.literal_eval(a.value) for a in node.keywords}
    except (SyntaxError, ValueError, AssertionError, ZeroDivisionError):
        text = call.partition("(")[2].removesuffix(")")
        raise ValueError(
            f"{field}: {text!r} is not allowed, must be arguments like 'size=5, colour=\"red\"'"
        ) from None
