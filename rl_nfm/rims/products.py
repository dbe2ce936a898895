"""The inputs and results of all steps, and the matrix products that give gradients of the weights.

The backward of a step returns the gradients of what the step multiplied with weights. Here those of
several steps together become gradients of the weights and of the inputs. The gates of an inactive
RIM have no gradient, so that on the CPU only the rows of active ones are multiplied, RIM by RIM. A
GPU, on which each kernel costs more than its work, multiplies all RIMs and steps at once.

In the letters of `step`, with x what is read of the input and W its weight (drive = x W), U that of
the hidden product p, and sums over steps and batch:

    dU = sum h^T dp       dbase = sum da        dW = sum x^T (g da)
    dx = (g da) W^T       dkey_query = dl h

Shapes as in `step`, and T time steps; SF is S times F. Tests do not check those of this file:
`torch.compile` makes these objects inside of its graphs, where it fails on checked methods.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rl_nfm.rims.products_at_once import StepBlock, drive_at_once, multiply_all
from rl_nfm.rims.step import (
    StepGradients,
    StepInputs,
    StepSaved,
    StepSpec,
    StepWeights,
    not_none,
)

CPU_STEPS_PER_PRODUCT = 8
"""How many steps a CPU multiplies together: few enough for the cache."""


class SequenceInputs(NamedTuple):
    """What the steps read besides the state."""

    value: Float[Tensor, "T B SF"]
    """What is read of the input, by slot."""
    keep: Bool[Tensor, "n T B F"] | None = None
    """Where False, a RIM reads 0 instead (dropout)."""
    key_query: Float[Tensor, "n T B Ss"] | None = None
    """See `StepInputs`."""
    valid: Bool[Tensor, "T B"] | None = None
    """Where False, every state is kept."""
    dropout: Float[Tensor, "n T B s"] | None = None
    """See `StepInputs`."""
    reset: Bool[Tensor, "T B"] | None = None
    """Where True, the state is zeroed before the step."""

    def drive(self, weight: Float[Tensor, "F n G"]) -> Float[Tensor, "n T B SG"]:
        """The products of what all steps read with the input's weight."""
        slots = self.value.split(len(weight), -1)
        if len(slots) > 1:
            return torch.cat([self._replace(value=x).drive(weight) for x in slots], -1)
        if self.keep is None:
            flat = self.value @ weight.flatten(1)  # [T, B, n G]
            return flat.unflatten(-1, weight.shape[1:]).permute(2, 0, 1, 3)
        if self.value.device.type != "cpu":
            return drive_at_once(self.value, self.keep, weight)
        drives = [  # one by one: the masked copies stay in the cache
            torch.where(keep, self.value, 0.0).flatten(0, 1) @ weight[:, i]
            for i, keep in enumerate(self.keep)
        ]
        return torch.stack(drives).unflatten(1, self.value.shape[:2])

    def step_inputs(self, t: int, drive: Float[Tensor, "n T B SG"]) -> StepInputs:
        """The inputs of step t."""
        return StepInputs(
            drive[:, t],
            None if self.key_query is None else self.key_query[:, t],
            None if self.valid is None else self.valid[t].view(1, -1, 1),
            None if self.dropout is None else self.dropout[:, t],
        )

    def reset_state(self, state: Float[Tensor, "n B s"], t: int) -> Float[Tensor, "n B s"]:
        """The state with zeros where step t begins anew; also for its gradient on the way back."""
        return state if self.reset is None else state.masked_fill(self.reset[t].view(1, -1, 1), 0)


class LayerCall(NamedTuple):
    """The arguments of a loop over the steps, forward and backward, besides the states."""

    spec: StepSpec
    weights: StepWeights
    sequence: SequenceInputs
    drive: Float[Tensor, "n T B SG"]
    """`SequenceInputs.drive` of these."""


class Unrolled(NamedTuple):
    """The results of all steps."""

    output: Float[Tensor, "T B n s"]
    hidden: Float[Tensor, "n B s"]
    """After the last step."""
    cell: Float[Tensor, "n B s"] | None
    """Likewise; None for a GRU."""
    active: Bool[Tensor, "T B n"]
    """Which states were updated."""


class Kept(NamedTuple):
    """What one step leaves for its backward."""

    hidden: Float[Tensor, "n B s"]
    """Before the step."""
    cell: Float[Tensor, "n B s"] | None
    saved: StepSaved


