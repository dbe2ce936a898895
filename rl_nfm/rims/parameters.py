"""Sizes of layers of RIMs, checked, and the values that their parameters begin with."""

import math
from collections.abc import Sequence

from torch import Tensor, nn


def uniform_(fan_in: int, *tensors: Tensor | None) -> None:
    """Fill with what PyTorch's recurrent and linear layers begin with; None: there is nothing."""
    for tensor in tensors:
        if tensor is not None:
            nn.init.uniform_(tensor, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))


def check_sizes(
    inputs: int, hidden: int, num_rims: int, num_active: int, rim_dropout: float
) -> None:
    """Raise ValueError for sizes of a layer that do not fit each other."""
    for name, value in (("input_size", inputs), ("hidden_size", hidden), ("num_rims", num_rims)):
        if value < 1:
            raise ValueError(f"{name}: {value!r} is not allowed, must be at least 1")
    if hidden % num_rims:
        raise ValueError(f"hidden_size: {hidden} is not a multiple of num_rims ({num_rims})")
    if not 1 <= num_active <= num_rims:
        raise ValueError(f"num_active: {num_active} is not allowed, must be in 1..{num_rims}")
    if not 0 <= rim_dropout < 1:
        raise ValueError(f"rim_dropout: {rim_dropout} is not allowed, must be in [0, 1)")


def for_each_layer(name: str, value: int | Sequence[int], layers: int) -> list[int]:
    """One number for each layer, from one for all of them or from as many as there are.

    Raises:
        ValueError: another count, naming the option.
    """
    values = [value] * layers if isinstance(value, int) else list(value)
    if len(values) != layers:
        raise ValueError(f"{name}: {values} is not allowed, must have one for each layer: {layers}")
    return values
