"""The space of a search, as users write it: `learner.learning_rate=1e-5..1e-3:log`."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from agents.config import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dimension:
    """The values that one option can take: between two bounds, or among choices."""

    option: str
    """Dotted name."""
    text: str
    """As typed, for comparison."""
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    """Whether the values are integers."""
    choices: tuple[str, ...] = ()

    def suggest(self, trial: Any) -> str:
        """The value that Optuna chooses for a trial, as a user would type it."""
        if self.choices:
            return trial.suggest_categorical(self.option, self.choices)
        if self.whole:
            low, high = int(self.low), int(self.high)
            return str(trial.suggest_int(self.option, low, high, log=self.log))
        return repr(trial.suggest_float(self.option, self.low, self.high, log=self.log))


def parse_space(words: Sequence[str], base: Config) -> tuple[Dimension, ...]:
    """The search space of words like `OPTION=LOW..HIGH`, `OPTION=LOW..HIGH:log`, `OPTION=A,B,C`.

    Args:
        words: as typed.
        base: tells which options are integers.

    Raises:
        ValueError: another form, bounds in the wrong order, an option that is unknown or given
            twice.
    """
    space: dict[str, Dimension] = {}
    for word in words:
        option, _, text = word.partition("=")
        option = option.replace("-", "_")
        if option in space:
            raise ValueError(f"search: {option} is given twice")
        space[option] = _parse(option, text, _value(base, option), word)
    return tuple(space.values())


def _value(base: Config, option: str) -> Any:
    value: Any = base
    for part in option.split("."):
        if not dataclasses.is_dataclass(value) or not hasattr(value, part):
            raise ValueError(f"search: {option!r} is unknown (no option {part!r})")
        value = getattr(value, part)
    if dataclasses.is_dataclass(value):
        raise ValueError(f"search: {option} is a group of options, not one")
    return value


def _parse(option: str, text: str, value: Any, word: str) -> Dimension:
    allowed = "must be OPTION=LOW..HIGH, OPTION=LOW..HIGH:log or OPTION=A,B,C"
    if ".." not in text:
        choices = tuple(text.split(","))
        if len(choices) < 2 or len(set(choices)) < len(choices) or not all(choices):
            raise ValueError(f"search: {word!r} is not allowed: {allowed}")
        return Dimension(option=option, text=text, choices=choices)
    bounds, _, scale = text.partition(":")
    whole = isinstance(value, int) and not isinstance(value, bool)
    try:
        low, high = (int(part) if whole else float(part) for part in bounds.split(".."))
    except ValueError:
        kind = "integers" if whole else "numbers"
        raise ValueError(f"search: {word!r} is not allowed: {allowed}, of {kind}") from None
    log = scale == "log"
    if scale not in ("", "log") or not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"search: {word!r} is not allowed: {allowed}")
    if low >= high or (log and low <= 0):
        need = "0 < LOW < HIGH" if log else "LOW < HIGH"
        raise ValueError(f"search: {word!r} is not allowed: needs {need}")
    return Dimension(option=option, text=text, low=low, high=high, log=log, whole=whole)


def same_space(space: Sequence[Dimension], before: Mapping[str, str]) -> None:
    """Refuse to continue a search in another space.

    Raises:
        ValueError: naming the option that differs.
    """
    now = {dimension.option: dimension.text for dimension in space}
    for option in {**before, **now}:
        if before.get(option) != now.get(option):
            raise ValueError(
                f"search: {option}: {now.get(option, 'not searched')} differs from what this "
                f"search began with ({before.get(option, 'not searched')}); choose another --out"
            )
