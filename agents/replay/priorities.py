"""Proportional sampling over many weights: a two-level sum, batched, on the device.

Blocks of about sqrt(n) weights keep their sums. Writing updates only the touched blocks; a draw
searches the running sum of the blocks, then that of one block. Everything is float64: a running sum
of 2^20 float32 priorities is off by 1e-4 of its total, which draws items of no weight at all. No
Python loop over items, no host synchronisation, static shapes.

Shapes: M weights in all, n of them written or drawn, T positions, B batch.
"""

import math

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, Num
from torch import Tensor

from rl_nfm.support.ranks import ALONE, Ranks

WEIGHT = torch.float64
"""The type of weights."""


class Priorities:
    """Non-negative weights that are drawn in proportion to their size."""

    def __init__(self, size: int, device: torch.device):
        self.size = size
        self.block = max(1, math.isqrt(size))
        blocks = -(-size // self.block)
        self._weights = torch.zeros(blocks, self.block, dtype=WEIGHT, device=device)
        self._sums = torch.zeros(blocks, dtype=WEIGHT, device=device)

    @property
    def weights(self) -> Float64[Tensor, " M"]:
        """All weights, as a view."""
        return self._weights.view(-1)[: self.size]

    @property
    def total(self) -> Float64[Tensor, ""]:
        """Sum of all weights, on the device."""
        return self._sums.sum()

    def write(self, index: Int64[Tensor, " n"], weights: Num[Tensor, " n"]) -> None:
        """Set the weights at `index`; where an index occurs twice, its last weight is kept."""
        # A GPU writes equal indices in any order: each of them brings the last one's weight.
        order = torch.arange(len(index), device=index.device)
        last = torch.where(index[:, None] == index, order, -1).amax(1)
        self._weights.view(-1).index_copy_(0, index, weights.to(WEIGHT)[last])
        touched = index // self.block
        self._sums.index_copy_(0, touched, self._weights[touched].sum(1))

    def load(self, weights: Num[Tensor, " M"]) -> None:
        """Replace all weights."""
        self._weights.view(-1)[: self.size] = weights.to(self._weights)
        self._sums.copy_(self._weights.sum(1))

    def sample(self, count: int) -> tuple[Int64[Tensor, " n"], Float64[Tensor, " n"]]:
        """Draw n = `count` items with replacement, stratified over the total.

        Returns:
            Their indices and probabilities. An item of weight 0 is never drawn as long as any
            weight is positive; where none is, probabilities are 0.
        """
        running = _running(self._sums)
        total = running[-1].clamp(min=torch.finfo(torch.float64).tiny)
        strata = torch.arange(count, dtype=torch.float64, device=total.device)
        uniform = torch.rand(count, dtype=torch.float64, device=total.device)
        point = (strata + uniform) / count * total
        block = _search(running.unsqueeze(0), point.unsqueeze(0))[0]
        rest = point - (running[block] - self._sums[block])
        inner = self._weights[block]
        item = _search(_running(inner), rest.unsqueeze(1))[:, 0]
        index = (block * self.block + item).clamp(max=self.size - 1)  # the last block is padded
        return index, inner.gather(1, item[:, None])[:, 0] / total


def _running(weights: Tensor) -> Tensor:
    """Running sums along the last dimension that rise nowhere but at positive weights.

    A parallel sum adds in another order at every place, so that it may rise (or fall) by a rounding
    error where the weight is 0, which a search would take for an item.
    """
    sums = torch.where(weights > 0, weights.cumsum(-1), 0.0)
    return sums.cummax(-1).values


def _search(running: Tensor, point: Tensor) -> Tensor:
    """First positions per row where `running` exceeds `point`, which rounding may push outside.

    Clamping below the row's last value lands on the last item that added to the sum. The clamp of
    the position matters only where there is none, or a weight is not a number: no index may leave
    the row, or a GPU would be lost before anyone can say why.
    """
    last = running[:, -1:]
    below = torch.nextafter(last, torch.zeros_like(last))
    found = torch.searchsorted(running, torch.minimum(point.clamp(min=0.0), below), right=True)
    return found.clamp(max=running.shape[-1] - 1)


def sequence_priority(
    td_error: Float[Tensor, "T B"], mask: Bool[Tensor, "T B"], max_weight: float
) -> Float64[Tensor, " B"]:
    """`max_weight` of the largest |TD error| and the rest of the mean (R2D2, section 2.3).

    Positions that the mask leaves out count for neither; 1e-6 is added, so that every sequence can
    be drawn again.
    """
    error = td_error.double() * mask
    mean = error.sum(0) / mask.sum(0).clamp(min=1)
    return max_weight * error.amax(0) + (1 - max_weight) * mean + 1e-6


def importance_weights(
    probability: Float[Tensor, " B"], beta: Float[Tensor, ""], ranks: Ranks = ALONE
) -> Float32[Tensor, " B"]:
    """`(1 / P)^beta`, normalised by the batch maximum (Schaul et al. 2016).

    Of W ranks each draws the same number from its own replay, so P of the run is that of the rank
    over W, whatever the totals of the others are; W falls out of the division by the maximum over
    the batches of all ranks.
    """
    weights = probability.clamp(min=torch.finfo(torch.float64).tiny) ** -beta.double()
    return (weights / ranks.maximum(weights.max())).float()
