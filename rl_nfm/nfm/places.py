"""The memory of an NFM and the places that write to it and read from it.

Source: paper, algorithm 1. A place stands behind one layer in one pass. It writes the layer's
output, as it was before reading, and then reads the whole memory, its own entry included, since
that is the query layer's state in the algorithm. Readings of unclear lines: "j = 1..i" in line 7
means all of the memory, which spans passes; scores are divided by sqrt(d_k); null key and value are
zero after projection; projecting before rescaling equals the paper's order and is cheaper.

Shapes: B batch, C channels, `*T` sizes of a layer, P positions (the product of `*T`), HK and HV
size of keys and values of all heads together. Inside, positions are rows: [B, P, ..].
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.nfm import kernels, operators, triton_attention
from rl_nfm.nfm.attention import mix_values, slot_scores, sparse_weights
from rl_nfm.nfm.call import Options
from rl_nfm.nfm.config import NFMConfig
from rl_nfm.nfm.linear import run_linear
from rl_nfm.nfm.output import OutBlock
from rl_nfm.nfm.rescale import Grid, window_offsets
from rl_nfm.nfm.triton_attention import Handover, Packed
from rl_nfm.support import triton_guard
from rl_nfm.support.modules import is_untouched

if TYPE_CHECKING:
    from rl_nfm.nfm.record import AttentionRecorder


MOST_DENSE_SLOTS = 128
"""Slots up to which the kernels, which sort what they keep, are faster without a limit too."""


class Entry(NamedTuple):
    """One written layer: keys and values, or the state where readers make their own of it."""

    pass_index: int
    place: int
    sizes: tuple[int, ...]
    """`*T` of the layer."""
    state: Float[Tensor, "B P C"] | None
    keys: Float[Tensor, "B P HK"] | None
    values: Float[Tensor, "B P HV"] | None
    packed: Packed | None = None
    """Where keys and values are views of one tensor: that one."""
    handover: Handover | None = None
    """What the last reader passed on, where the kernels for CUDA are used."""


class Projected(NamedTuple):
    """Query, keys and values of a state [B, P, C]; those that the place does not have are empty."""

    query: Float[Tensor, "B P HK"]
    keys: Float[Tensor, "B P HK"]
    values: Float[Tensor, "B P HV"]
    packed: Packed | None
    """All of them, where they are views."""


Memory = list[Entry]
"""Grows through the passes of one forward."""


class Slot(NamedTuple):
    """Which pixel of which written layer a slot is; all fields are None for the null slot."""

    pass_index: int | None
    place: int | None
    offset: tuple[int, ...] | None
    """Row and column in the window; zeros where the memory is not finer than the reader."""


NULL_SLOT = Slot(None, None, None)


class Visit(NamedTuple):
    """What happens behind one layer in one pass."""

    pass_index: int
    place: int
    reads: bool
    writes: bool


class Place(nn.Module):
    """Writes and reads behind one layer.

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
        self.use_kernels = triton_guard.switched_on()
        self.recorder: AttentionRecorder | None = None
        keys, values = config.heads * config.key_size, config.heads * config.value_size
        owned = config.kv_owner == "source"
        # One matrix for all that is made of a state: query, keys and values.
        self.parts = (keys * reads, keys * (writes and owned), values * (writes and owned))
        self.project = nn.Linear(channels, sum(self.parts)) if sum(self.parts) else None
        if not reads:
            return
        widths = () if owned else sorted(set(source_channels))
        self.key_values = nn.ModuleDict({str(c): nn.Linear(c, keys + values) for c in widths})
        self.out = OutBlock(config, channels=channels, rank=rank)
        self.gamma = nn.Parameter(torch.tensor(float(config.initial_gamma)))

    def forward(
        self, x: Float[Tensor, "B C *T"], memory: Memory, visit: Visit
    ) -> Float[Tensor, "B C *T"]:
        """Write x, then read: x + gamma * out(attention)."""
        sizes = tuple(x.shape[2:]) or (1,)
        state = x.flatten(2).transpose(1, 2) if x.dim() > 2 else x[:, None]
        projected = self._project(state)
        if visit.writes and self.config.kv_owner == "source":
            _, keys, values, packed = projected
            memory.append(Entry(visit.pass_index, visit.place, sizes, None, keys, values, packed))
        elif visit.writes:
            memory.append(Entry(visit.pass_index, visit.place, sizes, state, None, None))
        if not visit.reads:
            # The memory, or the projection's backward, keeps x; the next layer may work in place.
            kept = visit.writes and (torch.is_grad_enabled() or self.config.kv_owner == "reader")
            return x.clone() if kept else x
        read = self._attend(projected, sizes, memory, visit)
        read = torch.cat([read, state], dim=-1) if self.config.cat_input else read
        y = self._add(x, read, sizes)
        if self.recorder is not None:
            self.recorder.add_size(visit, x, y)
        return y

    def _add(self, x: Tensor, read: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """The layer's output with what was read: x + gamma * out(read)."""
        if x.is_cuda:  # autocast would have addcmul write float32
            return x + self.out(read, sizes, self.gamma).transpose(1, 2).reshape(x.shape)
        out = self.out(read, sizes).transpose(1, 2).reshape(x.shape)
        return torch.addcmul(x, self.gamma, out)

    def _project(self, state: Tensor) -> Projected:
        if self.project is None:
            none = state[..., :0]
            return Projected(none, none, none, None)
        plain = is_untouched(self.project, nn.Linear)
        wants_rows = triton_attention.is_wanted(state) or not kernels.available(state.device)
        if wants_rows or not (plain and self.use_kernels and kernels.supports(state)):
            packed = Packed(run_linear(self.project, state), self.parts)
            return Projected(*packed.split(), packed)
        # As fast as one product, and the kernels read rows that lie side by side twice as fast.
        weights, biases = self.project.weight.split(self.parts), self.project.bias.split(self.parts)
        pairs = zip(weights, biases, strict=True)
        query, keys, values = (
            F.linear(state, w, b) if len(b) else state[..., :0] for w, b in pairs
        )
        return Projected(query, keys, values, None)

    def _attend(
        self, projected: Projected, sizes: tuple[int, ...], memory: Memory, visit: Visit
    ) -> Tensor:
        """What the heads read, [B, P, H * V]."""
        config, query = self.config, projected.query
        remembered = [self._remember(entry) for entry in memory]
        grid = Grid.of(sizes, [entry.sizes for entry in memory], config.rescale)
        scale = config.key_size**-0.5 / config.temperature
        dropout = config.attention_dropout if self.training else 0.0
        noise = self.random_attention and not self.training
        top_k = None if dropout or noise else self._fused_top_k(query, grid)
        if top_k is not None and self.recorder is None and self.use_kernels:
            read = self._attend_fused(projected, remembered, grid, scale, top_k, memory)
            if read is not None:
                return read
        keys, values = [x.keys for x in remembered], [x.values for x in remembered]
        scores = slot_scores(query, keys, grid, config.heads, scale, config.null_slot)
        if noise:
            scores = torch.randn_like(scores).masked_fill(scores.isneginf(), float("-inf"))
        weights = sparse_weights(scores, config.top_k, config.top_k_mode, dropout)
        if self.recorder is not None:
            labels = self._labels(memory, grid)
            self.recorder.add(visit, weights.unflatten(1, sizes), scores, labels, self)
        return mix_values(weights, values, grid).to(query.dtype)

    def _fused_top_k(self, query: Tensor, grid: Grid) -> int | None:
        """How many slots the kernels keep; None where they do not compute the same."""
        if self.config.top_k_mode == "masked":
            return self.config.top_k
        slots = grid.num_slots + self.config.null_slot
        # On a GPU they would be compiled for each number of slots.
        dense = self.config.top_k_mode == "dense" and not query.is_cuda
        return slots if dense and slots <= MOST_DENSE_SLOTS else None

    def _attend_fused(
        self,
        projected: Projected,
        remembered: list[Projected],
        grid: Grid,
        scale: float,
        top_k: int,
        memory: Memory,
    ) -> Tensor | None:
        """What the heads read, by the kernels for this device; None if there are none.

        What one reader has to pass on to the next one is kept in the entries of the memory.
        """
        config, query = self.config, projected.query
        keys, values = [x.keys for x in remembered], [x.values for x in remembered]
        packed = [x.packed for x in (*remembered, projected) if x.packed is not None]
        common: dict[str, Any] = {"heads": config.heads, "scale": scale, "top_k": top_k}
        options = Options.of(grid, **common, null_slot=config.null_slot)
        if triton_attention.is_compiled(query):
            return operators.attend(query, keys, values, *options)[0]
        done = None
        if len(packed) > len(memory) and triton_attention.supports(query, keys, values, options):
            previous = next((x.handover for x in memory if x.handover is not None), None)
            done = triton_attention.try_to_attend(packed, options, previous)
        if done is not None:
            read, handover = done
            updates = [{"handover": handover}] * len(memory)
        elif kernels.available(query.device) and kernels.supports(query, keys, values):
            read, keys, values = kernels.attend(
                query, keys, values, grid, **common, null_slot=config.null_slot
            )
            updates = [{"keys": k, "values": v} for k, v in zip(keys, values, strict=True)]
        else:
            return None
        if self.config.kv_owner == "source":
            memory[:] = [
                entry._replace(**update) for entry, update in zip(memory, updates, strict=True)
            ]
        return read

    def _remember(self, entry: Entry) -> Projected:
        """An entry's keys and values, which this place makes where readers own them."""
        if entry.state is not None:
            both = run_linear(self.key_values[str(entry.state.shape[-1])], entry.state)
            heads, keys, values = self.config.heads, self.config.key_size, self.config.value_size
            packed = Packed(both, (0, heads * keys, heads * values))
            return Projected(*packed.split(), packed)
        assert entry.keys is not None
        assert entry.values is not None
        return Projected(entry.keys[..., :0], entry.keys, entry.values, entry.packed)

    def _labels(self, memory: Memory, grid: Grid) -> list[Slot]:
        slots = [
            Slot(entry.pass_index, entry.place, offset)
            for entry, source in zip(memory, grid.sources, strict=True)
            for offset in window_offsets(source, grid.target, grid.mode)
        ]
        return slots + [NULL_SLOT] * self.config.null_slot


def set_random_attention(module: nn.Module, on: bool) -> None:
    """Switch the paper's ablation in a built network: outside training, noise for scores."""
    for place in module.modules():
        if isinstance(place, Place):
            place.random_attention = on
