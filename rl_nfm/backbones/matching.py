"""Baselines as large as the network they are compared with.

The NFM paper compares networks of one pass with NFM networks of two, which have about twice the
parameters and the multiply-accumulates (MACs); a difference may then be one of size. A baseline
widened to the same number is fairer.
"""

from collections.abc import Callable

import torch
from torch import nn


def count_parameters(module: nn.Module) -> int:
    """Trainable numbers in `module`."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def count_macs(run: Callable[[], object]) -> int:
    """Multiply-accumulates of the convolutions and matrix products that calling `run` computes.

    NFM's kernels on a CPU stand aside while operations are counted, so theirs are too.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, where there is one

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


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

    def count(width: int) -> int:
        with torch.device("meta"):
            return count_parameters(build(width))

    return matching_width(wanted, count, "parameters")


def matching_width(wanted: int, count: Callable[[int], int], unit: str) -> int:
    """The width at which `count(width)` comes nearest to `wanted`.

    Args:
        wanted: number to match.
        count: must grow with the width.
        unit: of both, for messages.

    Raises:
        ValueError: if there is nothing to match, or even a width of 1 is twice too large.
    """
    if wanted < 1:
        raise ValueError(f"reference: {wanted} {unit}, nothing to match")
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
            f"reference: {wanted} {unit}, but the baseline has {count(width)} at width {width}"
        )
    return width
