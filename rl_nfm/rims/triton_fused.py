"""The communication with the product behind it and the end of the step, in one kernel.

As `communicate`, the product with `StepWeights.output` and `finish` after one another, and their
backward likewise: for RIMs that share these weights, if all heads of a sample fit in one program.
The product here is made of three in TF32, which is as exact as float32. The conventions are those
of `triton_kernels`.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false
# pyright: reportOptionalOperand=false, reportOperatorIssue=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportPossiblyUnboundVariable=false
# Triton's language looks like Python, but its types are known to its own compiler only.

import triton
import triton.language as tl

from rl_nfm.rims.triton_backward_kernels import write_update_gradient
from rl_nfm.rims.triton_finish import end_step, load_finish
from rl_nfm.rims.triton_kernels import row_of


@triton.jit
def _load_parts(projected, row, head, i, N: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
                DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr):  # fmt: skip
    """Queries, keys and values of all heads, [h, n, d] or [h, n, e]."""
    d = tl.arange(0, DP)
    e = tl.arange(0, EP)
    there = (head < H)[:, None, None] & (i < N)[None, :, None]
    at = projected + (row * (H * (2 * D + E)))[None, :, None]
    mask = there & (d < D)[None, None, :]
    to = at + (head * D)[:, None, None] + d[None, None, :]
    q = tl.load(to, mask=mask, other=0.0)
    k = tl.load(to + H * D, mask=mask, other=0.0)
    to = at + (2 * H * D + head * E)[:, None, None] + e[None, None, :]
    v = tl.load(to, mask=there & (e < E)[None, None, :], other=0.0)
    return q, k, v


@triton.jit
def _weight_rows(H: tl.constexpr, HP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr):
    """Row of `output` for each padded number that the heads read, and which there are."""
    part = tl.arange(0, HP * EP)
    head, e = part // EP, part % EP
    return head * E + e, (head < H) & (e < E)


@triton.jit(do_not_specialize=["key_rim", "key_step", "key_row", "t", "T", "B", "slot", "kept"])
def communicate_and_finish(
    projected, probs, read, weight, scale, output_bias, dropout, update, shown, hidden, reset,
    last_hidden, output, key_query, key_rim, key_step, key_row, rank_query, valid, gate, active,
    active_out, t, T, B, slot, kept,
    N: tl.constexpr, NP: tl.constexpr, S: tl.constexpr, SP: tl.constexpr, TOP: tl.constexpr,
    GATED: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    """Probabilities [n, kept, B, h n], what the heads read [n, kept, B, h e], and `end_step`."""
    b = tl.program_id(0)
    i = tl.arange(0, NP)
    j = tl.arange(0, SP)
    head = tl.arange(0, HP)
    row = row_of(i, slot, b, kept, B)
    q, k, v = _load_parts(projected, row, head, i, N, H, D, DP, E, EP)
    from_row, there = _weight_rows(H, HP, E, EP)
    at = weight + (from_row * (2 * S if GATED else S))[:, None] + j[None, :]
    mask = there[:, None] & (j < S)[None, :]
    linear = tl.load(at, mask=mask, other=0.0)
    if GATED:
        gated = tl.load(at + S, mask=mask, other=0.0)
    loaded = load_finish(
        output_bias, dropout, shown, hidden, reset, key_query, key_rim, key_step, key_row,
        rank_query, valid, active, i, b, j, t, T, B, slot, kept, N, NP, S, SP, GATED,
    )  # fmt: skip
    score = tl.sum(q[:, :, None, :] * k[:, None, :, :], 3) * scale
    score = tl.where((i < N)[None, None, :], score, float("-inf"))
    p = tl.exp(score - tl.max(score, 2)[:, :, None])
    p = p / tl.sum(p, 2)[:, :, None]
    rows = (head < H)[:, None, None] & (i < N)[None, :, None]
    to = probs + (row * (H * N))[None, :, None] + (head * N)[:, None, None] + i[None, None, :]
    tl.store(to, p, mask=rows & (i < N)[None, None, :])
    total = tl.sum(p[:, :, :, None] * v[:, None, :, :], 2)
    e = tl.arange(0, EP)[None, None, :]
    to = read + (row * (H * E))[None, :, None] + (head * E)[:, None, None] + e
    tl.store(to, total, mask=rows & (e < E))
    total = tl.reshape(tl.permute(total, [1, 0, 2]), [NP, HP * EP])
    added = tl.dot(total, linear, input_precision="tf32x3")
    opened = added
    if GATED:
        opened = tl.dot(total, gated, input_precision="tf32x3")
    end_step(
        added, opened, loaded, update, hidden, last_hidden, output, gate, active, active_out, i, b,
        j, t, T, B, slot, kept, N, S, TOP, GATED,
    )  # fmt: skip


@triton.jit(do_not_specialize=["output_rim", "output_step", "output_row", "t", "T", "B"])
def finish_and_communicate_backward(
    of_hidden, parts, of_output, output_rim, output_step, output_row, reset, active, update,
    dropout, of_update, weight, projected, probs, of_projected, scale, t, T, B,
    N: tl.constexpr, NP: tl.constexpr, S: tl.constexpr, SP: tl.constexpr, PARTS: tl.constexpr,
    GATED: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    """`write_update_gradient`, and the gradients of queries, keys and values [n, T, B, Q]."""
    b = tl.program_id(0)
    i = tl.arange(0, NP)
    j = tl.arange(0, SP)
    head = tl.arange(0, HP)
    row = row_of(i, t, b, T, B)
    q, k, v = _load_parts(projected, row, head, i, N, H, D, DP, E, EP)
    rows = (head < H)[:, None, None] & (i < N)[None, :, None]
    at = probs + (row * (H * N))[None, :, None] + (head * N)[:, None, None] + i[None, None, :]
    p = tl.load(at, mask=rows & (i < N)[None, None, :], other=0.0)
    from_row, there = _weight_rows(H, HP, E, EP)
    at = weight + (from_row * (2 * S if GATED else S))[None, :] + j[:, None]
    mask = there[None, :] & (j < S)[:, None]
    linear = tl.load(at, mask=mask, other=0.0)
    if GATED:
        gated = tl.load(at + S, mask=mask, other=0.0)
    of_linear, of_gate = write_update_gradient(
        of_hidden, parts, of_output, output_rim, output_step, output_row, reset, active, update,
        dropout, of_update, i[:, None], b, j[None, :], t, T, B, N, S, PARTS, GATED,
    )  # fmt: skip
    g = tl.dot(of_linear, linear, input_precision="tf32x3")
    if GATED:
        g += tl.dot(of_gate, gated, input_precision="tf32x3")
    g = tl.permute(tl.reshape(g, [NP, HP, EP]), [1, 0, 2])
    dp = p * tl.sum(g[:, :, None, :] * v[:, None, :, :], 3)
    ds = (dp - p * tl.sum(dp, 2)[:, :, None]) * scale
    d = tl.arange(0, DP)[None, None, :]
    e = tl.arange(0, EP)[None, None, :]
    to = of_projected + (row * (H * (2 * D + E)))[None, :, None]
    to_query = to + (head * D)[:, None, None] + d
    dq = tl.sum(ds[:, :, :, None] * k[:, None, :, :], 2)
    tl.store(to_query, dq, mask=rows & (d < D))
    dk = tl.sum(ds[:, :, :, None] * q[:, :, None, :], 1)
    tl.store(to_query + H * D, dk, mask=rows & (d < D))
    dv = tl.sum(p[:, :, :, None] * g[:, :, None, :], 1)
    to += (2 * H * D + head * E)[:, None, None]
    tl.store(to + e, dv, mask=rows & (e < E))
