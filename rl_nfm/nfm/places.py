"""The memory of an NFM and the places that write to it and read from it.

Source: paper, algorithm 1. A place stands behind one layer in one pass. It writes the layer's
output, as it was before reading, and then reads the whole memory, its own entry included, since
that is the query layer's state in the algorithm. Readings of unclear lines: "j = 1..i" in line 7
means all of the memory, which spans passes; scores are divided by sqrt(d_k); null key and value are
zero after projection; projecting before rescaling equals the paper's order and is cheaper.

Shapes: B batch, C channels, S.. and T.. sizes of a written and a reading layer, P positions (the
product of T..), L slots, H heads, K and V size of keys and values. Inside, channels come last.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.nfm.attention import mix_values, slot_scores, sparse_weights
from rl_nfm.nfm.config import NFMConfig
from rl_nfm.nfm.rescale import gather_slots, window_offsets
from rl_nfm.resnet import make_norm

if TYPE_CHECKING:
    from rl_nfm.nfm.record import AttentionRecorder


class Entry(NamedTuple):
    """One written layer."""

    pass_index: int
    place: int
    tensor: Tensor
    """Keys and values [B, S.., H * (K + V)], or the state [B, S.., C] where readers project."""


Memory = list[Entry]
"""Grows through the passes of one forward."""


class Slot(NamedTuple):
    """What a slot of a reader stands for; for the null slot all is None."""

    pass_index: int | None
    place: int | None
    offset: tuple[int, ...] | None
    """Place in the window (row, column), zeros where the memory is not finer than the reader."""


NULL_SLOT = Slot(None, None, None)


class _ChannelsFirst(nn.Module):
    """Applies a module that expects [B, C, T..] to [B, T.., C]."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.movedim(-1, 1)).movedim(1, -1)


