"""Being called like `nn.LSTM`: sequences with time or batch first, without a batch, or packed.

Shapes: T time steps, B batch (`*B`: or none), `*TB` time and batch in the order of the caller, F
input size, H hidden size (O: of all directions), L layers times directions, n RIMs.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

State = tuple[Float[Tensor, "L *B H"], ...]
"""Hidden state and, with LSTM blocks, the cell state."""


class SequenceLayers(nn.Module):
    """What stacks of RIMs share.

    Subclasses set the attributes and implement `_run`, which has time first and a batch.
    """

    input_size: int
    hidden_size: int
    batch_first: bool
    cells: nn.ModuleList
    """One for each state: of layers and directions."""

    def flatten_parameters(self) -> None:
        """Does nothing: for callers that have nn.LSTM lay its weights out for cuDNN."""

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for cell in self.cells:
            cell.reset_parameters()  # pyright: ignore[reportCallIssue]

    def run_layers(
        self,
        x: Float[Tensor, "*TB F"] | PackedSequence,
        state: State | None,
        reset: Bool[Tensor, "*TB"] | None,
    ) -> tuple[Float[Tensor, "*TB O"] | PackedSequence, State, tuple[Bool[Tensor, "T *B _"], ...]]:
        """`forward`, with the state always a tuple, and which RIMs were updated.

        Returns:
            Output, state, and for each of `cells` bool [T, B, n] (also when `batch_first`; without
            B where the input has none; in the order of the caller's sequences when packed).
        """
        self._check_parts(state)
        if isinstance(x, PackedSequence):
            return self._run_packed(x, state, reset)
        self._check_input(x, reset)
        if x.dim() == 2:
            state = None if state is None else tuple(part.unsqueeze(1) for part in state)
            reset = None if reset is None else reset.unsqueeze(1)
            output, state, active = self._checked(x.unsqueeze(1), state, reset)
            state, active = (tuple(part.squeeze(1) for part in parts) for parts in (state, active))
            return output.squeeze(1), state, active
        if self.batch_first:
            reset = None if reset is None else reset.t()
            output, state, active = self._checked(x.transpose(0, 1), state, reset)
            return output.transpose(0, 1), state, active
        return self._checked(x, state, reset)

    def _run_packed(
        self, packed: PackedSequence, state: tuple[Tensor, ...] | None, reset: Tensor | None
    ) -> tuple[PackedSequence, tuple[Tensor, ...], tuple[Tensor, ...]]:
        x, lengths = pad_packed_sequence(packed)  # also undoes the sorting
        if reset is not None and self.batch_first:
            reset = reset.t()
        self._check_input(x, reset, batch_first=False)
        valid = torch.arange(len(x), device=x.device)[:, None] < lengths.to(x.device)
        reset = None if reset is None else reset & valid
        output, state, active = self._checked(x, state, reset, valid)
        order = packed.sorted_indices
        if order is None:
            repacked = pack_padded_sequence(output, lengths)
        else:
            repacked = pack_padded_sequence(output[:, order], lengths[order.cpu()])
        repacked = PackedSequence(
            repacked.data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
        )
        return repacked, state, active

    def _check_parts(self, state: State | None) -> None:
        """Refuse a state that is not (h, c), or not h alone, as the blocks have it."""
        names = ("h", "c") if self.cells[0].kind == "lstm" else ("h",)
        if state is None:
            return
        parts = state if isinstance(state, tuple | list) else (state,)
        tensors = all(isinstance(part, Tensor) for part in parts)
        if parts is not state or len(parts) != len(names) or not tensors:
            given = [type(part).__name__ for part in parts]
            must = "(h, c), two tensors" if len(names) == 2 else "h, one tensor"
            raise ValueError(f"state: {', '.join(given)} is not allowed, must be {must}")

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

    def _checked(
        self,
        x: Tensor,
        state: tuple[Tensor, ...] | None,
        reset: Tensor | None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        shape = (len(self.cells), x.shape[1], self.hidden_size)
        for part in () if state is None else state:
            if part.shape != shape:
                raise ValueError(
                    f"state: shape {tuple(part.shape)} is not allowed, must be {shape}"
                )
        return self._run(x, state, reset, valid)

    def _run(
        self,
        x: Float[Tensor, "T B F"],
        state: State | None,
        reset: Bool[Tensor, "T B"] | None,
        valid: Bool[Tensor, "T B"] | None,
    ) -> tuple[Float[Tensor, "T B O"], State, tuple[Bool[Tensor, "T B _"], ...]]:
        """All steps of all layers; where `valid` is false there is padding, and no input."""
        raise NotImplementedError


def take_input(
    x: Float[Tensor, "T B F"], dtype: torch.dtype, valid: Bool[Tensor, "T B"] | None
) -> Float[Tensor, "T B F"]:
    """Inputs in the type of the parameters, and zero where they are not valid.

    Raises:
        ValueError: another type than the parameters', except under autocast.
    """
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"input: {x.dtype} is not allowed, the parameters are {dtype}")
    x = x.to(dtype)
    if valid is not None:
        x = x.masked_fill(~valid.unsqueeze(-1), 0)  # nor does nan there reach a gradient
    return x
