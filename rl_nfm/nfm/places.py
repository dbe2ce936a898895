"""The memory of an NFM and the places that write to it and read from it.

Source: paper, algorithm 1. A place stands behind one layer in one pass. It writes the layer's
output, as it was before reading, and then reads the whole memory, its own entry included, since
that is the query layer's state in the algorithm. Readings of unclear lines: "j = 1..i" in line 7
means all of the memory, which spans passes; scores are divided by sqrt(d_k); null key and value are
zero after projection; projecting before rescaling equals the paper's order and is cheaper.

Shapes: B batch, C channels, S.. and T.. sizes of a written and a reading layer, P positions (the
product of T..), L slots, H heads, K and V size of keys and values. Inside, channels come last.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.nfm import attention, kernels
from rl_nfm.nfm.config import NFMConfig
from rl_nfm.nfm.rescale import window_offsets
from rl_nfm.resnet import make_norm

if TYPE_CHECKING:
    from rl_nfm.nfm.record import AttentionRecorder


class Entry(NamedTuple):
    """One written layer: keys and values, or the state where readers make their own of it."""

    pass_index: int
    place: int
    state: Tensor | None
    """[B, S.., C]."""
    keys: Tensor | None
    """[B, S.., H * K]."""
    values: Tensor | None
    """[B, S.., H * V]."""


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
        self.out = _make_out(config, channels, rank)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, memory: Memory, visit: Visit) -> Tensor:
        """Write x [B, C, T..], then read: x + gamma * out(attention)."""
        state = x.movedim(1, -1) if x.dim() > 2 else x[:, None]
        query, keys, values = self._project(state)
        if visit.writes and self.config.kv_owner == "source":
            memory.append(Entry(visit.pass_index, visit.place, None, keys, values))
        elif visit.writes:
            memory.append(Entry(visit.pass_index, visit.place, state, None, None))
        if not visit.reads:
            return x
        read = self._attend(query, memory, visit)
        read = torch.cat([read, state], dim=-1) if self.config.cat_input else read
        out = self.out(read)
        return torch.addcmul(x, self.gamma, out.movedim(-1, 1) if x.dim() > 2 else out[:, 0])

    def _project(self, state: Tensor) -> tuple[Tensor, ...]:
        """Query, keys and values [B, T.., ...], empty where the place has none."""
        if self.project is None:
            return (state[..., :0],) * 3
        if not self.use_kernels or not kernels.supports(state):
            return self.project(state).split(self.parts, dim=-1)
        # As fast as one product, and the kernels read rows that lie side by side twice as fast.
        weights, biases = self.project.weight.split(self.parts), self.project.bias.split(self.parts)
        pairs = zip(weights, biases, strict=True)
        return tuple(F.linear(state, w, b) if len(b) else state[..., :0] for w, b in pairs)

    def _attend(self, query: Tensor, memory: Memory, visit: Visit) -> Tensor:
        """What the heads read, [B, T.., H * V], for queries [B, T.., H * K]."""
        config, sizes = self.config, query.shape[1:-1]
        path: Any = kernels if self.use_kernels and kernels.supports(query) else attention
        pairs = [self._keys_and_values(entry) for entry in memory]
        rank = max(tensor.dim() for tensor in (query, *(keys for keys, _ in pairs)))
        keys = [_with_rank(keys, rank) for keys, _ in pairs]
        values = [_with_rank(values, rank) for _, values in pairs]
        query = _with_rank(query, rank)
        target, mode = query.shape[1:-1], config.rescale
        scale = config.key_size**-0.5 / config.temperature
        scores = path.slot_scores(query, keys, config.heads, scale, mode, config.null_slot)
        if self.random_attention and not self.training:
            scores = torch.randn_like(scores).masked_fill(scores.isneginf(), float("-inf"))
        dropout = config.attention_dropout if self.training else 0.0
        weights = attention.sparse_weights(
            scores, config.top_k, config.top_k_mode, dropout, masked=path.masked_top_k
        )
        if self.recorder is not None:
            slots = [
                Slot(entry.pass_index, entry.place, offset)
                for entry, key in zip(memory, keys, strict=True)
                for offset in window_offsets(key.shape[1:-1], target, mode)
            ]
            slots += [NULL_SLOT] * config.null_slot
            self.recorder.add(visit, weights.unflatten(1, sizes), slots, config.top_k)
        return path.mix_values(weights, values, target, mode).flatten(1, -2).unflatten(1, sizes)

    def _keys_and_values(self, entry: Entry) -> tuple[Tensor, Tensor]:
        if entry.state is not None:
            both = self.key_values[str(entry.state.shape[-1])](entry.state)
            keys = self.config.heads * self.config.key_size
            return both[..., :keys], both[..., keys:]
        assert entry.keys is not None
        assert entry.values is not None
        return entry.keys, entry.values


def _with_rank(x: Tensor, dims: int) -> Tensor:
    """[B, S.., C] with sizes of 1 behind S.., up to so many dimensions."""
    return x if x.dim() == dims else x.unflatten(-2, (-1, *[1] * (dims - x.dim())))


def set_random_attention(module: nn.Module, on: bool) -> None:
    """Switch the paper's ablation in a built network: outside training, noise for scores."""
    for place in module.modules():
        if isinstance(place, Place):
            place.random_attention = on
