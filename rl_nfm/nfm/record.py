"""What an NFM attends to, as arrays.

`record_attention` collects the weights that the readers compute anyway, so that nothing is recorded
or slowed outside it. A network compiled by `torch.compile` is recorded by calling the plain one.

Shapes: B batch, `*T` sizes of the reading layer, H heads, L slots, S sources.
"""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn

from rl_nfm.nfm.places import Place, Slot, Visit

Source = tuple[int, int] | None
"""Pass and place of a written layer; None is the null slot."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReaderAttention:
    """What one reader attended to in one forward."""

    pass_index: int
    place: int
    slots: tuple[Slot, ...]
    """What each slot stands for; the null slot is the last where there is one."""
    weights: Float32[Tensor, "B *T H L"]
    """On the CPU, as used: after top-k. A layer without sizes (rank 0) has one place, T = 1."""
    even: Float32[Tensor, " L"]
    """What each slot would get, the mean over positions, if every position attended to all of its
    slots alike: slots beyond a layer's edge are no position's."""
    top_k: int
    """Slots that a head may attend to."""
    gain: float
    """gamma of the place, which multiplies what was read."""
    relative_size: float = math.nan
    """Size of what the read added to the layer's output over the size of that output (root mean
    squares); nan before it is known."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """The written layers among the slots, in the order of the memory."""
        return tuple(dict.fromkeys(_source(slot) for slot in self.slots))

    def by_source(self) -> Float32[Tensor, "B *T S"]:
        """Attention to each of `sources`, the mean over heads."""
        return self._by_source(self.weights.mean(dim=-2))

    def even_by_source(self) -> Float32[Tensor, " S"]:
        """`even`, for each of `sources`."""
        return self._by_source(self.even)

    def _by_source(self, slots: Tensor) -> Tensor:
        index = torch.tensor([self.sources.index(_source(slot)) for slot in self.slots])
        return slots.new_zeros(*slots.shape[:-1], len(self.sources)).index_add_(-1, index, slots)

    def chosen(self) -> Bool[Tensor, "B *T H L"]:
        """Which slots are among the k highest and not cut to 0."""
        k = min(self.top_k, len(self.slots))
        highest = self.weights.topk(k, dim=-1).indices
        among = torch.zeros_like(self.weights, dtype=torch.bool).scatter(-1, highest, True)
        return among & (self.weights > 0)

    def entropy(self) -> float:
        """Entropy of a head's attention over the highest possible one, the mean, in [0, 1].

        1 is even attention to as many slots as any head attends to here, 0 is attention to one.
        """
        most = int((self.weights > 0).sum(dim=-1).max())
        if most < 2:
            return 0.0
        return float(torch.special.entr(self.weights).sum(dim=-1).mean()) / math.log(most)

    def top_k_frequency(self) -> Float32[Tensor, " L"]:
        """How often each slot is `chosen`, over batch, positions and heads, in [0, 1]."""
        return self.chosen().float().flatten(0, -2).mean(dim=0)


def _source(slot: Slot) -> Source:
    if slot.pass_index is None or slot.place is None:
        return None
    return slot.pass_index, slot.place


class AttentionRecorder:
    """The attention of the last forward, by reader."""

    def __init__(self) -> None:
        self.readers: dict[tuple[int, int], ReaderAttention] = {}
        """By pass and place of the reader, in the order of reading."""

    def add(
        self,
        visit: Visit,
        weights: Float[Tensor, "B *T H L"],
        scores: Float[Tensor, "B P H L"],
        slots: list[Slot],
        place: Place,
    ) -> None:
        """Keep the weights of one read, whose scores are minus infinity where there is no slot."""
        real = (~scores.detach().isneginf()).float()
        even = (real / real.sum(-1, keepdim=True)).flatten(0, -2).mean(0)
        self.readers[visit.pass_index, visit.place] = ReaderAttention(
            pass_index=visit.pass_index,
            place=visit.place,
            slots=tuple(slots),
            weights=weights.detach().float().cpu(),
            even=even.cpu(),
            top_k=place.config.top_k,
            gain=place.gamma.item(),
        )

    def add_size(
        self, visit: Visit, before: Float[Tensor, "B C *T"], after: Float[Tensor, "B C *T"]
    ) -> None:
        """Keep how much one read changed its layer's output; the places call this after `add`."""
        key = visit.pass_index, visit.place
        before, after = before.detach().float(), after.detach().float()
        size = float((after - before).norm() / before.norm().clamp_min(1e-12))
        self.readers[key] = dataclasses.replace(self.readers[key], relative_size=size)


@contextmanager
def record_attention(module: nn.Module) -> Iterator[AttentionRecorder]:
    """Keep what the NFM inside `module` attends to, while the `with` block lasts.

    Raises:
        ValueError: if there is no NFM in `module`.
    """
    places = [part for part in module.modules() if isinstance(part, Place)]
    if not places:
        raise ValueError(f"{type(module).__name__} holds no Neural Function Module to record")
    recorder = AttentionRecorder()
    before = [place.recorder for place in places]
    for place in places:
        place.recorder = recorder
    try:
        yield recorder
    finally:
        for place, former in zip(places, before, strict=True):
            place.recorder = former
