"""The memory of an NFM and the places that write to it and read from it.

Source: paper, algorithm 1. A place stands behind one layer in one pass. It writes the layer's
output, as it was before reading, and then reads the whole memory, its own entry included, since
that is the query layer's state in the algorithm. Readings of unclear lines: "j = 1..i" in line 7
means all of the memory, which spans passes; scores are divided by sqrt(d_k); null key and value are
zero after projection; projecting before rescaling equals the paper's order and is cheaper.

Shapes: B batch, C channels, T.. sizes of a layer, P positions (the product of T..), H heads, K and
V size of keys and values of one head. Inside, positions are rows: [B, P, ..].
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.nfm import kernels
from rl_nfm.nfm.attention import mix_values, slot_scores, sparse_weights
from rl_nfm.nfm.config import NFMConfig
from rl_nfm.nfm.output import OutBlock
from rl_nfm.nfm.rescale import Grid, window_offsets

if TYPE_CHECKING:
    from rl_nfm.nfm.record import AttentionRecorder


class Entry(NamedTuple):
    """One written layer: keys and values, or the state where readers make their own of it."""

    pass_index: int
    place: int
    sizes: tuple[int, ...]
    """T.. of the layer."""
    state: Tensor | None
    """[B, P, C]."""
    keys: Tensor | None
    """[B, P, H * K]."""
    values: Tensor | None
    """[B, P, H * V]."""


Memory = list[Entry]
"""Grows through the passes of one forward."""


class Slot(NamedTuple):
    """What a slot of a reader stands for; for the null slot all is None."""

    pass_index: int | None
    place: int | None
    offset: tuple[int, ...] | None
    """Place in the window (row, column), zeros where the memory is not finer than the reader."""


NULL_SLOT = Slot(None, None, None)


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
        self.use_kernels = kernels.available()
        self.recorder: AttentionRecorder | None = None
        keys, values = config.heads * config.key_size, config.heads * config.value_size
        owned = config.kv_owner == "source"
        # One matrix for all that is made of a state: query, keys and values.
        self.parts = [keys * reads, keys * (writes and owned), values * (writes and owned)]
        self.project = nn.Linear(channels, sum(self.parts)) if sum(self.parts) else None
        if not reads:
            return
        widths = () if owned else sorted(set(source_channels))
        self.key_values = nn.ModuleDict({str(c): nn.Linear(c, keys + values) for c in widths})
        self.out = OutBlock(config, channels=channels, rank=rank)
        self.gamma = nn.Parameter(torch.zeros(()))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also on a machine without the compiler of the one that pickled it."""
        super().__setstate__(state)
        self.use_kernels = self.use_kernels and kernels.available()

    def forward(self, x: Tensor, memory: Memory, visit: Visit) -> Tensor:
        """Write x [B, C, T..], then read: x + gamma * out(attention)."""
        sizes = tuple(x.shape[2:]) or (1,)
        state = x.flatten(2).transpose(1, 2) if x.dim() > 2 else x[:, None]
        query, keys, values = self._project(state)
        if visit.writes and self.config.kv_owner == "source":
            memory.append(Entry(visit.pass_index, visit.place, sizes, None, keys, values))
        elif visit.writes:
            memory.append(Entry(visit.pass_index, visit.place, sizes, state, None, None))
        if not visit.reads:
            return x
        read = self._attend(query, sizes, memory, visit)
        read = torch.cat([read, state], dim=-1) if self.config.cat_input else read
        out = self.out(read, sizes).transpose(1, 2).reshape(x.shape)
        return torch.addcmul(x, self.gamma, out)

    def _project(self, state: Tensor) -> tuple[Tensor, ...]:
        """Query, keys and values [B, P, ..], empty where the place has none."""
        if self.project is None:
            return (state[..., :0],) * 3
        plain = type(self.project) is nn.Linear and not (
            self.project._forward_hooks or self.project._forward_pre_hooks
        )
        if not (plain and self.use_kernels and kernels.supports(state)):
            return self.project(state).split(self.parts, dim=-1)
        # As fast as one product, and the kernels read rows that lie side by side twice as fast.
        weights, biases = self.project.weight.split(self.parts), self.project.bias.split(self.parts)
        pairs = zip(weights, biases, strict=True)
        return tuple(F.linear(state, w, b) if len(b) else state[..., :0] for w, b in pairs)

    def _attend(
        self, query: Tensor, sizes: tuple[int, ...], memory: Memory, visit: Visit
    ) -> Tensor:
        """What the heads read, [B, P, H * V], for queries [B, P, H * K]."""
        config = self.config
        keys, values = zip(*map(self._keys_and_values, memory), strict=True)
        grid = Grid.of(sizes, [entry.sizes for entry in memory], config.rescale)
        scale = config.key_size**-0.5 / config.temperature
        dropout = config.attention_dropout if self.training else 0.0
        noise = self.random_attention and not self.training
        common = config.top_k_mode == "masked" and not dropout and not noise
        fused = common and self.recorder is None and self.use_kernels
        if fused and kernels.supports(query, keys, values):
            read, keys, values = kernels.attend(
                query, keys, values, grid, heads=config.heads, scale=scale, top_k=config.top_k,
                null_slot=config.null_slot,
            )  # fmt: skip
            if config.kv_owner == "source":
                for n, entry in enumerate(memory):
                    memory[n] = entry._replace(keys=keys[n], values=values[n])
            return read
        scores = slot_scores(query, keys, grid, config.heads, scale, config.null_slot)
        if noise:
            scores = torch.randn_like(scores).masked_fill(scores.isneginf(), float("-inf"))
        weights = sparse_weights(scores, config.top_k, config.top_k_mode, dropout)
        if self.recorder is not None:
            labels = self._labels(memory, grid)
            self.recorder.add(visit, weights.unflatten(1, sizes), labels, config.top_k)
        return mix_values(weights, values, grid).to(query.dtype)

    def _labels(self, memory: Memory, grid: Grid) -> list[Slot]:
        slots = [
            Slot(entry.pass_index, entry.place, offset)
            for entry, source in zip(memory, grid.sources, strict=True)
            for offset in window_offsets(source, grid.target, grid.mode)
        ]
        return slots + [NULL_SLOT] * self.config.null_slot

    def _keys_and_values(self, entry: Entry) -> tuple[Tensor, Tensor]:
        if entry.state is not None:
            both = self.key_values[str(entry.state.shape[-1])](entry.state)
            keys = self.config.heads * self.config.key_size
            return both[..., :keys], both[..., keys:]
        assert entry.keys is not None
        assert entry.values is not None
        return entry.keys, entry.values


def set_random_attention(module: nn.Module, on: bool) -> None:
    """Switch the paper's ablation in a built network: outside training, noise for scores."""
    for place in module.modules():
        if isinstance(place, Place):
            place.random_attention = on
