"""Rows on their way from the acting stream to the learning stream: a ring of slots.

Acting may be several rows ahead of a learner that is busy, so what it hands over must not be
overwritten by its next step. Both sides keep their position on the device, so that either can be a
captured graph; the events that keep them apart belong to whoever drives the streams.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class Handover:
    """First in, first out; each slot holds one row of named tensors, which groups fill in turn."""

    def __init__(self, row: Mapping[str, Tensor], *, slots: int, groups: int = 1):
        """Allocate.

        Args:
            row: an example, each tensor [E, ...].
            slots: rows that fit.
            groups: that each fill the rows of as many of the E environments.
        """
        self.slots = slots
        self._columns = len(next(iter(row.values()))) // groups
        self._ring = {name: x.new_zeros(slots, *x.shape) for name, x in row.items()}
        device = next(iter(row.values())).device
        self._filling = torch.zeros(groups, 1, dtype=torch.int64, device=device)
        self._taking = torch.zeros(1, dtype=torch.int64, device=device)

    def put(self, values: Mapping[str, Tensor], group: int = 0) -> None:
        """Write tensors of a group, each [E / groups, ...], into the row that it is filling."""
        first = group * self._columns
        for name, value in values.items():
            mine = self._ring[name][:, first : first + self._columns]
            mine.index_copy_(0, self._filling[group], value[None])

    def close(self, group: int = 0) -> None:
        """A group has filled its part of the row, and goes on to the next slot."""
        self._filling[group].add_(1).remainder_(self.slots)

    def take(self) -> dict[str, Tensor]:
        """The oldest row that has not been taken yet; all groups have closed it."""
        row = {name: x.index_select(0, self._taking)[0] for name, x in self._ring.items()}
        self._taking.add_(1).remainder_(self.slots)
        return row
