"""Rows on their way from the acting stream to the learning stream: a ring of slots.

Acting may be several rows ahead of a learner that is busy, so what it hands over must not be
overwritten by its next step. Both sides keep their position on the device, so that either can be a
captured graph; the events that keep them apart belong to whoever drives the streams.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class Handover:
    """First in, first out; each slot holds one row of named tensors."""

    def __init__(self, row: Mapping[str, Tensor], *, slots: int):
        """Allocate.

        Args:
            row: an example.
            slots: rows that fit.
        """
        self.slots = slots
        self._ring = {name: x.new_zeros(slots, *x.shape) for name, x in row.items()}
        device = next(iter(row.values())).device
        self._filling = torch.zeros(1, dtype=torch.int64, device=device)
        self._taking = torch.zeros(1, dtype=torch.int64, device=device)

    def put(self, values: Mapping[str, Tensor]) -> None:
        """Write some tensors of the row that is being filled."""
        for name, value in values.items():
            self._ring[name].index_copy_(0, self._filling, value[None])

    def close(self) -> None:
        """Complete the row and go on to the next slot."""
        self._filling.add_(1).remainder_(self.slots)

    def take(self) -> dict[str, Tensor]:
        """The oldest row that has not been taken yet."""
        row = {name: x.index_select(0, self._taking)[0] for name, x in self._ring.items()}
        self._taking.add_(1).remainder_(self.slots)
        return row
