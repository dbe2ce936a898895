"""Proportional sampling over many weights: a two-level sum, batched, on the device.

Blocks of about sqrt(n) weights keep their sums. Writing updates only the touched blocks; a draw
searches the running sum of the blocks, then that of one block. Everything is float64: a running sum
of 2^20 float32 priorities is off by 1e-4 of its total, which draws items of no weight at all. No
Python loop over items, no host synchronisation, static shapes.
"""

import math

import torch
from torch import Tensor


class Priorities:
    """Non-negative weights that are drawn in proportion to their size."""

    def __init__(self, size: int, device: torch.device):
        self.size = size
        self.block = max(1, math.isqrt(size))
        blocks = -(-size // self.block)
        self._weights = torch.zeros(blocks, self.block, dtype=torch.float64, device=device)
        self._sums = torch.zeros(blocks, dtype=torch.float64, device=device)

    @property
    def weights(self) -> Tensor:
        """All weights, float64 [size] (a view)."""
        return self._weights.view(-1)[: self.size]

    @property
    def total(self) -> Tensor:
        """Sum of all weights, a float64 scalar on the device."""
        return self._sums.sum()

    def write(self, index: Tensor, weights: Tensor) -> None:
        """Set the weights at `index`, int64 [n]; of equal indices any may win."""
        self._weights.view(-1).index_copy_(0, index, weights.to(torch.float64))
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
        running = self._sums.cumsum(0)
        total = running[-1]
        strata = torch.arange(count, dtype=torch.float64, device=total.device)
        uniform = torch.rand(count, dtype=torch.float64, device=total.device)
        point = (strata + uniform) / count * total
        block = self._search(running.unsqueeze(0), point.unsqueeze(0))[0]
        rest = point - (running[block] - self._sums[block])
        inner = self._weights[block]
        item = self._search(inner.cumsum(1), rest.unsqueeze(1))[:, 0]
        return block * self.block + item, inner.gather(1, item[:, None])[:, 0] / total

    @staticmethod
    def _search(running: Tensor, point: Tensor) -> Tensor:
        """First positions per row where `running` exceeds `point`, which rounding may push outside.

        Clamping below the row's last value lands on the last item that added to the sum.
        """
        last = running[:, -1:]
        below = torch.nextafter(last, torch.zeros_like(last))
        return torch.searchsorted(running, torch.minimum(point.clamp(min=0.0), below), right=True)