class Products:
    """Gradients of the weights and of the sequence, which grow with each step that is added."""

    weights: StepWeights
    sequence: SequenceInputs

    def __init__(
        self, weights: StepWeights, sequence: SequenceInputs, *, at_once: bool | None = None
    ):
        """`at_once`: multiply all steps and RIMs together; None: unless they are on a CPU."""
        value, key_query = sequence.value, sequence.key_query
        on_cpu = value.device.type == "cpu"
        self.at_once = not on_cpu if at_once is None else at_once
        self.of_weights, self.value, self.keep = weights, value, sequence.keep
        self.limit = len(value) if self.at_once else CPU_STEPS_PER_PRODUCT
        # Their number is known only when the step has run: a GPU would have to wait for it, and a
        # compiler cannot make a graph of it.
        self.active_only = on_cpu and not torch.compiler.is_compiling()
        self.pending: list[tuple[Kept, StepGradients]] = []
        self.sequence = SequenceInputs(
            value if self.at_once else value.new_zeros(value.shape),
            key_query=None if key_query is None else _empty_like(key_query),
        )
        if not self.at_once:
            zeros = [None if w is None else w.new_zeros(w.shape) for w in weights]
            self.weights = StepWeights(*zeros)._replace(earlier=None)  # pyright: ignore

    def add(self, t: int, kept: Kept, gradients: StepGradients) -> None:
        """Add the gradients of step t; steps must come from last to first."""
        self.pending.append((kept, gradients))
        if len(self.pending) == self.limit or t == 0:
            kept_steps, left_steps = zip(*reversed(self.pending), strict=True)
            self.pending.clear()
            span = slice(t, t + len(kept_steps))
            block = _side_by_side(kept_steps, left_steps)
            if self.sequence.key_query is not None:
                logit = _stack(x.logit for x in left_steps)
                of_key_query = (block.hidden.unsqueeze(2) * logit.unsqueeze(-1)).flatten(2)
                shape = (len(kept_steps), of_key_query.shape[1] // len(kept_steps))
                self.sequence.key_query[:, span] = of_key_query.unflatten(1, shape)
            self.multiply(span, block)

    def multiply(self, span: slice, block: StepBlock) -> None:
        """Add the products of the steps `span`; the gradient of `key_query` is the caller's."""
        if self.at_once:
            value, keep = self.value, self.keep
            self.weights, of_value = multiply_all(self.of_weights, value, keep, block)
            self.sequence = self.sequence._replace(value=of_value)
            return
        weights = self.weights
        weights.base.add_(block.gates.sum(1, keepdim=True))
        if weights.hidden_bias is not None:
            weights.hidden_bias.add_(block.product.sum(1, keepdim=True))
        self._multiply_blocks(span, block)
        if weights.project is None or weights.output is None:
            return
        shown, project = not_none(block.shown), not_none(block.project)
        read, output = not_none(block.read), not_none(block.output)
        weights.project.baddbmm_(shown.transpose(1, 2), project)
        for i in range(len(read)):
            shared = weights.output[i % len(weights.output)]
            shared.addmm_(read[i].t(), output[i])
        if weights.output_bias is not None:
            weights.output_bias.add_(output.sum((0, 1)))

    def _multiply_blocks(self, span: slice, block: StepBlock) -> None:
        """Weights of the blocks, and what was read of the input."""
        hidden, gates, product, active, gate, *_ = block
        value = self.value[span].flatten(0, 1)
        of_value = self.sequence.value[span].view(value.shape)
        for i in range(len(hidden)):
            rows = None
            if active is not None and self.active_only:
                rows = active[i, :, 0].nonzero().squeeze(1)
            into = _take(gates[i], rows)
            of_product = into if product is gates else _take(product[i], rows)
            self.weights.hidden[i].addmm_(_take(hidden[i], rows).t(), of_product)
            keep = None if self.keep is None else _take(self.keep[i, span].flatten(0, 1), rows)
            weighed = None if gate is None else _take(gate[i], rows)
            read = self._multiply_input(i, _take(value, rows), into, weighed, keep)
            if rows is None:
                of_value.add_(read)
            else:
                of_value.index_add_(0, rows, read)

    def _multiply_input(
        self, i: int, value: Tensor, grad: Tensor, gate: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        """Gradients of RIM i's weight for the input, and, returned, of what was read, [N, S F].

        Args:
            i: of the RIM.
            value: what was read, [N, S F].
            grad: of the gates [N, G].
            gate: [N, S]; None: 1.
            keep: bool [N, F], see `SequenceInputs`.
        """
        reads = []
        for slot, slot_value in enumerate(value.split(len(self.of_weights.input), -1)):
            into = grad if gate is None else grad * gate[:, slot : slot + 1]
            read = into @ self.of_weights.input[:, i].t()
            if keep is not None:
                slot_value = torch.where(keep, slot_value, 0.0)
                read = torch.where(keep, read, 0.0)
            self.weights.input[:, i].addmm_(slot_value.t(), into)
            reads.append(read)
        return reads[0] if len(reads) == 1 else torch.cat(reads, -1)


def _side_by_side(kept: tuple[Kept, ...], gradients: tuple[StepGradients, ...]) -> StepBlock:
    hidden, gates = _stack(k.hidden for k in kept), _stack(x.gates for x in gradients)
    same = gradients[0].product is gradients[0].gates
    active, communication = kept[0].saved.active, bool(kept[0].saved.communication)
    if active is not None:
        active = _stack(k.saved.active for k in kept).expand(len(hidden), -1, 1)
    return StepBlock(
        hidden,
        gates,
        gates if same else _stack(x.product for x in gradients),
        active,
        None if kept[0].saved.gate is None else _stack(k.saved.gate for k in kept),
        _stack(k.saved.shown for k in kept) if communication else None,
        _stack(x.project for x in gradients) if communication else None,
        _stack(k.saved.communication[0] for k in kept) if communication else None,
        _stack(x.output for x in gradients) if communication else None,
    )


def _empty_like(x: Tensor) -> Tensor:
    """Memory that lies as `x` does, but with the last dimension dense."""
    like = torch.empty_like(x)
    return like if like.stride(-1) == 1 else x.new_empty(x.shape)


def _take(rows_of: Tensor, rows: Tensor | None) -> Tensor:
    return rows_of if rows is None else rows_of.index_select(0, rows)


def _stack(tensors: Any) -> Tensor:
    """Of several steps [n, B, ...], [n, N, ...]."""
    return torch.cat([not_none(tensor) for tensor in tensors], 1)
