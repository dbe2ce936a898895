"""What the rooms that launch Triton kernels share; it imports without Triton."""

import math
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def power(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()


def launch_from(
    modules: Iterable[ModuleType],
    name: str,
    grid: tuple[int, ...],
    args: tuple[Any, ...],
    constants: dict[str, Any],
) -> None:
    """Launch the kernel of this name, unless the grid is empty, where its first tensor is.

    Args:
        modules: in one of which the kernel is.
        name: of the kernel.
        grid: how many programs in each dimension.
        args: of the kernel; tensors may lie in tuples.
        constants: what it is compiled for.
    """
    if math.prod(grid):
        kernel = next(vars(module)[name] for module in modules if name in vars(module))
        with torch.cuda.device_of(next(_tensors(args))):
            kernel[grid](*args, **constants, enable_fp_fusion=True)


def _tensors(args: Iterable[Any]) -> Iterator[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, tuple):
            yield from _tensors(arg)
