"""Linear layers of the NFM on a GPU: what is beside the products in few passes (`triton_linear`).

Used for `nn.Linear` on CUDA where nothing watches the layer, and checked against plain PyTorch at
first use, as the attention is. Elsewhere the layer is called.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.nfm.triton_launch import launch
from rl_nfm.support import triton_guard
from rl_nfm.support.cpp import runs_eagerly
from rl_nfm.support.modules import is_untouched
from rl_nfm.support.triton_guard import TritonGuard
from rl_nfm.support.triton_launch import power

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
COLUMNS, BLOCK = 128, 2048
"""Columns, or numbers in a row, that a program of four warps takes at most."""
TILE = 4096
"""Numbers in rows and columns that it holds at a time."""
MOST_PROGRAMS = 1024
"""Programs that share the rows' sums: eight for each multiprocessor of an H100."""


def run_linear(
    layer: nn.Module, x: Tensor, *, relu: bool = False, factor: Tensor | None = None
) -> Tensor:
    """`layer(x)`, or the ReLU of it, for x [..., inputs]; the parameters times a factor, if any.

    `layer` must be an `nn.Linear` that nothing has changed where there is a factor.
    """
    if _supports(layer, x):
        assert isinstance(layer, nn.Linear)
        dtype = _product_type(x)
        with guard.falling_back(x.device, dtype):
            rows = x.to(dtype).reshape(-1, layer.in_features)
            y = _Linear.apply(rows, layer.weight, layer.bias, factor, relu)
            return y.view(*x.shape[:-1], layer.out_features)
    if factor is None:
        y = layer(x)
    else:
        assert isinstance(layer, nn.Linear)
        y = F.linear(x, factor * layer.weight, factor * layer.bias)
    return F.relu(y) if relu else y


def _supports(layer: nn.Module, x: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and triton_guard.switched_on(x.device)
        and is_untouched(layer, nn.Linear)
        and layer.bias is not None
        and runs_eagerly(x, *layer.parameters())
        and _product_type(x) in _TYPES
        and all(p.is_contiguous() and p.device == x.device for p in layer.parameters())
        and guard.ready(x.device, _product_type(x))
    )


def _product_type(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _Linear(torch.autograd.Function):
    """From rows [N, K], parameters and a factor of these to rows [N, C]."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, factor: Tensor | None, relu: bool
    ) -> Tensor:
        w, b = _cast(weight, bias, factor, rows.dtype)
        # With the ReLU cuBLAS writes its result once; under autocast neither is cast again.
        run = torch._addmm_activation if relu else torch.addmm  # pyright: ignore
        y = run(b, rows, w.t())
        ctx.save_for_backward(rows, weight, bias, factor, w, y if relu else None)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        rows, weight, bias, factor, w, y = ctx.saved_tensors
        if torch.is_grad_enabled():
            leaves = [rows, weight, bias, factor]
            return *_plain_gradients(ctx, leaves, grads[0], relu=y is not None), None
        grad = grads[0].contiguous()
        grad, sums = _sum_rows(grad, y)
        of_rows = grad @ w if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:4]):
            return of_rows, None, None, None, None
        of_weight, of_bias, of_factor = _finish(sums, _product(grad, rows), weight, bias, factor)
        return of_rows, of_weight.to(weight.dtype), of_bias.to(bias.dtype), of_factor, None


def _cast(
    weight: Tensor, bias: Tensor, factor: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Both in this type, times the factor; as they are where nothing has to be done."""
    if factor is None and weight.dtype == bias.dtype == dtype:
        return weight, bias
    w, b = (torch.empty_like(x, dtype=dtype) for x in (weight, bias))
    size, outputs = weight.numel(), bias.numel()
    launch(
        "cast_parameters", (-(-(size + outputs) // BLOCK),), weight, bias, factor, w, b, size,
        outputs, SCALED=factor is not None, BLOCK=BLOCK,
    )  # fmt: skip
    return w, b


def _sum_rows(grad: Tensor, result: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradient before the ReLU, if there is a result after it, and sums over shares of rows."""
    count, outputs = grad.shape
    columns = min(COLUMNS, power(outputs))
    blocks, held = -(-outputs // columns), TILE // columns
    share = max(held, -(-count * blocks // MOST_PROGRAMS))
    parts = max(1, -(-count // share))
    sums = grad.new_empty(parts, outputs, dtype=torch.float32)
    masked = grad if result is None else torch.empty_like(grad)
    launch(
        "sum_rows", (parts, blocks), grad, result, masked, sums, count, outputs, share,
        RELU=result is not None, ROWS=held, COLUMNS=columns,
    )  # fmt: skip
    return masked, sums


def _product(grad: Tensor, rows: Tensor) -> Tensor:
    """The weights' gradient in float32."""
    if grad.is_cuda and grad.dtype != torch.float32:
        return torch.mm(grad.t(), rows, out_dtype=torch.float32)
    return torch.mm(grad.t(), rows).float()


def _finish(
    sums: Tensor, of_weight: Tensor, weight: Tensor, bias: Tensor, factor: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of weights, bias and factor."""
    parts, outputs = sums.shape
    scaled, size, columns = factor is not None, weight.numel(), 16
    of_bias = sums.new_empty(outputs)
    programs = -(-outputs // columns) + scaled * -(-size // BLOCK)
    dots = sums.new_empty(programs) if scaled else None
    launch(
        "finish_gradients", (programs,), sums, of_bias, of_weight, bias, weight, factor, dots,
        size, outputs, parts, SCALED=scaled, PARTS=TILE // columns, COLUMNS=columns, BLOCK=BLOCK,
    )  # fmt: skip
    if factor is None or dots is None:
        return of_weight, of_bias, None
    return of_weight, of_bias, dots.sum().to(factor.dtype).view(factor.shape)


def _plain_gradients(
    ctx: Any, leaves: list[Tensor | None], grad: Tensor, *, relu: bool
) -> list[Tensor | None]:
    """Gradients in plain PyTorch, which can be differentiated again."""
    inputs = [None if x is None else x.view_as(x) for x in leaves]
    rows, weight, bias, factor = inputs
    assert rows is not None
    assert weight is not None
    assert bias is not None
    if factor is not None:
        weight, bias = factor * weight, factor * bias
    y = F.linear(rows, weight.to(rows.dtype), bias.to(rows.dtype))
    y = F.relu(y) if relu else y
    needed = ctx.needs_input_grad[:4]
    wanted = [x for x, need in zip(inputs, needed, strict=True) if need and x is not None]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(found) if need else None for need in needed]


def _check(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Results and gradients beside PyTorch's in float64: a factor, and a ReLU behind it.

    Whole numbers and a bias between them leave no doubt on which side of the ReLU a result is.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = (70, 24), (40, 24), (40,), (70, 40)
    drawn = [torch.randint(-3, 4, shape, generator=generator).to(dtype) for shape in shapes]
    rows, weight, bias, grad = drawn
    inputs = rows, weight, bias + 0.5, torch.tensor(0.5, dtype=dtype)
    ours = [x.to(device).requires_grad_() for x in inputs]
    y = _Linear.apply(*ours, True)
    found = [y, *torch.autograd.grad(y, ours, grad.to(device))]
    plain = rows, weight, bias, factor = [x.double().requires_grad_() for x in inputs]
    exact = F.linear(rows, factor * weight, factor * bias).relu()
    wanted = [exact, *torch.autograd.grad(exact, plain, grad.double())]
    yield from zip(found, (x.to(device) for x in wanted), strict=True)


guard = TritonGuard("linear layers", _check)
