"""The parameters of one layer of Recurrent Independent Mechanisms and one or many of its steps.

Goyal et al., "Recurrent Independent Mechanisms" (arXiv 1909.10893), in the form of the authors'
code unless a variant says otherwise (`variants.py`). At each step n RIMs of size s = H / n

1. weigh the input against a null slot: a_i = sigmoid(h_i Wq_i . x Wk / 8), input_i = a_i x Wv;
2. of which the k with the least weight on the null slot are active (no gradient through this);
3. compute a candidate state with their own LSTM or GRU block;
4. read from each other's candidates with 4 heads, and add sigmoid(gate) * tanh(linear) of that;
5. keep their state, bit for bit, where inactive.

Deviations, all without effect on what is computed: blocks are stored as blocks and not in a dense
matrix that is cleared of all else; parameters that never reach the output do not exist. a_i is a
scalar, so the input's part of the gates is a_i (x Wv Wi) and is formed for all steps at once, as
is Wq_i (x Wk), whose product with the state is the logit. Among equal logits (as at a zero state)
the lower index is active. In all forms dropout acts where the authors' code has it: on what is read
of the input (before the product with a_i, which is the same) and inside the tanh of step 4.

Shapes: T time steps, B batch (`*B`: or none), F input size, H hidden size, n RIMs.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rl_nfm.rims.calling import take_input
from rl_nfm.rims.parameters import check_sizes, uniform_
from rl_nfm.rims.products import SequenceInputs
from rl_nfm.rims.step import StepSpec, StepWeights
from rl_nfm.rims.unroll import unroll
from rl_nfm.rims.variants import Variant, find_variant


class _RIMCell(nn.Module):
    """What LSTM and GRU cells share."""

    kind: ClassVar[Literal["lstm", "gru"]]
    gates: ClassVar[int]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_rims: int,
        num_active: int,
        *,
        variant: str | Variant = "official",
        rim_dropout: float = 0.1,
        compiled: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        """Create the parameters; arguments as in `RIM_LSTM`."""
        super().__init__()
        check_sizes(input_size, hidden_size, num_rims, num_active, rim_dropout)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.num_rims, self.num_active = num_rims, num_active
        self.variant = find_variant(variant)
        self.rim_dropout, self.compiled = rim_dropout, compiled
        form, size = self.variant, hidden_size // num_rims
        value_size = form.input_value_size or 4 * size
        keys, values = form.input_heads * form.input_key_size, form.input_heads * value_size
        read = form.heads * (form.value_size or size)
        gated = form.communication == "gated"

        def new(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.query = new(num_rims, size, keys)
        self.key = new(input_size, form.input_slots * keys)
        self.value = new(input_size, form.input_slots * values)
        self.key_bias = new(keys) if form.input_bias else None
        self.value_bias = new(values) if form.input_bias else None
        self.weight_ih = new(value_size, num_rims, self.gates * size)
        self.weight_hh = new(num_rims, size, self.gates * size)
        self.bias_ih = new(num_rims, self.gates * size) if form.cell_bias else None
        self.bias_hh = new(num_rims, self.gates * size) if form.cell_bias else None
        self.project = new(num_rims, size, 2 * form.heads * form.key_size + read)
        grouped = form.communication == "grouped"
        self.output = new(num_rims if grouped else 1, read, size * (1 + gated))
        self.output_bias = None if grouped else new(size * (1 + gated))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: normal of deviation 0.01 where RIMs have their own projections.

        The blocks are uniform within 1/sqrt(H) (dido1998: 1/sqrt(s)), and shared linear maps
        PyTorch's default.
        """
        as_authors = not self.variant.input_bias
        for weight in (self.query, self.project):
            nn.init.normal_(weight, std=0.01)
        for weight, bias in ((self.key, self.key_bias), (self.value, self.value_bias)):
            if as_authors:
                nn.init.normal_(weight, std=0.01)
            else:
                uniform_(self.input_size, weight, bias)
        width = self.hidden_size if as_authors else self.hidden_size // self.num_rims
        uniform_(width, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        if self.output_bias is None:
            nn.init.normal_(self.output, std=0.01)
        else:
            uniform_(self.output.shape[1], self.output, self.output_bias)

    def extra_repr(self) -> str:
        """See `nn.Module.extra_repr`."""
        return f"{self.input_size}, {self.hidden_size}, {self.num_rims}, {self.num_active}"

    def run(
        self,
        x: Float[Tensor, "T B F"],
        hidden: Float[Tensor, "B H"] | None = None,
        cell: Float[Tensor, "B H"] | None = None,
        *,
        reset: Bool[Tensor, "T B"] | None = None,
        valid: Bool[Tensor, "T B"] | None = None,
    ) -> tuple[
        Float[Tensor, "T B H"],
        Float[Tensor, "B H"],
        Float[Tensor, "B H"] | None,
        Bool[Tensor, "T B n"],
    ]:
        """All steps.

        Args:
            x: the inputs of all steps.
            hidden: state before the first step; None: zeros.
            cell: likewise, only for an LSTM.
            reset: where true, the state is zeroed before the step.
            valid: where false, the state is kept and the input ignored.

        Returns:
            Hidden states of all steps, the last hidden state, the last cell state (None for a GRU)
            and which RIMs were updated.

        Raises:
            ValueError: a wrong shape, or another type than the parameters', except under autocast.
        """
        if x.dim() != 3 or x.shape[-1] != self.input_size:
            raise ValueError(
                f"input: shape {tuple(x.shape[1:])} of a step is not allowed, must be "
                f"[B, {self.input_size}]"
            )
        for part in (hidden, cell):
            if part is not None and part.shape != (x.shape[1], self.hidden_size):
                raise ValueError(
                    f"state: shape {tuple(part.shape)} is not allowed, must be "
                    f"{(x.shape[1], self.hidden_size)}"
                )
        x = take_input(x, self.query.dtype, valid)
        if hidden is None:
            hidden = x.new_zeros(x.shape[1], self.hidden_size)
        if cell is None and self.kind == "lstm":
            cell = torch.zeros_like(hidden)
        with torch.autocast(x.device.type, enabled=False):
            weights, sequence = self._prepare(x)
            result = unroll(
                self._spec(),
                weights,
                sequence._replace(valid=valid, reset=reset),
                self._split(hidden),
                None if cell is None else self._split(cell),
                compiled=self.compiled,
            )
        last_cell = None if result.cell is None else self._join(result.cell)
        return result.output.flatten(2), self._join(result.hidden), last_cell, result.active

    def _split(self, state: Tensor) -> Tensor:
        """[B, H] to [n, B, s]."""
        state = state.to(self.query.dtype)
        return state.unflatten(-1, (self.num_rims, -1)).transpose(0, 1).contiguous()

    def _join(self, state: Tensor) -> Tensor:
        return state.transpose(0, 1).flatten(1)

    def _spec(self) -> StepSpec:
        form = self.variant
        return StepSpec(
            cell=self.kind,
            num_active=self.num_active,
            gate=form.input_gate,
            slots=form.input_slots,
            mask_input=form.mask_input,
            source=form.source,
            heads=form.heads,
            key_size=form.key_size,
        )

    def _prepare(self, x: Tensor) -> tuple[StepWeights, SequenceInputs]:
        """Weights of a step, and what of all steps does not depend on the state."""
        n = self.num_rims
        # What ranks the RIMs is never in half precision: a rounding error there is another choice.
        wide = torch.promote_types(x.dtype, torch.float32)
        form = self.variant
        query = self.query.to(wide) * (form.input_key_size**-0.5 / form.input_heads)
        query = query.permute(2, 0, 1)  # [keys, n, s]
        keys = (x.to(wide) @ self.key.to(wide)).unflatten(-1, (form.input_slots, -1))
        key_query = (keys @ query.flatten(1)).unflatten(-1, (n, -1))  # [T, B, slots, n, s]
        key_query = key_query.permute(3, 0, 1, 2, 4).flatten(-2)
        sequence = SequenceInputs(x @ self._mean_of_heads(self.value), key_query=key_query)
        if self.training and self.rim_dropout > 0:
            size = self.hidden_size // n
            width = sequence.value.shape[-1] // form.input_slots
            keep, scale = dropout_mask((n, *x.shape[:2], width), self.rim_dropout, x.device)
            shown, _ = dropout_mask((n, *x.shape[:2], size), self.rim_dropout, x.device)
            sequence = sequence._replace(
                value=sequence.value * scale, keep=keep, dropout=shown * x.new_full((), scale)
            )
        base, hidden_bias, rank_query = self._constants(query)
        weights = StepWeights(
            self.weight_ih,
            self.weight_hh,
            base,
            hidden_bias,
            rank_query,
            torch.ones(n, n, dtype=torch.bool, device=x.device).tril(-1).unsqueeze(-1),
            self.project,
            self.output,
            None if self.output_bias is None else self.output_bias.view(1, 1, -1),
        )
        return weights, sequence

    def _mean_of_heads(self, values: Tensor) -> Tensor:
        """Of the heads that read the input, side by side in the last dimension."""
        heads = self.variant.input_heads
        return values if heads == 1 else values.unflatten(-1, (heads, -1)).mean(-2)

    def _constants(self, query: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What is added to the gates, to the hidden product (GRU) and to the ranking."""
        hidden_bias = rank_query = None
        base = self.weight_hh.new_zeros(self.num_rims, self.weight_hh.shape[-1])
        if self.bias_ih is not None and self.bias_hh is not None:
            base = self.bias_ih
            if self.kind == "lstm":
                base = base + self.bias_hh
            else:
                hidden_bias = self.bias_hh.unsqueeze(1)
        if self.key_bias is not None and self.value_bias is not None:
            # With weights a and 1 - a on x Wv + b and on the null value b, what is read is
            # a (x Wv) + b; the null key's logit b . q cancels in a, but not in the ranking.
            bias = self._mean_of_heads(self.value_bias)
            base = base + torch.tensordot(bias, self.weight_ih, 1)
            rank_query = torch.tensordot(self.key_bias.to(query.dtype), query, 1).unsqueeze(1)
        return base.unsqueeze(1), hidden_bias, rank_query


class RIMLSTMCell(_RIMCell):
    """One layer of RIMs with LSTM blocks; called like `nn.LSTMCell`."""

    kind, gates = "lstm", 4

    def forward(
        self,
        input: Float[Tensor, "*B F"],
        hx: tuple[Float[Tensor, "*B H"], Float[Tensor, "*B H"]] | None = None,
    ) -> tuple[Float[Tensor, "*B H"], Float[Tensor, "*B H"]]:
        """The new (h, c) of an input and of hx = (h, c), with a batch or without; None: zeros."""
        hidden, cell = (None, None) if hx is None else hx
        if input.dim() == 1:
            unbatched = None if hidden is None or cell is None else (hidden[None], cell[None])
            hidden, cell = self(input[None], unbatched)
            return hidden[0], cell[0]
        _, hidden, cell, _ = self.run(input.unsqueeze(0), hidden, cell)
        assert cell is not None
        return hidden, cell


class RIMGRUCell(_RIMCell):
    """One layer of RIMs with GRU blocks; called like `nn.GRUCell`."""

    kind, gates = "gru", 3

    def forward(
        self, input: Float[Tensor, "*B F"], hx: Float[Tensor, "*B H"] | None = None
    ) -> Float[Tensor, "*B H"]:
        """The new h of an input and of hx = h, with a batch or without; None: zeros."""
        if input.dim() == 1:
            return self(input[None], None if hx is None else hx[None])[0]
        return self.run(input.unsqueeze(0), hx)[1]


def dropout_mask(shape: tuple[int, ...], p: float, device: torch.device) -> tuple[Tensor, float]:
    """Bool, False with probability p, and the factor 1 / (1 - p); p in multiples of 2^-16.

    Four decisions from each 64-bit random number: drawn one by one as in `nn.functional.dropout`,
    they would take a tenth of the layer's time on the CPU.
    """
    count, drop = math.prod(shape), min(round(p * 2**16), 2**16 - 1)
    size = -(-count // 4)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        # What compiler and vmap can follow; it leaves out one of the 2^64 words.
        words = torch.randint(-(2**63), 2**63 - 1, (size,), dtype=torch.int64, device=device)
    else:
        words = torch.empty(size, dtype=torch.int64, device=device).random_(-(2**63), None)
    chances = words.view(torch.int16)[:count].view(shape)
    return chances >= drop - 2**15, 2**16 / (2**16 - drop)
