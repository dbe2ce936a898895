"""One step of Recurrent Independent Mechanisms, forward and backward, as pure functions.

The backward is written by hand because autograd would form the gradient of each weight anew at
every step and go over memory about twice as often; here the caller forms them from several steps
together. Tests compare it with autograd and with finite differences.

Equations, of one RIM; dX is the gradient of the loss by X, * multiplies elementwise, and m is 1 for
an active RIM, else 0 (and 0 where the step is not valid):

    forward                                       backward, from dh' and dc'
    l  = <key_query, h>                           dh^ = m dh',  dc~ = m dc'
    g  = sigmoid(l)                               du  = dh^,  dshown = m * communicate_backward(du)
    a  = base + g drive                           dh~ = dh^ + dshown
    p  = h U                                      da, dp, dc, dmix = block_backward(dh~, dc~)
    h~, c~ = block(a, p, c)                       dg  = <da, drive>
    u  = communicate(h~ of all RIMs)              dl  = g (1 - g) dg
    h^ = h~ + u                                   dh  = dp U^T + dmix + (1 - m) dh' + dl key_query
    h' = m h^ + (1 - m) h                         dc := dc + (1 - m) dc'
    c' = m c~ + (1 - m) c

`block` is `lstm_forward` or `gru_forward`; dmix is the gradient of the old state that a GRU mixes
in. With the source `previous` inactive RIMs show h. That what others read of an inactive RIM sends
no gradient into it (the m of dshown) is published. With several slots, or across RIMs, g is
`sparse_softmax`. `mask_input` multiplies a and da by m. For gradients of weights see `products`.

Shapes: n RIMs, B batch, F size of what is read of the input, s hidden size of one RIM, G = 4 s
(LSTM) or 3 s (GRU), S slots (SG, Ss: S times G or s), h heads, d and e sizes of a head's keys and
values; Q, U, m as in `communication`. Everything in the step is RIM-first, [n, B, ...], so that the
block-diagonal products are `bmm`.
"""

import dataclasses
from typing import Literal, NamedTuple, no_type_check

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd import forward_ad

from rl_nfm.rims.blocks import gru_backward, gru_forward, lstm_backward, lstm_forward
from rl_nfm.rims.communication import CommunicationWeights, communicate, communicate_backward
from rl_nfm.rims.sparse import select_active, sparse_softmax, sparse_softmax_backward

SLOTS_READ = 2
"""Slots that a RIM reads at most, of the null slot and the input's: fixed in the authors' code."""


@no_type_check  # torch.compile makes frozen dataclasses itself, and fails on a checked __init__
@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSpec:
    """What a step computes."""

    cell: Literal["lstm", "gru"]
    num_active: int
    gate: Literal["null", "across"] | None = None
    """How the input is weighed; None: by 1, and all RIMs are active."""
    slots: int = 1
    """Copies of the input beside the null slot (`null` only)."""
    mask_input: bool = False
    source: Literal["candidate", "previous"] = "candidate"
    heads: int = 0
    """0: no communication."""
    key_size: int = 0


@no_type_check  # nor can it call checked methods of named tuples
class StepWeights(NamedTuple):
    """What is the same at every step."""

    input: Float[Tensor, "F n G"]
    """From what is read of the input to the gates, in PyTorch's order."""
    hidden: Float[Tensor, "n s G"]
    base: Float[Tensor, "n 1 G"]
    """Added to the gated drive."""
    hidden_bias: Float[Tensor, "n 1 G"] | None = None
    """Of a GRU: the bias inside the reset gate's product."""
    rank_query: Float[Tensor, "n 1 s"] | None = None
    """Added to the key query for ranking only; its gradient is zero."""
    earlier: Bool[Tensor, "n n 1"] | None = None
    """See `select_active`."""
    project: Float[Tensor, "n s Q"] | None = None
    """See `CommunicationWeights`, also for the next two."""
    output: Float[Tensor, "m he U"] | None = None
    output_bias: Float[Tensor, "1 1 U"] | None = None

    @property
    def communication(self) -> CommunicationWeights:
        """The weights of the communication."""
        return CommunicationWeights(not_none(self.project), not_none(self.output), self.output_bias)


