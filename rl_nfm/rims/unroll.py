"""All steps of a layer of Recurrent Independent Mechanisms, with one backward for the whole unroll.

The loop holds only what depends on the state. Nothing in it waits for the device and every shape
is fixed, so that it can be captured as a CUDA graph; under autocast it runs in the type of the
weights.

Shapes as in `step`, and T time steps.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rl_nfm.rims.step import (
    StepGradients,
    StepInputs,
    StepSaved,
    StepSpec,
    StepWeights,
    given,
    step_backward,
    step_forward,
)

CPU_STEPS_PER_PRODUCT = 4
"""Steps whose gradients are collected before they become gradients of weights. On the CPU few, so
that they are still in the cache; on a GPU all, for the fewest kernels."""


class Sequence(NamedTuple):
    """What the steps read besides the state: `StepInputs` of all steps, and resets."""

    drive: Tensor
    """[n, T, B, G]."""
    key_query: Tensor | None = None
    """[n, T, B, s]."""
    valid: Tensor | None = None
    """bool [T, B]."""
    dropout: Tensor | None = None
    """[n, T, B, s]."""
    reset: Tensor | None = None
    """bool [T, B]: the state is zeroed before step t."""

    def at(self, t: int) -> StepInputs:
        """The inputs of step t."""
        return StepInputs(
            self.drive[:, t],
            None if self.key_query is None else self.key_query[:, t],
            None if self.valid is None else self.valid[t].view(1, -1, 1),
            None if self.dropout is None else self.dropout[:, t],
        )

    def clear(self, state: Tensor, t: int) -> Tensor:
        """`state` [n, B, s], zero where step t begins anew; so is a gradient on its way back."""
        return state if self.reset is None else state.masked_fill(self.reset[t].view(1, -1, 1), 0)


class Unrolled(NamedTuple):
    """Result of `unroll`."""

    output: Tensor
    """[T, B, n, s]."""
    hidden: Tensor
    """[n, B, s], after the last step."""
    cell: Tensor | None
    """[n, B, s]; None for a GRU."""
    active: Tensor
    """bool [T, B, n]: which states were updated."""


class Kept(NamedTuple):
    """What one step leaves for its backward."""

    hidden: Tensor
    """[n, B, s], before the step."""
    cell: Tensor | None
    saved: StepSaved


def _steps(compiled: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return _compiled_steps() if compiled else (step_forward, step_backward)


@functools.cache
def _compiled_steps() -> tuple[Callable[..., Any], Callable[..., Any]]:
    return torch.compile(step_forward), torch.compile(step_backward)


def unroll(
    spec: StepSpec,
    weights: StepWeights,
    sequence: Sequence,
    hidden: Tensor,
    cell: Tensor | None,
    *,
    compiled: bool = False,
) -> Unrolled:
    """Run all steps from the states [n, B, s].

    Args:
        spec: what a step computes.
        weights: the same at every step.
        sequence: inputs of all steps.
        hidden: state before the first step.
        cell: likewise; None for a GRU.
        compiled: compile a step with `torch.compile` (minutes at first, then fewer kernels).
    """
    tensors = (*weights, *sequence, hidden, cell)
    with torch.autocast(hidden.device.type, enabled=False):
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
            return Unrolled(*_Unroll.apply(spec, compiled, *tensors))
        return _run(spec, compiled, weights, sequence, hidden, cell, None)


def _run(
    spec: StepSpec,
    compiled: bool,
    weights: StepWeights,
    sequence: Sequence,
    hidden: Tensor,
    cell: Tensor | None,
    kept: list[Kept] | None,
) -> Unrolled:
    """The loop; fills `kept` if there is a backward to come."""
    forward = _steps(compiled)[0]
    outputs, actives = [], []
    for t in range(sequence.drive.shape[1]):
        hidden = sequence.clear(hidden, t)
        cell = None if cell is None else sequence.clear(cell, t)
        new_hidden, new_cell, saved = forward(spec, weights, sequence.at(t), hidden, cell)
        if kept is not None:
            kept.append(Kept(hidden, cell, saved))
        hidden, cell = new_hidden, new_cell
        outputs.append(hidden.transpose(0, 1))
        actives.append(saved.active)
    output = torch.stack(outputs)
    if actives[0] is None:
        active = torch.ones(output.shape[:-1], dtype=torch.bool, device=output.device)
    else:
        active = torch.stack([x.squeeze(-1).t() for x in actives]).expand(output.shape[:-1])
    return Unrolled(output, hidden, cell, active)


class _Unroll(torch.autograd.Function):
    """`unroll` with its backward."""

    @staticmethod
    def forward(ctx: Any, spec: StepSpec, compiled: bool, *tensors: Any) -> Any:
        weights, rest = tensors[: len(StepWeights._fields)], tensors[len(StepWeights._fields) :]
        kept: list[Kept] = []
        *sequence, hidden, cell = rest
        result = _run(
            spec, compiled, StepWeights(*weights), Sequence(*sequence), hidden, cell, kept
        )
        flat = [x for k in kept for x in (k.hidden, k.cell, *k.saved[:-1], *k.saved.talk)]
        ctx.save_for_backward(*weights, *sequence, *flat)
        ctx.spec, ctx.compiled, ctx.steps = spec, compiled, len(kept)
        ctx.mark_non_differentiable(result.active)
        ctx.set_materialize_grads(False)
        return tuple(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        # The caller's `backward()` may stand inside autocast, which would reach in here.
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            return None, None, *_run_backward(ctx, *grads[:-1])


def _run_backward(
    ctx: Any, of_output: Tensor | None, of_hidden: Tensor | None, of_cell: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of weights, sequence and first states, from those of the results."""
    weights, sequence, kept = _restore(ctx.saved_tensors, ctx.steps)
    backward = _steps(ctx.compiled)[1]
    zeros = torch.zeros_like(kept[0].hidden)
    of_hidden = zeros if of_hidden is None else of_hidden
    if ctx.spec.cell == "lstm" and of_cell is None:
        of_cell = zeros
    products = _Products(weights, sequence)
    for t in reversed(range(ctx.steps)):
        if of_output is not None:
            of_hidden = of_hidden + of_output[t].transpose(0, 1)
        hidden, cell, saved = kept[t]
        of_hidden, of_cell, left = backward(
            ctx.spec, weights, sequence.at(t), saved, hidden, cell, of_hidden, of_cell
        )
        of_hidden = sequence.clear(given(of_hidden), t)
        of_cell = None if of_cell is None else sequence.clear(of_cell, t)
        products.add(t, kept[t], left)
    return *products.of_weights(), *products.of_sequence(), of_hidden, of_cell


