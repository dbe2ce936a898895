"""Bidirectional Recurrent Independent Mechanisms: `BRIM_LSTM` and `BRIM_GRU`.

Mittal et al., "Learning to Combine Top-Down and Bottom-Up Signals in Recurrent Neural Networks with
Attention over Modules" (arXiv 2006.16981), in the form of the authors' code (sarthmit/BRIMs), whose
outputs and gradients it gives on equal weights (form `mnist`, two layers, LSTM and GRU). At
each step t every RIM of layer l weighs, with each of several heads, three slots by attention: the
layer below at step t (for the first layer the input), the layer above at step t - 1 (the topmost
layer has none) and nothing, whose key and value are zero. The k RIMs with the least mean weight on
nothing are active; what follows is a step of RIMs (`rl_nfm.rims.cells`, steps 3 to 5) with those
sizes of the communication that `BRIMVariant` gives. A layer reads all that the other one holds, of
inactive RIMs too, with its gradient.

Deviations. With more than two layers the authors' code has the first layer alone read from above,
and that from the topmost one; here each layer reads the one above it, as the paper describes. With
two layers the two are the same. The others have no effect on what is computed: see `cells`; and the
sizes of the input and of the layers above need not be equal.

Shapes: as in `calling`; in a layer n RIMs of size s = H / n, S numbers of a slot (keys and values).
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from rl_nfm.rims.blocks import gru_forward, lstm_forward
from rl_nfm.rims.calling import SequenceLayers, State, take_input
from rl_nfm.rims.communication import CommunicationWeights, communicate
from rl_nfm.rims.layers import LSTMState
from rl_nfm.rims.parameters import check_sizes, for_each_layer, uniform_
from rl_nfm.rims.sparse import select_active
from rl_nfm.rims.variants import BRIMVariant, find_brim_variant

Kind = Literal["lstm", "gru"]
LayerState = tuple[Float[Tensor, "B H"], ...]
"""Hidden state of one layer, and with LSTM blocks the cell state."""


class BRIMLayer(nn.Module):
    """One layer: its parameters and one step."""

    def __init__(
        self,
        kind: Kind,
        sizes: tuple[int, int, int, int],
        form: BRIMVariant,
        *,
        reads_above: bool,
        rim_dropout: float,
        device: Any = None,
        dtype: Any = None,
    ):
        """Create the parameters. `sizes`: input size, hidden size, RIMs, active RIMs."""
        super().__init__()
        check_sizes(*sizes, rim_dropout)
        self.input_size, self.hidden_size, self.num_rims, self.num_active = sizes
        self.kind, self.form, self.rim_dropout = kind, form, rim_dropout
        n, size = self.num_rims, self.hidden_size // self.num_rims
        read, gates = 4 * size, (4 if kind == "lstm" else 3) * size
        if read % form.input_heads:
            raise ValueError(f"input_heads: {form.input_heads} is not allowed, must divide {read}")
        keys, values = form.input_heads * form.input_key_size, form.heads * form.value_size

        def new(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.query = new(n, size, keys)
        self.below = new(self.input_size, keys + read)
        self.above = new(self.hidden_size, keys + read) if reads_above else None
        self.weight_ih, self.weight_hh = new(n, read, gates), new(n, size, gates)
        self.bias_ih, self.bias_hh = new(n, gates), new(n, gates)
        self.project = new(n, size, 2 * form.heads * form.key_size + values)
        self.output, self.output_bias = new(1, values, 2 * size), new(2 * size)
        earlier = torch.ones(n, n, dtype=torch.bool, device=device).tril(-1).unsqueeze(-1)
        self.register_buffer("earlier", earlier, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: the attention normal of deviation 0.01, all else PyTorch's defaults."""
        for weight in (self.query, self.below, self.above, self.project):
            if weight is not None:
                nn.init.normal_(weight, std=0.01)
        uniform_(self.hidden_size, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        uniform_(self.output.shape[1], self.output, self.output_bias)

    def extra_repr(self) -> str:
        """See `nn.Module.extra_repr`."""
        return f"{self.input_size}, {self.hidden_size}, {self.num_rims}, {self.num_active}"

    def step(
        self,
        slots: list[Float[Tensor, "B S"]],
        state: LayerState,
        valid: Bool[Tensor, " B"] | None = None,
    ) -> tuple[LayerState, Bool[Tensor, "B n"]]:
        """New state, and which RIMs were updated.

        Args:
            slots: keys and values of what is read, made by `below` or `above`.
            state: before the step.
            valid: the state is kept where false.
        """
        hidden, *cell = (self._split(part) for part in state)
        read, active = self._read(slots, hidden)
        if valid is not None:
            active = active & valid.view(1, -1, 1)
        pre = torch.baddbmm(self.bias_ih.unsqueeze(1), read, self.weight_ih)
        bias = self.bias_hh.unsqueeze(1)
        if cell:
            candidate, *new_cell, _ = lstm_forward(pre + bias, hidden, cell[0], self.weight_hh)
        else:
            candidate, *new_cell, _ = gru_forward(pre, hidden, self.weight_hh, bias)
        # What the others read from an inactive RIM sends no gradient into its state.
        shown = torch.where(active, candidate, candidate.detach())
        keep = self._dropped(torch.ones_like(candidate)) if self._drops else None
        weights = CommunicationWeights(self.project, self.output, self.output_bias.view(1, 1, -1))
        update, _ = communicate(weights, self.form.heads, self.form.key_size, shown, keep)
        pairs = zip((candidate + update, *new_cell), (hidden, *cell), strict=True)
        new_state = (torch.where(active, new, old).transpose(0, 1).flatten(1) for new, old in pairs)
        return tuple(new_state), active.squeeze(-1).t()

    def _read(self, slots: list[Tensor], hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What each RIM reads, [n, B, 4 s], and which are active, bool [n, B, 1]."""
        heads, keys = self.form.input_heads, self.query.shape[-1]
        wide = torch.promote_types(hidden.dtype, torch.float32)  # what ranks is never in half
        query = torch.bmm(hidden.to(wide), self.query.to(wide)).unflatten(-1, (heads, -1))
        both = torch.stack(slots)  # [S, B, keys + values]
        key = both[..., :keys].unflatten(-1, (heads, -1)).to(wide)
        value = both[..., keys:].unflatten(-1, (heads, -1))
        logits = torch.einsum("nbhd,sbhd->snbh", query, key) / math.sqrt(self.form.input_key_size)
        weights = torch.cat((torch.zeros_like(logits[:1]), logits)).softmax(0)
        null = weights[0].detach().mean(-1, keepdim=True)
        active = select_active(-null, self.num_active, self.get_buffer("earlier"))
        read = torch.einsum("snbh,sbhe->nbhe", weights[1:].to(value.dtype), value)
        return self._dropped(read.flatten(-2)), active

    @property
    def _drops(self) -> bool:
        return self.training and self.rim_dropout > 0

    def _dropped(self, x: Tensor) -> Tensor:
        return dropout(x, self.rim_dropout) if self._drops else x

    def _split(self, state: Tensor) -> Tensor:
        """[B, H] to [n, B, s]."""
        return state.unflatten(-1, (self.num_rims, -1)).transpose(0, 1)


class _BRIMLayers(SequenceLayers):
    """What `BRIM_LSTM` and `BRIM_GRU` share."""

    kind: Kind

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_rims: int | Sequence[int],
        num_active: int | Sequence[int],
        num_layers: int = 2,
        batch_first: bool = False,
        *,
        variant: str | BRIMVariant = "mnist",
        rim_dropout: float = 0.1,
        device: Any = None,
        dtype: Any = None,
    ):
        """Create the layers.

        Args:
            input_size: features of one input.
            hidden_size: of all RIMs of one layer together.
            num_rims: RIMs of a layer; divides `hidden_size`. A sequence: of each layer, lowest
                first (published: 6, 3).
            num_active: how many of them are updated at a step; likewise (published: 4, 2).
            num_layers: layers; with one, no RIM reads from above.
            batch_first: inputs and outputs are [B, T, ...] instead of [T, B, ...].
            variant: a name in `BRIM_VARIANTS`, or a `BRIMVariant`.
            rim_dropout: of what RIMs read and of what they write to each other (published: 0.1).
            device: of the parameters.
            dtype: of the parameters, in which all is computed, also under autocast.

        Raises:
            ValueError: a value out of range, sequences of another length than `num_layers`, or an
                unknown variant.
        """
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers: {num_layers!r} is not allowed, must be at least 1")
        self.input_size, self.hidden_size = input_size, hidden_size
        self.num_layers, self.batch_first = num_layers, batch_first
        form = find_brim_variant(variant)
        rims = for_each_layer("num_rims", num_rims, num_layers)
        active = for_each_layer("num_active", num_active, num_layers)
        self.cells = nn.ModuleList(
            BRIMLayer(
                self.kind,
                (hidden_size if layer else input_size, hidden_size, rims[layer], active[layer]),
                form,
                reads_above=layer < num_layers - 1,
                rim_dropout=rim_dropout,
                device=device,
                dtype=dtype,
            )
            for layer in range(num_layers)
        )

    def _run(
        self,
        x: Float[Tensor, "T B F"],
        state: State | None,
        reset: Bool[Tensor, "T B"] | None,
        valid: Bool[Tensor, "T B"] | None,
    ) -> tuple[Float[Tensor, "T B O"], State, tuple[Bool[Tensor, "T B _"], ...]]:
        dtype = self._layers[0].query.dtype
        x = take_input(x, dtype, valid)
        if state is None:
            zeros = x.new_zeros(self.num_layers, x.shape[1], self.hidden_size)
            state = (zeros,) * (2 if self.kind == "lstm" else 1)
        states = list(zip(*(part.to(dtype) for part in state), strict=True))  # of each layer
        outputs, actives = [], []
        with torch.autocast(x.device.type, enabled=False):
            inputs = x @ self._layers[0].below
            for t in range(len(x)):
                if reset is not None:
                    border = reset[t].unsqueeze(-1)
                    states = [tuple(part.masked_fill(border, 0) for part in s) for s in states]
                states, active = self._step(inputs[t], states, None if valid is None else valid[t])
                outputs.append(states[-1][0])
                actives.append(active)
        last = tuple(map(torch.stack, zip(*states, strict=True)))
        return torch.stack(outputs), last, tuple(map(torch.stack, zip(*actives, strict=True)))

    @property
    def _layers(self) -> list[BRIMLayer]:
        return [layer for layer in self.cells if isinstance(layer, BRIMLayer)]

    def _step(
        self, lowest: Tensor, states: list[LayerState], valid: Tensor | None
    ) -> tuple[list[LayerState], list[Tensor]]:
        """New states of all layers, and which RIMs were updated, from the lowest's first slot."""
        new_states, actives = [], []
        for index, layer in enumerate(self._layers):
            slots = [new_states[-1][0] @ layer.below if index else lowest]
            if layer.above is not None:
                slots.append(states[index + 1][0] @ layer.above)
            state, active = layer.step(slots, states[index], valid)
            new_states.append(state)
            actives.append(active)
        return new_states, actives


class BRIM_LSTM(_BRIMLayers):
    """Bidirectional RIMs with LSTM blocks, called like `RIM_LSTM`; arguments: `__init__`."""

    kind = "lstm"

    def forward(
        self,
        input: Float[Tensor, "*TB F"] | PackedSequence,
        hx: LSTMState | None = None,
        reset: Bool[Tensor, "*TB"] | None = None,
    ) -> tuple[Float[Tensor, "*TB O"] | PackedSequence, LSTMState]:
        """Run the layers.

        Args:
            input: [T, B, F], with `batch_first` [B, T, F], without batch [T, F], or packed.
            hx: (h, c), each [L, B, H] (without batch [L, H]), lowest layer first; None: zeros.
            reset: bool [T, B], in the order of the input; the state of all layers is zeroed before
                step t where true.

        Returns:
            The output of the topmost layer, in the form of the input, and the last (h, c).

        Raises:
            ValueError: as `RIM_LSTM.forward`.
        """
        output, (hidden, cell), _ = self.run_layers(input, hx, reset)
        return output, (hidden, cell)


class BRIM_GRU(_BRIMLayers):
    """Bidirectional RIMs with GRU blocks, called like `RIM_GRU`; arguments: `__init__`."""

    kind = "gru"

    def forward(
        self,
        input: Float[Tensor, "*TB F"] | PackedSequence,
        hx: Float[Tensor, "L *B H"] | None = None,
        reset: Bool[Tensor, "*TB"] | None = None,
    ) -> tuple[Float[Tensor, "*TB O"] | PackedSequence, Float[Tensor, "L *B H"]]:
        """As `BRIM_LSTM.forward`, with h alone as the state."""
        output, (hidden,), _ = self.run_layers(input, None if hx is None else (hx,), reset)
        return output, hidden
