"""Proportional sampling over many weights: a two-level sum, batched, on the device.

Blocks of about sqrt(n) weights keep their sums. Writing updates only the touched blocks; a draw
searches the running sum of the blocks, then that of one block. Everything is float64: a running sum
of 2^20 float32 priorities is off by 1e-4 of its total, which draws items of no weight at all. No
Python loop over items, no host synchronisation, static shapes.
"""

import math

import torch
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
    def weights(self) -> Tensor:
        """All weights, float64 [size] (a view)."""
        return self._weights.view(-1)[: self.size]

    @property
    def total(self) -> Tensor:
        """Sum of all weights, a float64 scalar on the device."""
        return self._sums.sum()

    def write(self, index: Tensor, weights: Tensor) -> None:
        """Set the weights at `index`, int64 [n]; of equal indices the last one wins."""
        # A GPU writes equal indices in any order: each of them brings the last one's weight.
        order = torch.arange(len(index), device=index.device)
        last = torch.where(index[:, None] == index, order, -1).amax(1)
        self._weights.view(-1).index_copy_(0, index, weights.to(WEIGHT)[last])
        touched = index // self.block
        self._sums.index_copy_(0, touched, self._weights[touched].sum(1))

    def load(self, weights: Tensor) -> None:
        """Replace all weights, [size]."""
        self._weights.view(-1)[: self.size] = weights.to(self._weights)
        self._sums.copy_(self._weights.sum(1))

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw with replacement, stratified over the total.

        Returns:
            int64 indices [count] and their probabilities, float64 [count]. An item of weight 0 is
            never drawn as long as any weight is positive.
        """
        running = _running(self._sums)
        total = running[-1]
        strata = torch.arange(count, dtype=torch.float64, device=total.device)
        uniform = torch.rand(count, dtype=torch.float64, device=total.device)
        point = (strata + uniform) / count * total
        block = _search(running.unsqueeze(0), point.unsqueeze(0))[0]
        rest = point - (running[block] - self._sums[block])
        inner = self._weights[block]
        item = _search(_running(inner), rest.unsqueeze(1))[:, 0]
        return block * self.block + item, inner.gather(1, item[:, None])[:, 0] / total


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


def importance_weights(probability: Tensor, beta: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """`(1 / P)^beta`, normalised by the batch maximum (Schaul et al. 2016), float32 [B].

    Of W ranks each draws the same number from its own replay, so P of the run is that of the rank
    over W, whatever the totals of the others are; W falls out of the division by the maximum over
    the batches of all ranks.
    """
    weights = probability.clamp(min=torch.finfo(torch.float64).tiny) ** -beta.double()
    return (weights / ranks.maximum(weights.max())).float()
