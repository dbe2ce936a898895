"""What a linear layer does beside its three matrix products, in Triton; `linear` launches these.

PyTorch sums a bias's gradient over N rows at a quarter of the memory's speed, into half precision,
and casts each parameter and each gradient in a kernel of its own. Here sums are float32, made in
two steps of fixed order, so that they are the same from run to run.

Shapes: N rows, C outputs, W numbers in the weights.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# Triton's language looks like Python, but its types are known to its own compiler only.

import triton
import triton.language as tl


@triton.jit
def cast_parameters(
    weight, bias, factor, cast_weight, cast_bias, W, C, SCALED: tl.constexpr, BLOCK: tl.constexpr
):
    """Weights and bias, times a factor where there is one, in the type of the products."""
    f = tl.load(factor).to(tl.float32) if SCALED else 1.0
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(cast_weight + n, f * tl.load(weight + n, mask=n < W).to(tl.float32), mask=n < W)
    c = n - W
    real = (c >= 0) & (c < C)
    tl.store(cast_bias + c, f * tl.load(bias + c, mask=real).to(tl.float32), mask=real)


@triton.jit(do_not_specialize=["N", "share"])
def sum_rows(
    grad, result, masked, sums, N, C, share,
    RELU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums [programs, C] of the gradient [N, C] over `share` rows each.

    RELU: `result` is the layer's, after a ReLU, and `masked` gets the gradient before it.
    """
    part = tl.program_id(0)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    used = (c < C)[None, :]
    last = tl.minimum(N, (part + 1) * share)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(part * share, last, ROWS):
        r = first + tl.arange(0, ROWS)
        live = (r < last)[:, None] & used
        offset = r[:, None].to(tl.int64) * C + c[None, :]
        d = tl.load(grad + offset, mask=live, other=0.0)
        if RELU:
            y = tl.load(result + offset, mask=live, other=0.0)
            d = tl.where(y <= 0, 0.0, d)  # as PyTorch's, which lets NaN through
            tl.store(masked + offset, d, mask=live)
        total += d.to(tl.float32)
    tl.store(sums + part * C + c, tl.sum(total, 0), mask=c < C)


@triton.jit(do_not_specialize=["parts"])
def finish_gradients(
    sums, grad_bias, grad_weight, bias, weight, factor, dots, W, C, parts,
    SCALED: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up the bias's gradient from `sums` [parts, C].

    SCALED: both gradients are those of the parameters times a factor. They are multiplied by it,
    the weights' in place, and `dots` gets what each program's share adds to the factor's gradient.
    """
    pid = tl.program_id(0)
    f = tl.load(factor).to(tl.float32) if SCALED else 1.0
    if pid < tl.cdiv(C, COLUMNS):
        c = pid * COLUMNS + tl.arange(0, COLUMNS)
        used = c < C
        total = tl.zeros([PARTS, COLUMNS], tl.float32)
        for first in range(0, parts, PARTS):
            part = first + tl.arange(0, PARTS)
            live = (part < parts)[:, None] & used[None, :]
            total += tl.load(sums + part[:, None] * C + c[None, :], mask=live, other=0.0)
        one = tl.sum(total, 0)
        tl.store(grad_bias + c, f * one, mask=used)
        if SCALED:
            b = tl.load(bias + c, mask=used, other=0.0).to(tl.float32)
            tl.store(dots + pid, tl.sum(one * b, 0))
    elif SCALED:
        n = (pid - tl.cdiv(C, COLUMNS)) * BLOCK + tl.arange(0, BLOCK)
        product = tl.load(grad_weight + n, mask=n < W, other=0.0)
        w = tl.load(weight + n, mask=n < W, other=0.0).to(tl.float32)
        tl.store(grad_weight + n, f * product, mask=n < W)
        tl.store(dots + pid, tl.sum(product * w, 0))
