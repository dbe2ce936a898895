"""Group norm, with or without ReLU, in one pass over memory: Triton, forward and backward.

Rows of channels are read as they lie in memory, in their own type; statistics and sums are float32.
One program takes one group of one image. A group that fits stays in registers, so that it is read
once and written once; a larger one is read again in pieces. Gradients of weight and bias leave each
program as sums over its own image, which are then added up in a fixed order, so that the result is
the same in every run. If a launch fails, plain PyTorch computes the same.

Shapes: N images, P positions, C channels, G groups of C / G channels.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rl_nfm.backbones import norms

FORWARD_TILE, BACKWARD_TILE = 32768, 16384
"""Most elements of a group that stay in registers (the backward holds two tensors of them)."""


@triton.jit
def _read(x_ptr, columns, used, first, P, C, ROWS: tl.constexpr):
    """Rows `first` and following of one group as float32, and which of them there are."""
    r = first + tl.arange(0, ROWS)
    live = (r < P)[:, None] & used[None, :]
    offset = columns[None, :] + r[:, None] * C
    return tl.load(x_ptr + offset, mask=live, other=0.0).to(tl.float32), offset, live


@triton.jit
def _affine(hat, w, b, RELU: tl.constexpr):
    y = hat * w[None, :] + b[None, :]
    if RELU:
        y = tl.where(y <= 0, 0.0, y)  # unlike a maximum it lets NaN through
    return y


@triton.jit
def _forward(
    x_ptr, w_ptr, b_ptr, y_ptr, s_ptr, P, C, G, eps,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, LOOP: tl.constexpr,
    RELU: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    c = tl.arange(0, COLUMNS)
    used = c < WIDTH
    channel = (pid % G) * WIDTH + c
    columns = (pid // G).to(tl.int64) * P * C + channel
    w = tl.load(w_ptr + channel, mask=used, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + channel, mask=used, other=0.0).to(tl.float32)
    if LOOP:
        merged, mean, squares = 0.0, 0.0, 0.0
        for first in range(0, P, ROWS):  # pieces merged as in Chan et al. 1979
            x, _, live = _read(x_ptr, columns, used, first, P, C, ROWS)
            count = tl.minimum(P - first, ROWS) * WIDTH * 1.0
            apart = tl.sum(x) / count - mean
            centred = tl.where(live, x - (mean + apart), 0.0)
            total = merged + count
            squares += tl.sum(centred * centred) + apart * apart * (merged * count / total)
            mean += apart * (count / total)
            merged = total
        rstd = tl.rsqrt(squares / merged + eps)
        for first in range(0, P, ROWS):
            x, offset, live = _read(x_ptr, columns, used, first, P, C, ROWS)
            tl.store(y_ptr + offset, _affine((x - mean) * rstd, w, b, RELU), mask=live)
    else:
        x, offset, live = _read(x_ptr, columns, used, 0, P, C, ROWS)
        mean = tl.sum(x) / (P * WIDTH)
        centred = tl.where(live, x - mean, 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred) / (P * WIDTH) + eps)
        tl.store(y_ptr + offset, _affine(centred * rstd, w, b, RELU), mask=live)
    tl.store(s_ptr + 2 * pid, mean)
    tl.store(s_ptr + 2 * pid + 1, rstd)


@triton.jit
def _hat_and_grad(
    g_ptr, x_ptr, columns, used, w, b, mean, rstd, first, P, C,
    ROWS: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Normalised rows before weight and bias, and the gradient of what follows weight and bias."""
    x, offset, live = _read(x_ptr, columns, used, first, P, C, ROWS)
    hat = tl.where(live, (x - mean) * rstd, 0.0)
    d = tl.load(g_ptr + offset, mask=live, other=0.0).to(tl.float32)
    if RELU:
        d = tl.where(hat * w[None, :] + b[None, :] <= 0, 0.0, d)
    return hat, d, offset, live


