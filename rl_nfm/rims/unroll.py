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

from rl_nfm.rims.products import Kept, Products, Sequence
from rl_nfm.rims.step import (
    StepSaved,
    StepSpec,
    StepWeights,
    given,
    step_backward,
    step_forward,
)


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
        compiled: compile a step with `torch.compile` (a minute at first, then fewer kernels).
    """
    tensors = (*weights, *sequence, hidden, cell)
    with torch.autocast(hidden.device.type, enabled=False):
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
            return Unrolled(*_Unroll.apply(spec, compiled, *tensors))
        drive = sequence.drive(weights.input)
        return _run(spec, compiled, weights, sequence, drive, hidden, cell, None)


def _run(
    spec: StepSpec,
    compiled: bool,
    weights: StepWeights,
    sequence: Sequence,
    drive: Tensor,
    hidden: Tensor,
    cell: Tensor | None,
    kept: list[Kept] | None,
) -> Unrolled:
    """The loop; fills `kept` if there is a backward to come."""
    forward = _steps(compiled)[0]
    outputs, actives = [], []
    for t in range(drive.shape[1]):
        hidden = sequence.clear(hidden, t)
        cell = None if cell is None else sequence.clear(cell, t)
        new_hidden, new_cell, saved = forward(spec, weights, sequence.at(t, drive), hidden, cell)
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
        count, kept = len(StepWeights._fields), []
        weights, (*rest, hidden, cell) = StepWeights(*tensors[:count]), tensors[count:]
        sequence = Sequence(*rest)
        drive = sequence.drive(weights.input)
        result = _run(spec, compiled, weights, sequence, drive, hidden, cell, kept)
        flat = [x for k in kept for x in (k.hidden, k.cell, *k.saved[:-1], *k.saved.talk)]
        ctx.save_for_backward(*weights, *sequence, drive, *flat)
        ctx.spec, ctx.compiled, ctx.steps = spec, compiled, len(kept)
        ctx.mark_non_differentiable(result.active)
        ctx.set_materialize_grads(False)
        return tuple(result)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            raise RuntimeError("RIMs have no second derivative: call without create_graph=True")
        # The caller's `backward()` may stand inside autocast, which would reach in here.
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            return None, None, *_run_backward(ctx, *grads[:-1])


def _run_backward(
    ctx: Any, of_output: Tensor | None, of_hidden: Tensor | None, of_cell: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of weights, sequence and first states, from those of the results."""
    weights, sequence, drive, kept = _restore(ctx.saved_tensors, ctx.steps)
    backward = _steps(ctx.compiled)[1]
    zeros = torch.zeros_like(kept[0].hidden)
    of_hidden = zeros if of_hidden is None else of_hidden
    if ctx.spec.cell == "lstm" and of_cell is None:
        of_cell = zeros
    products = Products(weights, sequence)
    for t in reversed(range(ctx.steps)):
        if of_output is not None:
            of_hidden = of_hidden + of_output[t].transpose(0, 1)
        hidden, cell, saved = kept[t]
        of_hidden, of_cell, left = backward(
            ctx.spec, weights, sequence.at(t, drive), saved, hidden, cell, of_hidden, of_cell
        )
        of_hidden = sequence.clear(given(of_hidden), t)
        of_cell = None if of_cell is None else sequence.clear(of_cell, t)
        products.add(t, kept[t], left)
    return *products.weights, *products.sequence, of_hidden, of_cell


def _restore(tensors: Any, steps: int) -> tuple[StepWeights, Sequence, Tensor, list[Kept]]:
    """What `_Unroll.forward` saved."""
    weights, tensors = tensors[: len(StepWeights._fields)], tensors[len(StepWeights._fields) :]
    sequence, tensors = tensors[: len(Sequence._fields)], tensors[len(Sequence._fields) :]
    drive, *tensors = tensors
    width, plain = len(tensors) // steps, len(StepSaved._fields) - 1
    kept = []
    for start in range(0, len(tensors), width):
        hidden, cell, *saved = tensors[start : start + width]
        kept.append(Kept(hidden, cell, StepSaved(*saved[:plain], talk=tuple(saved[plain:]))))
    return StepWeights(*weights), Sequence(*sequence), drive, kept
