"""`RIM_LSTM` and `RIM_GRU`: stacks of RIM layers, called like `nn.LSTM` and `nn.GRU`.

`RIM_LSTM(600, 300, 6, 4)` stands where `nn.LSTM(600, 300)` stood. Differences from `nn.LSTM`:
the two positional arguments `num_rims` and `num_active`; no `bias` and no `proj_size`; `forward`
also takes a `reset` mask. What a layer hands to the one above is the variant's `pass_inactive` and
`block_inactive_gradient`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rl_nfm.rims.cells import RIMGRUCell, RIMLSTMCell
from rl_nfm.rims.variants import Variant

LSTMState = tuple[Tensor, Tensor]


class _RIMLayers(nn.Module):
    """What `RIM_LSTM` and `RIM_GRU` share. D directions, L layers; other shapes as in `cells`."""

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

    def flatten_parameters(self) -> None:
        """Does nothing: for callers that have nn.LSTM lay its weights out for cuDNN."""

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for cell in self.cells:
            cell.reset_parameters()  # pyright: ignore[reportCallIssue]

    def run(
        self, x: Tensor | PackedSequence, state: tuple[Tensor, ...] | None, reset: Tensor | None
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, ...], Tensor]:
        """`forward`, with the state always a tuple, and which RIMs were updated.

        Returns:
            output, state, and bool [L * D, T, B, n] (also when `batch_first`; without B where the
            input has none; in the order of the caller's sequences when packed).
        """
        if isinstance(x, PackedSequence):
            return self._run_packed(x, state, reset)
        self._check_input(x, reset)
        if x.dim() == 2:
            state = None if state is None else tuple(part.unsqueeze(1) for part in state)
            reset = None if reset is None else reset.unsqueeze(1)
            output, state, active = self._run(x.unsqueeze(1), state, reset, None)
            return output.squeeze(1), tuple(part.squeeze(1) for part in state), active.squeeze(2)
        if self.batch_first:
            reset = None if reset is None else reset.t()
            output, state, active = self._run(x.transpose(0, 1), state, reset, None)
            return output.transpose(0, 1), state, active
        return self._run(x, state, reset, None)

    def _run_packed(
        self, packed: PackedSequence, state: tuple[Tensor, ...] | None, reset: Tensor | None
    ) -> tuple[PackedSequence, tuple[Tensor, ...], Tensor]:
        x, lengths = pad_packed_sequence(packed)  # also undoes the sorting
        if reset is not None and self.batch_first:
            reset = reset.t()
        self._check_input(x, reset, batch_first=False)
        valid = torch.arange(len(x), device=x.device)[:, None] < lengths.to(x.device)
        reset = None if reset is None else reset & valid
        output, state, active = self._run(x, state, reset, valid)
        order = packed.sorted_indices
        if order is None:
            repacked = pack_padded_sequence(output, lengths)
        else:
            repacked = pack_padded_sequence(output[:, order], lengths[order.cpu()])
        repacked = PackedSequence(
            repacked.data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
        )
        return repacked, state, active

    def _check_input(
        self, x: Tensor, reset: Tensor | None, batch_first: bool | None = None
    ) -> None:
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size:
            raise ValueError(
                f"input: shape {tuple(x.shape)} is not allowed, must be 2-D or 3-D "
                f"with {self.input_size} features"
            )
        steps = x.shape[1 if self._is_batch_first(x, batch_first) else 0]
        if steps == 0:
            raise ValueError(f"input: shape {tuple(x.shape)} has no step")
        if reset is not None and reset.shape != x.shape[:-1]:
            raise ValueError(
                f"reset: shape {tuple(reset.shape)} is not allowed, must be {tuple(x.shape[:-1])}"
            )

    def _is_batch_first(self, x: Tensor, batch_first: bool | None) -> bool:
        return x.dim() == 3 and (self.batch_first if batch_first is None else batch_first)

    def _run(
        self,
        x: Tensor,
        state: tuple[Tensor, ...] | None,
        reset: Tensor | None,
        valid: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """All layers of x [T, B, F]."""
        directions = 2 if self.bidirectional else 1
        self._check_state(state, x.shape[1])
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
        return x, tuple(map(torch.stack, zip(*states, strict=True))), torch.stack(actives)

    def _check_state(self, state: tuple[Tensor, ...] | None, batch: int) -> None:
        shape = (len(self.cells), batch, self.hidden_size)
        for part in state or ():
            if part.shape != shape:
                raise ValueError(
                    f"state: shape {tuple(part.shape)} is not allowed, must be {shape}"
                )


class RIM_LSTM(_RIMLayers):
    """RIMs with LSTM blocks, called like `nn.LSTM`; see `__init__` for the arguments."""

    cell_type = RIMLSTMCell

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: LSTMState | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, LSTMState]:
        """Run the layers.

        Args:
            input: [T, B, F], with `batch_first` [B, T, F], without batch [T, F], or packed.
            hx: (h, c), each [L * D, B, H] (without batch [L * D, H]); None: zeros.
            reset: bool [T, B], in the order of the input; the state is zeroed before step t where
                true, and a backward layer's state after it: nothing crosses that border.

        Returns:
            output [T, B, D * H], in the form of the input, and the last (h, c).

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
        self, input: Tensor | PackedSequence, hx: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
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