@triton.jit
def _backward(
    g_ptr, x_ptr, w_ptr, b_ptr, s_ptr, dx_ptr, sums_ptr, P, C, G, images,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, LOOP: tl.constexpr,
    RELU: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    c = tl.arange(0, COLUMNS)
    used = c < WIDTH
    channel = (pid % G) * WIDTH + c
    n = (pid // G).to(tl.int64)
    columns = n * P * C + channel
    w = tl.load(w_ptr + channel, mask=used, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + channel, mask=used, other=0.0).to(tl.float32)
    mean = tl.load(s_ptr + 2 * pid)
    rstd = tl.load(s_ptr + 2 * pid + 1)
    if LOOP:
        of_weight, of_bias = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
        for first in range(0, P, ROWS):
            hat, d, _, _ = _hat_and_grad(
                g_ptr, x_ptr, columns, used, w, b, mean, rstd, first, P, C, ROWS, RELU
            )
            of_weight += tl.sum(d * hat, 0)
            of_bias += tl.sum(d, 0)
        along_mean = tl.sum(w * of_bias) / (P * WIDTH)
        along_hat = tl.sum(w * of_weight) / (P * WIDTH)
        for first in range(0, P, ROWS):
            hat, d, offset, live = _hat_and_grad(
                g_ptr, x_ptr, columns, used, w, b, mean, rstd, first, P, C, ROWS, RELU
            )
            dx = rstd * (d * w[None, :] - along_mean - hat * along_hat)
            tl.store(dx_ptr + offset, dx, mask=live)
    else:
        hat, d, offset, live = _hat_and_grad(
            g_ptr, x_ptr, columns, used, w, b, mean, rstd, 0, P, C, ROWS, RELU
        )
        of_weight, of_bias = tl.sum(d * hat, 0), tl.sum(d, 0)
        along_mean = tl.sum(w * of_bias) / (P * WIDTH)
        along_hat = tl.sum(w * of_weight) / (P * WIDTH)
        dx = rstd * (d * w[None, :] - along_mean - hat * along_hat)
        tl.store(dx_ptr + offset, dx, mask=live)
    tl.store(sums_ptr + n * C + channel, of_weight, mask=used)
    tl.store(sums_ptr + (images + n) * C + channel, of_bias, mask=used)


def _plan(positions: int, width: int, relu: bool, *, tile: int, tensors: int) -> dict[str, Any]:
    """The sizes that the kernels are compiled for.

    Multiplications and additions may be fused, as elsewhere here: from Triton 3.9 on one says so.
    """
    columns = triton.next_power_of_2(width)
    most = max(1, tile // columns)
    rows = min(triton.next_power_of_2(positions), most)
    warps = triton.next_power_of_2(max(1, rows * columns * tensors // 2048))
    return {
        "WIDTH": width, "COLUMNS": columns, "ROWS": rows, "LOOP": positions > rows,
        "RELU": relu, "num_warps": min(16, warps), "enable_fp_fusion": True,
    }  # fmt: skip


@torch.library.custom_op("rl_nfm::group_norm", mutates_args=())
def group_norm(
    rows: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, relu: bool
) -> tuple[Tensor, Tensor]:
    """Normalised contiguous rows [N, P, C], and means and inverse deviations [N, G, 2]."""
    out, statistics = _empty_results(rows, weight, bias, groups, eps, relu)
    images, positions, channels = rows.shape
    plan = _plan(positions, channels // groups, relu, tile=FORWARD_TILE, tensors=1)
    if norms.guard.may_launch(rows.device, rows.dtype):
        with norms.guard.falling_back(rows.device, rows.dtype), torch.cuda.device_of(rows):
            _forward[(images * groups,)](
                rows, weight, bias, out, statistics, positions, channels, groups, eps, **plan
            )
            return out, statistics
    return _plain_forward(rows, weight, bias, groups, eps, relu)


def _plain_forward(
    rows: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, relu: bool
) -> tuple[Tensor, Tensor]:
    x = rows.float().unflatten(-1, (groups, -1))  # [N, P, G, C / G]
    statistics = _statistics(x, eps)
    y = _normalised(x, statistics).flatten(2) * weight.float() + bias.float()
    return (y.relu() if relu else y).to(rows.dtype), statistics


def _statistics(x: Tensor, eps: float) -> Tensor:
    variance, mean = torch.var_mean(x, dim=(1, 3), correction=0)
    return torch.stack([mean, torch.rsqrt(variance + eps)], dim=-1)


def _normalised(x: Tensor, statistics: Tensor) -> Tensor:
    mean, rstd = statistics[:, None, :, None].unbind(-1)
    return (x - mean) * rstd


@group_norm.register_fake
def _empty_results(
    rows: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, relu: bool
) -> tuple[Tensor, Tensor]:
    del weight, bias, eps, relu
    return torch.empty_like(rows), rows.new_empty(rows.shape[0], groups, 2, dtype=torch.float32)


@torch.library.custom_op("rl_nfm::group_norm_backward", mutates_args=())
def group_norm_backward(
    grad: Tensor,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    groups: int,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of rows, and of weight and bias by image [2, N, C]."""
    out, sums = _empty_gradients(grad, rows, weight, bias, statistics, groups, eps, relu)
    images, positions, channels = rows.shape
    plan = _plan(positions, channels // groups, relu, tile=BACKWARD_TILE, tensors=2)
    if norms.guard.may_launch(rows.device, rows.dtype):
        with norms.guard.falling_back(rows.device, rows.dtype), torch.cuda.device_of(rows):
            _backward[(images * groups,)](
                grad.contiguous(), rows, weight, bias, statistics, out, sums, positions, channels,
                groups, images, **plan,
            )  # fmt: skip
            return out, sums
    return _plain_backward(grad, rows, weight, bias, statistics, groups, relu)


def _plain_backward(
    grad: Tensor,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    groups: int,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    hat = _normalised(rows.float().unflatten(-1, (groups, -1)), statistics)
    w, b, d = (x.float().unflatten(-1, (groups, -1)) for x in (weight, bias, grad))
    if relu:
        d = d.masked_fill(hat * w + b <= 0, 0.0)
    sums = torch.stack([(d * hat).sum(1), d.sum(1)]).flatten(2)
    d = d * w
    along_mean, along_hat = (x.mean((1, 3), keepdim=True) for x in (d, d * hat))
    rstd = statistics[:, None, :, 1, None]
    dx = rstd * (d - along_mean - hat * along_hat)
    return dx.flatten(2).to(rows.dtype), sums


@group_norm_backward.register_fake
def _empty_gradients(
    grad: Tensor,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    groups: int,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    del grad, weight, bias, statistics, groups, eps, relu
    images, _, channels = rows.shape
    return torch.empty_like(rows), rows.new_empty(2, images, channels, dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    rows, weight, bias, ctx.groups, ctx.eps, ctx.relu = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(rows, weight, bias, output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    rows, weight, bias, statistics = ctx.saved_tensors
    of_rows, sums = group_norm_backward(
        grad, rows, weight, bias, statistics, ctx.groups, ctx.eps, ctx.relu
    )
    of_weight, of_bias = sums.sum(1).unbind()
    return of_rows, of_weight.to(weight.dtype), of_bias.to(bias.dtype), None, None, None


group_norm.register_autograd(_differentiate, setup_context=_save)


def _save_again(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    del output
    grad, rows, weight, bias, _, ctx.groups, ctx.eps, ctx.relu = inputs
    ctx.save_for_backward(grad, rows, weight, bias)


def _differentiate_again(ctx: Any, of_rows: Tensor, of_sums: Tensor) -> tuple[Any, ...]:
    """Derivatives of the gradients, by the plain path, with the statistics as functions of rows."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # views, so that what belongs to `grad` is not followed on into rows, on which it depends
        inputs = [
            x.view_as(x) if again and x.requires_grad else x.detach().requires_grad_()
            for x in ctx.saved_tensors
        ]
        grad, rows, weight, bias = inputs
        statistics = _statistics(rows.float().unflatten(-1, (ctx.groups, -1)), ctx.eps)
        results = _plain_backward(grad, rows, weight, bias, statistics, ctx.groups, ctx.relu)
        grads = torch.autograd.grad(
            results, inputs, (of_rows, of_sums), create_graph=again, allow_unused=True
        )
    return *grads, None, None, None, None


group_norm_backward.register_autograd(_differentiate_again, setup_context=_save_again)