def _out_map(inputs: int, outputs: int, kernel: int, rank: int) -> nn.Module:
    if kernel == 1 or rank == 0:
        return nn.Linear(inputs, outputs)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    return _ChannelsFirst(conv(inputs, outputs, kernel, padding=kernel // 2))


def _make_out(config: NFMConfig, channels: int, rank: int) -> nn.Sequential:
    """The output block, [B, T.., H * V (+ C)] to [B, T.., C]."""
    inputs = config.heads * config.value_size + (channels if config.cat_input else 0)
    layers = [_out_map(inputs, channels, config.out_kernel, rank)]
    if config.out_layers == 2:
        if config.out_norm != "none":
            layers.append(_ChannelsFirst(make_norm(config.out_norm, channels, rank=rank)))
        layers += [nn.ReLU(), _out_map(channels, channels, config.out_kernel, rank)]
    return nn.Sequential(*layers)


class Visit(NamedTuple):
    """What happens behind one layer in one pass."""

    pass_index: int
    place: int
    reads: bool
    writes: bool


class Place(nn.Module):
    """Writes and reads behind one layer: [B, C, T..] to the same shape.

    Args:
        config: options.
        channels: of the layer.
        rank: dimensions of the layer's output besides batch and channels.
        reads: whether the place ever reads, and so has a query, an output block and gamma.
        writes: whether the place ever writes.
        source_channels: channels of the layers in its memory; only matters for `kv_owner="reader"`.
    """

    def __init__(
        self,
        config: NFMConfig,
        *,
        channels: int,
        rank: int,
        reads: bool,
        writes: bool,
        source_channels: tuple[int, ...],
    ):
        super().__init__()
        self.config = config
        self.random_attention = config.random_attention
        self.recorder: AttentionRecorder | None = None
        key_values = config.heads * (config.key_size + config.value_size)
        query = config.heads * config.key_size
        owned = config.kv_owner == "source"
        # One matrix product for all that is made of a state.
        self.parts = [query * reads, key_values * (writes and owned)]
        self.project = nn.Linear(channels, sum(self.parts)) if sum(self.parts) else None
        if not reads:
            return
        widths = () if owned else sorted(set(source_channels))
        self.key_values = nn.ModuleDict({str(c): nn.Linear(c, key_values) for c in widths})
        self.out = _make_out(config, channels, rank)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, memory: Memory, visit: Visit) -> Tensor:
        """Write x [B, C, T..], then read: x + gamma * out(attention)."""
        state = x.movedim(1, -1) if x.dim() > 2 else x[:, None]
        projected = None if self.project is None else self.project(state)
        query, own = (None, None) if projected is None else projected.split(self.parts, dim=-1)
        if visit.writes:
            tensor = own if self.config.kv_owner == "source" else state
            assert tensor is not None
            memory.append(Entry(visit.pass_index, visit.place, tensor))
        if not visit.reads:
            return x
        assert query is not None
        read = self.attend(query, memory, visit)
        read = torch.cat([read, state], dim=-1) if self.config.cat_input else read
        out = self.out(read)
        return torch.addcmul(x, self.gamma, out.movedim(-1, 1) if x.dim() > 2 else out[:, 0])

    def attend(self, query: Tensor, memory: Memory, visit: Visit) -> Tensor:
        """What the heads read, [B, T.., H * V], for queries [B, T.., H * K]."""
        config, sizes = self.config, query.shape[1:-1]
        key_size = config.heads * config.key_size
        slots, valid = self._slots(sizes, memory)
        keys = slots[..., :key_size].unflatten(-1, (config.heads, -1))
        values = slots[..., key_size:].unflatten(-1, (config.heads, -1))
        q = query.flatten(1, -2).unflatten(-1, (config.heads, -1))
        scale = config.key_size**-0.5 / config.temperature
        scores = slot_scores(q, keys, valid, scale)
        if config.null_slot:
            scores = F.pad(scores, (0, 1))
        if self.random_attention and not self.training:
            scores = torch.randn_like(scores).masked_fill(scores.isneginf(), float("-inf"))
        dropout = config.attention_dropout if self.training else 0.0
        weights = sparse_weights(scores, config.top_k, config.top_k_mode, dropout)
        if self.recorder is not None:
            labels = self._labels(sizes, memory)
            self.recorder.add(visit, weights.unflatten(1, sizes), labels, config.top_k)
        read = mix_values(weights[..., : keys.shape[2]], values)
        return read.to(query.dtype).flatten(2).unflatten(1, sizes)

    def _slots(self, sizes: torch.Size, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """Keys and values [B, P, L, H * (K + V)] of all slots, and which are real, bool [P, L]."""
        gathered: list[Tensor] = []
        real: list[Tensor | None] = []
        for entry in memory:
            tensor = entry.tensor
            if self.config.kv_owner == "reader":
                tensor = self.key_values[str(tensor.shape[-1])](tensor)
            tensor, target = _same_rank(tensor, sizes)
            slots, valid = gather_slots(tensor, target, self.config.rescale)
            gathered.append(slots.flatten(1, -3))
            real.append(None if valid is None else valid.flatten(0, -2))
        slots = torch.cat(gathered, dim=2)
        if all(valid is None for valid in real):
            return slots, None
        flags = [
            g.new_ones(g.shape[1:3], dtype=torch.bool) if valid is None else valid
            for g, valid in zip(gathered, real, strict=True)
        ]
        return slots, torch.cat(flags, dim=1)

    def _labels(self, sizes: torch.Size, memory: Memory) -> list[Slot]:
        labels: list[Slot] = []
        for entry in memory:
            tensor, target = _same_rank(entry.tensor, sizes)
            offsets = window_offsets(tensor.shape[1:-1], target, self.config.rescale)
            labels += [Slot(entry.pass_index, entry.place, offset) for offset in offsets]
        return labels + [NULL_SLOT] * self.config.null_slot


def _same_rank(memory: Tensor, sizes: torch.Size) -> tuple[Tensor, tuple[int, ...]]:
    """Memory [B, S.., C] and sizes T.., the one of lower rank filled up with sizes of 1."""
    missing = len(sizes) - (memory.dim() - 2)
    if missing > 0:
        memory = memory.unflatten(-2, (-1, *[1] * missing))
    return memory, (*sizes, *[1] * -missing)
