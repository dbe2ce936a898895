"""Baselines of equal size: the width at which a family of networks has a given parameter count."""

from collections.abc import Callable

from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Trained numbers of a model."""
    return sum(p.numel() for p in model.parameters())


def width_for(parameters: int, build: Callable[[int], nn.Module], *, step: int = 1) -> int:
    """The multiple of `step` whose network comes nearest to `parameters`.

    Args:
        parameters: wanted count.
        build: a network from a width; its count must grow with the width.
        step: granularity of the width.
    """
    low, high = 1, 2
    while count_parameters(build(high * step)) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if count_parameters(build(middle * step)) < parameters:
            low = middle
        else:
            high = middle
    return min(
        (low * step, high * step), key=lambda w: abs(count_parameters(build(w)) - parameters)
    )
