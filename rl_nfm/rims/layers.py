"""`RIM_LSTM` and `RIM_GRU`: stacks of RIM layers, called like `nn.LSTM` and `nn.GRU`.

`RIM_LSTM(600, 300, 6, 4)` stands where `nn.LSTM(600, 300)` stood. Differences from `nn.LSTM`:
the two positional arguments `num_rims` and `num_active`; no `bias` and no `proj_size`; `forward`
also takes a `reset` mask. What a layer hands to the one above is the variant's `pass_inactive` and
`block_inactive_gradient`.

Shapes: as in `calling`.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rl_nfm.rims.calling import SequenceLayers, State
from rl_nfm.rims.cells import RIMGRUCell, RIMLSTMCell
from rl_nfm.rims.variants import Variant

LSTMState = tuple[Float[Tensor, "L *B H"], Float[Tensor, "L *B H"]]


class _RIMLayers(SequenceLayers):
    """What `RIM_LSTM` and `RIM_GRU` share."""

    cell_type: type[RIMLSTMCell] | type[RIMGRUCell]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_rims: int,
        num_active: int,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        variant: str | Variant = "official",
        rim_dropout: float = 0.1,
        compiled: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        """Create the layers.

        Args:
            input_size: features of one input.
            hidden_size: of all RIMs of one layer and direction together.
            num_rims: RIMs of one layer and direction; divides `hidden_size`.
            num_active: how many of them are updated at a step.
            num_layers: layers, each reading the hidden states of the one below.
            batch_first: inputs and outputs are [B, T, ...] instead of [T, B, ...].
            dropout: of the outputs between layers, as in `nn.LSTM`.
            bidirectional: add a layer that runs from the last step to the first.
            variant: a name in `VARIANTS`, or a `Variant`.
            rim_dropout: of what RIMs read from the input and from each other (published: 0.1).
            compiled: compile a step with `torch.compile`: a minute at first, then fewer kernels.
            device: of the parameters.
            dtype: of the parameters, in which all is computed, also under autocast.

        Raises:
            ValueError: a value out of range, or an unknown variant.
        """
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers: {num_layers!r} is not allowed, must be at least 1")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout: {dropout!r} is not allowed, must be in [0, 1]")
        self.input_size, self.hidden_size = input_size, hidden_size
        self.num_layers, self.batch_first = num_layers, batch_first
        self.dropout, self.bidirectional = dropout, bidirectional
        directions = 2 if bidirectional else 1
        self.cells = nn.ModuleList(
            self.cell_type(
                input_size if layer == 0 else directions * hidden_size,
                hidden_size,
                num_rims,
                num_active,
                variant=variant,
                rim_dropout=rim_dropout,
                compiled=compiled,
                device=device,
                dtype=dtype,
            )
            for layer in range(num_layers)
            for _ in range(directions)
        )

    def run(
        self,
        x: Float[Tensor, "*TB F"] | PackedSequence,
        state: State | None,
        reset: Bool[Tensor, "*TB"] | None,
    ) -> tuple[Float[Tensor, "*TB O"] | PackedSequence, State, Bool[Tensor, "L T *B n"]]:
        """As `run_layers`, with what was updated as one tensor."""
        output, state, active = self.run_layers(x, state, reset)
        return output, state, torch.stack(active)

    def _run(
        self,
        x: Float[Tensor, "T B F"],
        state: State | None,
        reset: Bool[Tensor, "T B"] | None,
        valid: Bool[Tensor, "T B"] | None,
    ) -> tuple[Float[Tensor, "T B O"], State, tuple[Bool[Tensor, "T B _"], ...]]:
        """All layers."""
        directions = 2 if self.bidirectional else 1
        states, actives = [], []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                before = () if state is None else tuple(part[index] for part in state)
                run = _run_backward if direction else _run_forward
                cell = self.cells[index]
                assert isinstance(cell, RIMLSTMCell | RIMGRUCell)
                output, *after, active = run(cell, x, before, reset, valid)
                outputs.append(
                    output if layer == self.num_layers - 1 else _pass_on(cell, output, active)
                )
                states.append([part for part in after if part is not None])
                actives.append(active)
            x = torch.cat(outputs, -1) if directions > 1 else outputs[0]
            if layer < self.num_layers - 1:
                x = nn.functional.dropout(x, self.dropout, self.training)
        return x, tuple(map(torch.stack, zip(*states, strict=True))), tuple(actives)


class RIM_LSTM(_RIMLayers):
    """RIMs with LSTM blocks, called like `nn.LSTM`; see `__init__` for the arguments."""

    cell_type = RIMLSTMCell

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
            reset: bool [T, B], in the order of the input; the state is zeroed before step t where
                true, and a backward layer's state after it: nothing crosses that border.

        Returns:
            The output of the topmost layer, in the form of the input, and the last (h, c).

        Raises:
            ValueError: shapes that do not fit, no step, or another type than the parameters have
                (under autocast any: it is brought to theirs).
        """
        output, (hidden, cell), _ = self.run(input, hx, reset)
        return output, (hidden, cell)


class RIM_GRU(_RIMLayers):
    """RIMs with GRU blocks, called like `nn.GRU`; see `__init__` for the arguments."""

    cell_type = RIMGRUCell

    def forward(
        self,
        input: Float[Tensor, "*TB F"] | PackedSequence,
        hx: Float[Tensor, "L *B H"] | None = None,
        reset: Bool[Tensor, "*TB"] | None = None,
    ) -> tuple[Float[Tensor, "*TB O"] | PackedSequence, Float[Tensor, "L *B H"]]:
        """As `RIM_LSTM.forward`, with h alone as the state."""
        output, (hidden,), _ = self.run(input, None if hx is None else (hx,), reset)
        return output, hidden


def _pass_on(cell: RIMLSTMCell | RIMGRUCell, output: Tensor, active: Tensor) -> Tensor:
    """What the layer above reads of output [T, B, H], with active RIMs [T, B, n]."""
    form = cell.variant
    if form.pass_inactive and not form.block_inactive_gradient:
        return output
    mask = active.repeat_interleave(cell.hidden_size // cell.num_rims, -1)
    return torch.where(mask, output, output.detach() if form.pass_inactive else 0.0)


def _run_forward(
    cell: RIMLSTMCell | RIMGRUCell,
    x: Tensor,
    state: tuple[Tensor, ...],
    reset: Tensor | None,
    valid: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    return cell.run(x, *state, reset=reset, valid=valid)


def _run_backward(
    cell: RIMLSTMCell | RIMGRUCell,
    x: Tensor,
    state: tuple[Tensor, ...],
    reset: Tensor | None,
    valid: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """From the last step to the first. A border before step t is, on the way back, one after it."""
    if reset is not None:
        reset = torch.cat((torch.zeros_like(reset[:1]), reset[1:].flip(0)))
    valid = None if valid is None else valid.flip(0)
    output, hidden, memory, active = cell.run(x.flip(0), *state, reset=reset, valid=valid)
    return output.flip(0), hidden, memory, active.flip(0)