def _restore(tensors: Any, steps: int) -> tuple[StepWeights, Sequence, list[Kept]]:
    """What `_Unroll.forward` saved."""
    weights, tensors = tensors[: len(StepWeights._fields)], tensors[len(StepWeights._fields) :]
    sequence, tensors = tensors[: len(Sequence._fields)], tensors[len(Sequence._fields) :]
    width, plain = len(tensors) // steps, len(StepSaved._fields) - 1
    kept = []
    for start in range(0, len(tensors), width):
        hidden, cell, *saved = tensors[start : start + width]
        kept.append(Kept(hidden, cell, StepSaved(*saved[:plain], talk=tuple(saved[plain:]))))
    return StepWeights(*weights), Sequence(*sequence), kept


class _Products:
    """Turns what the steps' backward leaves into gradients of weights and of the sequence."""

    def __init__(self, weights: StepWeights, sequence: Sequence):
        zeros = [None if w is None else w.new_zeros(w.shape) for w in weights]
        self.weights = StepWeights(*zeros)  # pyright: ignore[reportArgumentType]
        self.drive = torch.empty_like(sequence.drive)
        self.key_query = None
        if sequence.key_query is not None:
            self.key_query = torch.empty_like(sequence.key_query)
        on_cpu = sequence.drive.device.type == "cpu"
        self.limit = CPU_STEPS_PER_PRODUCT if on_cpu else sequence.drive.shape[1]
        self.pending: list[tuple[Kept, StepGradients]] = []

    def add(self, t: int, kept: Kept, left: StepGradients) -> None:
        """What step t left; steps come last to first."""
        self.pending.append((kept, left))
        if len(self.pending) == self.limit or t == 0:
            self._multiply(t)
            self.pending.clear()

    def _multiply(self, t: int) -> None:
        kept, left = zip(*reversed(self.pending), strict=True)
        span = slice(t, t + len(kept))
        hidden, gates = _stack(k.hidden for k in kept), _stack(x.gates for x in left)
        same = left[0].product is left[0].gates
        product = gates if same else _stack(x.product for x in left)
        weights = self.weights
        _add_product(weights.hidden, hidden, product)
        weights.base.add_(gates.sum((1, 2)).unsqueeze(1))
        if weights.hidden_bias is not None:
            weights.hidden_bias.add_(product.sum((1, 2)).unsqueeze(1))
        if self.key_query is None:
            self.drive[:, span] = gates
        else:
            self.drive[:, span] = gates * _stack(k.saved.gate for k in kept)
            self.key_query[:, span] = hidden * _stack(x.logit for x in left)
        if weights.project is not None:
            _add_product(
                weights.project,
                _stack(k.saved.shown for k in kept),
                _stack(x.project for x in left),
            )
            read, output = _stack(k.saved.talk[0] for k in kept), _stack(x.output for x in left)
            _add_product(given(weights.output), read, output)
            if weights.output_bias is not None:
                weights.output_bias.add_(output.sum((0, 1, 2)))

    def of_weights(self) -> StepWeights:
        """Gradients of the weights."""
        return self.weights._replace(earlier=None)

    def of_sequence(self) -> Sequence:
        """Gradients of the sequence."""
        return Sequence(self.drive, self.key_query)


def _stack(tensors: Any) -> Tensor:
    return torch.stack(list(tensors), 1)  # [n, T, B, ...]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the product over all but the last dimension, in as many blocks as `total` has."""
    left = left.view(total.shape[0], -1, left.shape[-1])
    total.baddbmm_(left.transpose(1, 2), right.view(total.shape[0], -1, right.shape[-1]))