class StepInputs(NamedTuple):
    """What differs from step to step and does not depend on the state."""

    drive: Float[Tensor, "n B SG"]
    """The input's part of the gates, of each slot, before it is weighed."""
    key_query: Float[Tensor, "n B Ss"] | None = None
    """The product of a slot's key query with the state is its logit; float32 at least."""
    valid: Bool[Tensor, "1 B 1"] | None = None
    """Where False, every state is kept."""
    dropout: Float[Tensor, "n B s"] | None = None
    """Multiplies the linear part of the communication."""


class StepSaved(NamedTuple):
    """What the backward of a step needs besides its arguments."""

    active: Bool[Tensor, "n_or_1 B 1"] | None
    """Which states are updated; None: all."""
    gate: Float[Tensor, "n B S"] | None
    """Of the input."""
    acts: Float[Tensor, "n B G"]
    """The gates after their nonlinearity."""
    extra: Float[Tensor, "n B s"]
    """An LSTM's tanh of the new cell state, or a GRU's product inside the reset gate."""
    shown: Float[Tensor, "n B s"] | None = None
    """What the RIMs show to each other."""
    communication: tuple[Tensor, ...] = ()
    """What `communicate` saves, first what the heads read [n, B, h e]."""


class StepGradients(NamedTuple):
    """Gradients of what a step multiplied with weights; None for parts left out."""

    gates: Float[Tensor, "n B G"]
    """Of drive times gate plus base."""
    product: Float[Tensor, "n B G"]
    """Of the hidden product."""
    logit: Float[Tensor, "n B S"] | None = None
    """Of the input's logits."""
    project: Float[Tensor, "n B Q"] | None = None
    output: Float[Tensor, "n B U"] | None = None


def not_none(tensor: Tensor | None) -> Tensor:
    """`tensor`, which is None only in forms of a step that do not reach this code."""
    assert tensor is not None
    return tensor


def has_tangent(tensor: Tensor | None) -> bool:
    """Whether a forward-mode derivative is taken along this tensor."""
    return tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None


def step_forward(
    spec: StepSpec,
    weights: StepWeights,
    inputs: StepInputs,
    hidden: Float[Tensor, "n B s"],
    cell: Float[Tensor, "n B s"] | None,
) -> tuple[Float[Tensor, "n B s"], Float[Tensor, "n B s"] | None, StepSaved]:
    """New hidden and cell state, and what `step_backward` needs."""
    gate, active = _input_gate(spec, weights, inputs, hidden)
    if gate is None:
        pre = inputs.drive + weights.base
    elif spec.slots > 1:
        pre = weights.base + (by_slot(inputs.drive, spec) * gate.unsqueeze(-1)).sum(2)
    else:
        pre = torch.addcmul(weights.base, inputs.drive, gate)
    if spec.mask_input:
        pre = pre * not_none(active)
    if spec.cell == "lstm":
        candidate, new_cell, block = lstm_forward(pre, hidden, not_none(cell), weights.hidden)
    else:
        candidate, block = gru_forward(pre, hidden, weights.hidden, weights.hidden_bias)
        new_cell = None
    new_hidden, shown, communication = candidate, None, ()
    if spec.heads:
        shown = candidate
        if spec.source == "previous" and active is not None:
            shown = torch.where(active, candidate, hidden)
        if active is not None and shown.requires_grad and not has_tangent(shown):
            # Where autograd records these steps, it is to do what `step_backward` does.
            shown = torch.where(active, shown, shown.detach())
        update, communication = communicate(
            weights.communication, spec.heads, spec.key_size, shown, inputs.dropout
        )
        new_hidden = candidate + update
    if active is not None:
        new_hidden = torch.where(active, new_hidden, hidden)
        new_cell = None if cell is None else torch.where(active, not_none(new_cell), cell)
    return new_hidden, new_cell, StepSaved(active, gate, *block, shown, communication)


