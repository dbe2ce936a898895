"""Rescaling of memory to the size of the layer that reads it (paper, "scale" of algorithm 1).

Along each dimension a coarser memory is up-sampled by nearest neighbours. A finer one is either
down-sampled so too, or cut into windows whose pixels are slots of their own ("SpaceToDepth").
Deviation: the published SpaceToDepth takes integer ratios only and fails on others. Here the
window of position i reaches from floor(i S / T) to ceil((i + 1) S / T), S source and T target size,
so that every pixel is seen for any pair of sizes; shorter windows are padded, and padding is never
attended to.

Shapes: B batch, `*S` and `*T` source and target sizes, L slots, C channels. Channels come last.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from rl_nfm.nfm.config import Rescale


def window_length(source: int, target: int, mode: Rescale) -> int:
    """How many slots a window has along one dimension."""
    if source <= target or mode == "nearest":
        return 1
    return max(-(-(i + 1) * source // target) - i * source // target for i in range(target))


def window_offsets(
    source: Sequence[int], target: Sequence[int], mode: Rescale
) -> list[tuple[int, ...]]:
    """The place of each slot in the window, as (row, column); slots are counted row by row."""
    lengths = [window_length(s, t, mode) for s, t in zip(source, target, strict=True)]
    return list(itertools.product(*map(range, lengths)))


class Grid(NamedTuple):
    """Which positions read which rows: sizes of the reader and of the layers in its memory."""

    target: tuple[int, ...]
    sources: tuple[tuple[int, ...], ...]
    mode: Rescale

    @staticmethod
    def of(target: Sequence[int], sources: Sequence[Sequence[int]], mode: Rescale) -> "Grid":
        """A grid of sizes that all have the same rank: sizes of 1 are appended to shorter ones."""
        rank = max(map(len, (target, *sources)))
        filled = [(*sizes, *[1] * (rank - len(sizes))) for sizes in (target, *sources)]
        return Grid(filled[0], tuple(filled[1:]), mode)

    @property
    def num_slots(self) -> int:
        """Slots of one position in all sources, without the null slot."""
        return sum(len(window_offsets(source, self.target, self.mode)) for source in self.sources)


def gather_slots(
    memory: Float[Tensor, "B *S C"], target: Sequence[int], mode: Rescale
) -> tuple[Float[Tensor, "B *T L C"], Bool[Tensor, "*T L"] | None]:
    """The slots that each position of the target reads.

    Args:
        memory: a written layer, or its keys or values.
        target: `*T`, as many sizes as the memory has.
        mode: what to do where the memory is finer.

    Returns:
        The slots, and which of them are pixels rather than padding; None where all are.
    """
    source = memory.shape[1:-1]
    rank = len(target)
    finer = [max(s, t) for s, t in zip(source, target, strict=True)]
    if list(source) != finer:
        memory = F.interpolate(memory.movedim(-1, 1), size=finer, mode="nearest").movedim(1, -1)
    valid: Tensor | None = None
    for dim, size in enumerate(target):
        # [B, T.., (S..), C], and behind each T the dimension of its window; sorted after the loop.
        rows, real = _window_rows(finer[dim], size, mode, memory.device)
        axis = 1 + 2 * dim
        memory = memory.index_select(axis, rows.flatten()).unflatten(axis, rows.shape)
        if real is not None:
            shape = [1] * (2 * rank)
            shape[2 * dim : 2 * dim + 2] = rows.shape
            real = real.view(shape)
            valid = real if valid is None else valid & real
    order = [*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)]
    memory = memory.permute(0, *(1 + d for d in order), 2 * rank + 1).flatten(1 + rank, -2)
    if valid is not None:
        lengths = memory.shape[-2]
        full = [window_length(f, t, mode) for f, t in zip(finer, target, strict=True)]
        sizes = [n for pair in zip(target, full, strict=True) for n in pair]
        valid = valid.expand(sizes).permute(order).reshape(*target, lengths)
    return memory, valid


def _window_rows(
    source: int, target: int, mode: Rescale, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Source rows int64 [T, L] of each window, and which are real, bool [T, L] (None: all)."""
    length = window_length(source, target, mode)
    position = torch.arange(target, device=device)
    rows = (position * source // target)[:, None] + torch.arange(length, device=device)
    if source % target == 0 or length == 1:
        return rows, None
    end = ((position + 1) * source + target - 1) // target
    return rows.clamp(max=source - 1), rows < end[:, None]
