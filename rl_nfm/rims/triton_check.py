"""Whether the loop in Triton is used: checked against the plain path at first use."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from rl_nfm.rims import plain_loop, triton_loop
from rl_nfm.rims.products import LayerCall, SequenceInputs
from rl_nfm.rims.step import StepSpec, StepWeights, step_backward, step_forward
from rl_nfm.rims.triton_sizes import Sizes
from rl_nfm.support import triton_guard
from rl_nfm.support.cpp import runs_eagerly
from rl_nfm.support.triton_guard import TritonGuard

_STEPS, _BATCH = 3, 2


def supports(
    spec: StepSpec, weights: StepWeights, sequence: SequenceInputs, states: list[Tensor | None]
) -> bool:
    """Whether the kernels take these tensors; the first call for each form checks them."""
    tensors = [x for x in (*weights, *sequence, *states) if x is not None]
    device = weights.hidden.device
    return (
        triton_guard.switched_on(device)
        and runs_eagerly(*tensors)
        and all(x.dtype in (torch.float32, torch.bool) and x.device == device for x in tensors)
        and weights.hidden.numel() > 0
        and Sizes.of(spec, weights).fit
        and guard.ready(device, *_case(spec, weights, sequence))
    )


def falling_back(
    spec: StepSpec, weights: StepWeights, sequence: SequenceInputs
) -> contextlib.AbstractContextManager[None]:
    """See `TritonGuard.falling_back`; for tensors like these.

    Raises:
        ValueError: shapes or types that do not fit each other.
    """
    case = _case(spec, weights, sequence)
    return guard.falling_back(weights.hidden.device, *case, raising=(ValueError,))


def _case(
    spec: StepSpec, weights: StepWeights, sequence: SequenceInputs
) -> tuple[Sizes, bool, frozenset[str]]:
    """All that the kernels are compiled for."""
    parts = weights._asdict() | sequence._asdict()
    present = frozenset(name for name, part in parts.items() if part is not None)
    grouped = weights.output is not None and len(weights.output) > 1
    return Sizes.of(spec, weights), grouped, present


def _check(
    device: torch.device, sizes: Sizes, grouped: bool, present: frozenset[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Results and gradients of three steps beside those of the plain path in float64."""
    generator = torch.Generator().manual_seed(0)
    layer, states = _draw(generator, sizes, grouped, present)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        ours = _run(layer, states, device, torch.float32)
        plain = _run(layer, states, device, torch.float64)
    finally:
        torch.set_float32_matmul_precision(precision)
    yield from zip(ours, plain, strict=True)


def _draw(
    generator: torch.Generator, sizes: Sizes, grouped: bool, present: frozenset[str]
) -> tuple[LayerCall, list[Tensor]]:
    """A layer with all parts that are present, and the states it begins with."""
    spec, n, size, read, update = sizes
    gates = (4 if spec.cell == "lstm" else 3) * size
    width = 2 * spec.heads * spec.key_size + read

    def normal(*shape: int, fan_in: int = 1) -> Tensor:
        return torch.randn(shape, generator=generator) * fan_in**-0.5

    def flags(*shape: int, share: float) -> Tensor:
        return torch.rand(shape, generator=generator) < share

    weights = {
        "input": normal(5, n, gates, fan_in=5),
        "hidden": normal(n, size, gates, fan_in=size),
        "base": normal(n, 1, gates),
        "hidden_bias": normal(n, 1, gates),
        "rank_query": normal(n, 1, size, fan_in=size),
        "earlier": torch.ones(n, n, dtype=torch.bool).tril(-1).unsqueeze(-1),
        "project": normal(n, size, width, fan_in=size),
        "output": normal(n if grouped else 1, read, update, fan_in=max(1, read)),
        "output_bias": normal(1, 1, update),
    }
    sequence = {
        "value": normal(_STEPS, _BATCH, 5),
        "keep": flags(n, _STEPS, _BATCH, 5, share=0.7),
        "key_query": normal(n, _STEPS, _BATCH, size, fan_in=size),
        "valid": flags(_STEPS, _BATCH, share=0.7),
        "dropout": flags(n, _STEPS, _BATCH, size, share=0.7) / 0.7,
        "reset": flags(_STEPS, _BATCH, share=0.3),
    }
    only = {name: part for name, part in (weights | sequence).items() if name in present}
    layer = LayerCall(
        spec,
        StepWeights(**{name: only.get(name) for name in StepWeights._fields}),  # pyright: ignore[reportArgumentType]
        SequenceInputs(**{name: only.get(name) for name in SequenceInputs._fields}),  # pyright: ignore[reportArgumentType]
        torch.empty(0),
    )
    return layer, [normal(n, _BATCH, size) for _ in range(2 if spec.cell == "lstm" else 1)]


def _run(
    layer: LayerCall, states: list[Tensor], device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Results and gradients: in float32 of our kernels, in float64 of the plain path."""

    def there(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(device, torch.bool if x.dtype == torch.bool else dtype)

    spec = layer.spec
    weights = StepWeights(*map(there, layer.weights))  # pyright: ignore[reportArgumentType]
    sequence = SequenceInputs(*map(there, layer.sequence))  # pyright: ignore[reportArgumentType]
    layer = LayerCall(spec, weights, sequence, sequence.drive(weights.input))
    hidden, cell = (*map(there, states), None)[:2]
    assert hidden is not None
    if dtype == torch.float32:
        result, kept = triton_loop.forward(layer, hidden, cell, keep=True)
    else:
        result, kept = plain_loop.forward(step_forward, layer, hidden, cell, keep=True)
    of_output = result.output.cos()
    grads = of_output, result.hidden.sin(), None if cell is None else result.cell
    if dtype == torch.float32:
        products, *of_states = triton_loop.backward(layer, kept, grads)
    else:
        products, *of_states = plain_loop.backward(step_backward, layer, kept, grads)
    found = *result[:3], *products.weights, *products.sequence, *of_states
    return [x for x in found if x is not None]


guard = TritonGuard("RIMs", _check)
