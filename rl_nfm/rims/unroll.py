"""All steps of a layer of Recurrent Independent Mechanisms, with one backward for the whole unroll.

The loop holds only what depends on the state. Nothing in it waits for the device and every shape
is fixed, so that it can be captured as a CUDA graph; under autocast it runs in the type of the
weights.

Shapes as in `step`, and T time steps.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from rl_nfm.rims import kernels, plain_loop, triton_check, triton_loop
from rl_nfm.rims.layer_check import check_states
from rl_nfm.rims.products import LayerCall, Products, SequenceInputs, Unrolled
from rl_nfm.rims.step import StepSpec, StepWeights, has_tangent, step_backward, step_forward


def unroll(
    spec: StepSpec,
    weights: StepWeights,
    sequence: SequenceInputs,
    hidden: Float[Tensor, "n B s"],
    cell: Float[Tensor, "n B s"] | None,
    *,
    compiled: bool = False,
) -> Unrolled:
    """Run all steps.

    Args:
        spec: what a step computes.
        weights: the same at every step.
        sequence: inputs of all steps.
        hidden: state before the first step.
        cell: likewise; None for a GRU.
        compiled: compile a step with `torch.compile` (a minute at first, then fewer kernels); on
            the CPU the C++ of `kernels`, used otherwise, is faster.

    Raises:
        ValueError: states or flags of another batch or type.
    """
    check_states(sequence, hidden, cell)
    tensors = (*weights, *sequence, hidden, cell)
    with torch.autocast(hidden.device.type, enabled=False):
        loop = _choose(spec, compiled, tensors)
        if loop is not _TRITON:
            return _run(spec, loop, tensors)
        with triton_check.falling_back(spec, weights, sequence):
            return _run(spec, loop, tensors)
        return _run(spec, _PLAIN, tensors)


def _run(spec: StepSpec, loop: "Loop", tensors: tuple[Any, ...]) -> Unrolled:
    needed = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    if needed and not torch.jit.is_tracing() and not any(map(has_tangent, tensors)):  # pyright: ignore[reportPrivateImportUsage]
        return Unrolled(*_Unroll.apply(spec, loop, *tensors)[: len(Unrolled._fields)])
    # Without our backward: there is nothing to differentiate, or autograd differentiates the
    # operations of the steps (forward derivatives, and traced graphs, which hold no Python).
    weights, sequence, (hidden, cell) = _split(tensors)
    layer = LayerCall(spec, weights, sequence, sequence.drive(weights.input))
    return loop.forward(layer, hidden, cell, keep=False)[0]


@dataclasses.dataclass(frozen=True)
class Loop:
    """One way to run all steps."""

    forward: Callable[..., tuple[Unrolled, list[Any]]]
    """Also what the backward needs, if asked to `keep` it."""
    backward: Callable[..., tuple[Products, Tensor, Tensor | None]]
    """Gradients of the products and of the first states, from what was kept and those of the
    outputs and of the last states."""


@no_type_check  # torch.compile calls these methods in its own way, and fails on checked ones
class _Unroll(torch.autograd.Function):
    """`unroll` with its backward; returns the results and then what the backward needs."""

    @staticmethod
    def forward(spec: StepSpec, loop: Loop, *tensors: Any) -> Any:
        weights, sequence, (hidden, cell) = _split(tensors)
        layer = LayerCall(spec, weights, sequence, sequence.drive(weights.input))
        # Views, because a loop may keep the states unchanged, and an output must not be an input.
        states = (None if state is None else state.view_as(state) for state in (hidden, cell))
        result, kept = loop.forward(layer, *states, keep=True)
        return *result, layer.drive, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.spec, ctx.loop, *tensors = inputs
        *_, active = result = output[: len(Unrolled._fields)]
        kept = output[len(result) :]
        ctx.mark_non_differentiable(active, *(x for x in kept if x is not None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *kept)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        args = ctx.spec, ctx.loop, *grads[: len(Unrolled._fields) - 1], *ctx.saved_tensors
        if torch.compiler.is_compiling():  # it does not follow a Function inside a backward
            return None, None, *_UnrollBackward.forward(*args)
        return None, None, *_UnrollBackward.apply(*args)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return _one_by_one(_Unroll, info, in_dims, args)


@no_type_check
class _UnrollBackward(torch.autograd.Function):
    """The gradients of the inputs of `_Unroll`, which cannot be differentiated again."""

    @staticmethod
    def forward(spec: StepSpec, loop: Loop, *tensors: Any) -> Any:
        grad_results, tensors = tensors[:3], tensors[3:]
        weights, sequence, (hidden, cell, drive, *kept) = _split(tensors)
        layer = LayerCall(spec, weights, sequence, drive)
        # The caller may have called `backward()` under autocast, which would have effect here too.
        with torch.autocast(drive.device.type, enabled=False):
            products, of_hidden, of_cell = _gradients(loop, layer, hidden, cell, kept, grad_results)
        return *products.weights, *products.sequence, of_hidden, of_cell

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        del ctx, inputs, output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError("RIMs have no second derivative")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return _one_by_one(_UnrollBackward, info, in_dims, args)


def _gradients(
    loop: Loop,
    layer: LayerCall,
    hidden: Tensor,
    cell: Tensor | None,
    kept: list[Any],
    grad_results: tuple[Tensor | None, ...],
) -> tuple[Products, Tensor, Tensor | None]:
    if loop is not _TRITON:
        return loop.backward(layer, kept, grad_results)
    with triton_check.falling_back(layer.spec, layer.weights, layer.sequence):
        return loop.backward(layer, kept, grad_results)
    _, kept = _PLAIN.forward(layer, hidden, cell, keep=True)
    return _PLAIN.backward(layer, kept, grad_results)


def _split(tensors: tuple[Any, ...]) -> tuple[StepWeights, SequenceInputs, list[Any]]:
    first = len(StepWeights._fields)
    second = first + len(SequenceInputs._fields)
    weights, sequence = StepWeights(*tensors[:first]), SequenceInputs(*tensors[first:second])
    return weights, sequence, list(tensors[second:])


def _one_by_one(
    function: type[torch.autograd.Function], info: Any, in_dims: tuple[Any, ...], args: Any
) -> tuple[tuple[Any, ...], tuple[int | None, ...]]:
    """The rule for `torch.func.vmap`: a call for each element, because the loops write in place."""
    results = [
        function.apply(
            *(x if dim is None else x.select(dim, n) for x, dim in zip(args, in_dims, strict=True))
        )
        for n in range(info.batch_size)
    ]
    parts = zip(*results, strict=True)
    stacked = tuple(None if part[0] is None else torch.stack(part) for part in parts)
    return stacked, tuple(None if part is None else 0 for part in stacked)


_KERNELS = Loop(kernels.forward, kernels.backward)
_TRITON = Loop(triton_loop.forward, triton_loop.backward)
_PLAIN = Loop(
    functools.partial(plain_loop.forward, step_forward),
    functools.partial(plain_loop.backward, step_backward),
)


def _choose(spec: StepSpec, compiled: bool, tensors: tuple[Tensor | None, ...]) -> Loop:
    if compiled:
        return _compiled()
    if triton_check.supports(spec, *_split(tensors)):
        return _TRITON
    return _KERNELS if spec.slots == 1 and kernels.supports(*tensors) else _PLAIN


@functools.cache
def _compiled() -> Loop:
    forward, backward = torch.compile(step_forward), torch.compile(step_backward)
    return Loop(
        functools.partial(plain_loop.forward, forward),
        functools.partial(plain_loop.backward, backward),
    )
