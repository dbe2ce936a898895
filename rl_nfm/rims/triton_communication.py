"""How RIMs read from each other, in Triton; the conventions are those of `triton_kernels`.

A program takes one head of one sample.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false
# pyright: reportOptionalOperand=false, reportOperatorIssue=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportPossiblyUnboundVariable=false
# Triton's language looks like Python, but its types are known to its own compiler only.

import triton
import triton.language as tl

from rl_nfm.rims.triton_kernels import row_of


@triton.jit
def _load_parts(projected, row, head, i, N: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
                DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr):  # fmt: skip
    """Queries, keys and values of one head, [n, d] or [n, e]."""
    d = tl.arange(0, DP)
    e = tl.arange(0, EP)
    at = projected + (row * (H * (2 * D + E)))[:, None]
    mask = (i < N)[:, None] & (d < D)[None, :]
    q = tl.load(at + (head * D + d)[None, :], mask=mask, other=0.0)
    k = tl.load(at + (H * D + head * D + d)[None, :], mask=mask, other=0.0)
    mask = (i < N)[:, None] & (e < E)[None, :]
    v = tl.load(at + (2 * H * D + head * E + e)[None, :], mask=mask, other=0.0)
    return q, k, v


@triton.jit(do_not_specialize=["B", "slot", "kept"])
def communicate(
    projected, probs, read, scale, B, slot, kept, N: tl.constexpr, NP: tl.constexpr,
    H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    """Probabilities [n, kept, B, h n] and what the heads read [n, kept, B, h e]."""
    b, head = tl.program_id(0) // H, tl.program_id(0) % H
    i = tl.arange(0, NP)
    row = row_of(i, slot, b, kept, B)
    q, k, v = _load_parts(projected, row, head, i, N, H, D, DP, E, EP)
    score = tl.sum(q[:, None, :] * k[None, :, :], 2) * scale
    score = tl.where((i < N)[None, :], score, float("-inf"))
    p = tl.exp(score - tl.max(score, 1)[:, None])
    p = p / tl.sum(p, 1)[:, None]
    at = (row * (H * N) + head * N)[:, None] + i[None, :]
    tl.store(probs + at, p, mask=(i < N)[:, None] & (i < N)[None, :])
    e = tl.arange(0, EP)
    at = (row * (H * E) + head * E)[:, None] + e[None, :]
    total = tl.sum(p[:, :, None] * v[None, :, :], 1)
    tl.store(read + at, total, mask=(i < N)[:, None] & (e < E)[None, :])


@triton.jit(do_not_specialize=["t", "T", "B"])
def communicate_backward(
    of_read, projected, probs, of_projected, scale, t, T, B, N: tl.constexpr, NP: tl.constexpr,
    H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    """Gradients of queries, keys and values, from that of what was read [n, B, h e]."""
    b, head = tl.program_id(0) // H, tl.program_id(0) % H
    i = tl.arange(0, NP)
    d = tl.arange(0, DP)
    e = tl.arange(0, EP)
    row = row_of(i, t, b, T, B)
    q, k, v = _load_parts(projected, row, head, i, N, H, D, DP, E, EP)
    at = (row * (H * N) + head * N)[:, None] + i[None, :]
    p = tl.load(probs + at, mask=(i < N)[:, None] & (i < N)[None, :], other=0.0)
    wide = (i < N)[:, None] & (e < E)[None, :]
    at = ((i * B + b) * (H * E) + head * E)[:, None] + e[None, :]
    g = tl.load(of_read + at, mask=wide, other=0.0)
    dp = p * tl.sum(g[:, None, :] * v[None, :, :], 2)
    ds = (dp - p * tl.sum(dp, 1)[:, None]) * scale
    to = of_projected + (row * (H * (2 * D + E)))[:, None]
    mask = (i < N)[:, None] & (d < D)[None, :]
    dq = tl.sum(ds[:, :, None] * k[None, :, :], 1)
    tl.store(to + (head * D + d)[None, :], dq, mask=mask)
    dk = tl.sum(ds[:, :, None] * q[:, None, :], 0)
    tl.store(to + (H * D + head * D + d)[None, :], dk, mask=mask)
    dv = tl.sum(p[:, :, None] * g[:, None, :], 0)
    tl.store(to + (2 * H * D + head * E + e)[None, :], dv, mask=wide)