def step_backward(
    spec: StepSpec,
    weights: StepWeights,
    inputs: StepInputs,
    saved: StepSaved,
    hidden: Float[Tensor, "n B s"],
    cell: Float[Tensor, "n B s"] | None,
    grad_hidden: Float[Tensor, "n B s"],
    grad_cell: Float[Tensor, "n B s"] | None,
) -> tuple[Float[Tensor, "n B s"], Float[Tensor, "n B s"] | None, StepGradients]:
    """Gradients of the states before the step, and of its products with weights."""
    active = saved.active
    grad_new, grad_new_cell = grad_hidden, grad_cell
    if active is not None:
        grad_new = grad_hidden * active
        grad_new_cell = None if grad_cell is None else grad_cell * active
    grad_candidate, project, output = grad_new, None, None
    if spec.heads:
        grad_shown, project, output = communicate_backward(
            weights.communication,
            spec.heads,
            spec.key_size,
            saved.communication,
            inputs.dropout,
            grad_new,
        )
        # The block: what the others read from an inactive RIM sends no gradient into its state.
        grad_shown = grad_shown if active is None else grad_shown * active
        grad_candidate = grad_new + grad_shown
    if spec.cell == "lstm":
        gates, grad_old_cell = lstm_backward(
            saved.acts, saved.extra, not_none(cell), grad_candidate, not_none(grad_new_cell)
        )
        product, mixed = gates, None
    else:
        gates, product, mixed = gru_backward(saved.acts, saved.extra, hidden, grad_candidate)
        grad_old_cell = None
    grad_old = torch.bmm(product, weights.hidden.transpose(1, 2))
    if mixed is not None:
        grad_old = grad_old + mixed
    if active is not None:
        grad_old = grad_old + (grad_hidden - grad_new)
        if grad_cell is not None:
            grad_old_cell = not_none(grad_old_cell) + (grad_cell - not_none(grad_new_cell))
    if spec.mask_input:
        gates = gates * not_none(active)
    logit = None
    if saved.gate is not None:
        logit = _logit_gradient(spec, inputs, saved.gate, hidden, gates)
        if spec.slots > 1:
            of_state = (by_slot(not_none(inputs.key_query), spec) * logit.unsqueeze(-1)).sum(2)
            grad_old = grad_old + of_state.to(grad_old.dtype)
        else:
            grad_old = torch.addcmul(grad_old, logit, not_none(inputs.key_query).to(grad_old.dtype))
    return grad_old, grad_old_cell, StepGradients(gates, product, logit, project, output)


def by_slot(x: Float[Tensor, "*D SW"], spec: StepSpec) -> Float[Tensor, "*D S W"]:
    """The last dimension split into slots and the numbers W of each."""
    return x.unflatten(-1, (spec.slots, -1))


def _logits(spec: StepSpec, inputs: StepInputs, hidden: Tensor) -> Tensor:
    """[n, B, S]."""
    if spec.slots == 1:
        return (hidden * not_none(inputs.key_query)).sum(-1, keepdim=True)
    return (hidden.unsqueeze(2) * by_slot(not_none(inputs.key_query), spec)).sum(-1)


def _with_null(logits: Tensor) -> Tensor:
    """[S + 1, n, B], the null slot's logit of 0 first."""
    return torch.cat((torch.zeros_like(logits[..., :1]), logits), -1).movedim(-1, 0)


def _input_gate(
    spec: StepSpec, weights: StepWeights, inputs: StepInputs, hidden: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The gates [n, B, S] of each RIM and which are active; None where all are."""
    if spec.gate is None:
        return None, inputs.valid
    rank = logits = _logits(spec, inputs, hidden)
    if spec.slots > 1:
        both = sparse_softmax(_with_null(logits), SLOTS_READ).movedim(0, -1)
        gate, rank = both[..., 1:], -both[..., :1]
    elif spec.gate == "null":
        gate = logits.sigmoid()
    else:
        gate = sparse_softmax(logits, spec.num_active)
    if weights.rank_query is not None:
        rank = logits + (hidden * weights.rank_query).sum(-1, keepdim=True)
    active = select_active(rank, spec.num_active, not_none(weights.earlier))
    gate = gate.to(hidden.dtype)
    return gate, active if inputs.valid is None else active & inputs.valid


def _logit_gradient(
    spec: StepSpec, inputs: StepInputs, gate: Tensor, hidden: Tensor, gates: Tensor
) -> Tensor:
    """[n, B, S], from the gradient of the block's gates."""
    if spec.slots > 1:
        grad_gate = (gates.unsqueeze(2) * by_slot(inputs.drive, spec)).sum(-1)
        grad = _with_null(grad_gate)  # the null slot's value is 0, so is its weight's gradient
        logits = _with_null(_logits(spec, inputs, hidden))
        return sparse_softmax_backward(logits, SLOTS_READ, grad)[1:].movedim(0, -1).to(gates.dtype)
    grad_gate = (gates * inputs.drive).sum(-1, keepdim=True)
    if spec.gate == "null":
        return torch.ops.aten.sigmoid_backward(grad_gate, gate)
    logits = _logits(spec, inputs, hidden)
    return sparse_softmax_backward(logits, spec.num_active, grad_gate).to(gates.dtype)
