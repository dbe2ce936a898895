"""What a call of the fused attention consists of besides tensors, for kernels of all devices.

Shapes: as in `attention`.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rl_nfm.nfm.attention import masked_top_k, mix_values, slot_scores
from rl_nfm.nfm.config import Rescale
from rl_nfm.nfm.rescale import Grid, gather_slots


class Options(NamedTuple):
    """In the order in which the operators take them."""

    sizes: list[int]
    """Of the reader and of each written layer, one after the other."""
    mode: Any
    """How a finer memory is read: see `NFMConfig.rescale`."""
    heads: int
    scale: float
    """Factor of the scores."""
    top_k: int
    """Slots that a head attends to; no more than there are."""
    null_slot: bool

    @staticmethod
    def of(grid: Grid, *, heads: int, scale: float, top_k: int, null_slot: bool) -> "Options":
        """For a reader of `grid`."""
        sizes = [*grid.target, *(size for source in grid.sources for size in source)]
        return Options(
            sizes, grid.mode, heads, scale, min(top_k, grid.num_slots + null_slot), null_slot
        )


def split_sizes(sizes: list[int], layers: int) -> list[tuple[int, ...]]:
    """The target's size and that of each layer."""
    rank = len(sizes) // (layers + 1)
    return [tuple(sizes[i : i + rank]) for i in range(0, len(sizes), rank)]


@lru_cache(maxsize=256)
def slot_rows(source: tuple[int, ...], target: tuple[int, ...], mode: Rescale) -> np.ndarray:
    """int32 [P, slots]: which row of the source each slot of each position is; -1 is padding."""
    rows = torch.arange(math.prod(source), dtype=torch.float64, device="cpu")
    rows = rows.view(1, *source, 1)
    slots, valid = gather_slots(rows, target, mode)
    table = slots[0, ..., 0] if valid is None else slots[0, ..., 0].where(valid, -1.0)
    return np.ascontiguousarray(table.flatten(0, -2).numpy().astype(np.int32))


def plain_read(
    query: Float[Tensor, "B P HK"],
    keys: Sequence[Float[Tensor, "B _ HK"]],
    values: Sequence[Float[Tensor, "B _ HV"]],
    options: Options,
) -> Float[Tensor, "B P HV"]:
    """What the kernels compute, in plain PyTorch."""
    target, *sources = split_sizes(options.sizes, len(keys))
    grid = Grid.of(target, sources, options.mode)
    scores = slot_scores(query, keys, grid, options.heads, options.scale, options.null_slot)
    return mix_values(masked_top_k(scores, options.top_k), values, grid)
