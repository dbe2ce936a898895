"""Baselines with as many parameters as the network they are compared with.

The NFM paper compares networks of one pass with NFM networks of two, which have about twice the
parameters; a difference may then be one of size. A baseline widened to the same number is fairer.
"""

from collections.abc import Callable

import torch
from torch import nn


def count_parameters(module: nn.Module) -> int:
    """Trainable numbers in `module`."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def same_params_as(reference: nn.Module | int, build: Callable[[int], nn.Module]) -> int:
    """The width at which `build(width)` comes nearest to the reference's number of parameters.

    Args:
        reference: the network to match, or its number of parameters.
        build: makes the baseline; parameters must grow with the width. It is called on the meta
            device, where nothing is allocated.

    Raises:
        ValueError: if there is nothing to match, or even a width of 1 is twice too large.
    """
    wanted = count_parameters(reference) if isinstance(reference, nn.Module) else reference
    if wanted < 1:
        raise ValueError(f"reference: {wanted} parameters, nothing to match")

    def count(width: int) -> int:
        with torch.device("meta"):
            return count_parameters(build(width))

    high = 1
    while count(high) < wanted:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < wanted else (low, middle)
    width = min((w for w in (low, high) if w > 0), key=lambda w: abs(count(w) - wanted))
    if count(width) > 2 * wanted:
        raise ValueError(
            f"reference: {wanted} parameters, but the baseline has {count(width)} at width {width}"
        )
    return width
