"""The backward of the kernels in `triton_kernels`, whose conventions hold here too."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false
# pyright: reportOptionalOperand=false, reportOperatorIssue=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false
# Triton's language looks like Python, but its types are known to its own compiler only.

import triton
import triton.language as tl

from rl_nfm.rims.triton_kernels import flag, load_parts, offset_of, row_of


@triton.jit
def _arriving(of_hidden, of_output, output_rim, output_step, output_row, reset, i, b, j, t, T, B,
              mask, S: tl.constexpr):  # fmt: skip
    """Gradient of the new state of one RIM: that of the next step, and of the output."""
    x = tl.load(of_hidden + (i * B + b) * S + j, mask=mask, other=0.0)
    if reset is not None:
        x = tl.where(flag(reset, t + 1, b, T, B), 0.0, x)
    if of_output is not None:
        at = offset_of(i, t, b, output_rim, output_step, output_row) + j
        x += tl.load(of_output + at, mask=mask, other=0.0)
    return x


@triton.jit(do_not_specialize=["output_rim", "output_step", "output_row", "t", "T", "B"])
def finish_backward(
    of_hidden, of_output, output_rim, output_step, output_row, reset, active, update, dropout,
    of_update, t, T, B, S: tl.constexpr, SP: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Gradient of what was read times its weights, [n, T, B, U]."""
    i, b = tl.program_id(0) // B, tl.program_id(0) % B
    j = tl.arange(0, SP)
    mask = j < S
    width = 2 * S if GATED else S
    row = row_of(i, t, b, T, B)
    m = tl.load(active + row) != 0
    dh = _arriving(of_hidden, of_output, output_rim, output_step, output_row, reset, i, b, j, t, T,
                   B, mask, S)  # fmt: skip
    dh = tl.where(m, dh, 0.0)
    to = of_update + row * width + j
    if GATED:
        squashed = tl.load(update + row * width + j, mask=mask, other=0.0)
        opened = tl.load(update + row * width + S + j, mask=mask, other=0.0)
        of_gate = dh * squashed * opened * (1 - opened)
        tl.store(to + S, tl.where(m, of_gate, 0.0), mask=mask)
        dh = tl.where(m, dh * opened * (1 - squashed * squashed), 0.0)
    if dropout is not None:
        dh *= tl.load(dropout + row * S + j, mask=mask, other=0.0)
    tl.store(to, dh, mask=mask)


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
    q, k, v = load_parts(projected, row, head, i, N, H, D, DP, E, EP)
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


@triton.jit
def _store_gate(to, grad, drive, j, mask, PART: tl.constexpr, S: tl.constexpr):
    """Write the gradient of one of the gates; return its products with the drive."""
    tl.store(to + PART * S + j, grad, mask=mask)
    return grad * tl.load(drive + PART * S + j, mask=mask, other=0.0)


@triton.jit(do_not_specialize=[
    "output_rim", "output_step", "output_row", "drive_rim", "drive_step", "drive_row", "key_rim",
    "key_step", "key_row", "t", "T", "B",
])  # fmt: skip
def blocks_backward(
    of_hidden, of_output, output_rim, output_step, output_row, of_shown, of_cell, reset, active,
    acts, extra, cell, hidden, drive, drive_rim, drive_step, drive_row, gate, key_query, key_rim,
    key_step, key_row, of_gates, of_product, of_key_query, before_hidden, before_cell, t, T, B,
    S: tl.constexpr, SP: tl.constexpr, LSTM: tl.constexpr,
):  # fmt: skip
    """Gradients of the gates, of the input's logit, and of the states before the step.

    That of the hidden state lacks what the product of `of_product` (LSTM: `of_gates`) adds.
    """
    i, b = tl.program_id(0) // B, tl.program_id(0) % B
    j = tl.arange(0, SP)
    mask = j < S
    gates = 4 * S if LSTM else 3 * S
    row = row_of(i, t, b, T, B)
    state = (i * B + b) * S + j
    m = tl.load(active + row) != 0
    arrived = _arriving(of_hidden, of_output, output_rim, output_step, output_row, reset, i, b, j,
                        t, T, B, mask, S)  # fmt: skip
    dh = arrived
    if of_shown is not None:
        dh += tl.load(of_shown + state, mask=mask, other=0.0)
    h = tl.load(hidden + row * S + j, mask=mask, other=0.0)
    at = acts + row * gates + j
    a0 = tl.load(at, mask=mask, other=0.0)
    a1 = tl.load(at + S, mask=mask, other=0.0)
    a2 = tl.load(at + 2 * S, mask=mask, other=0.0)
    other = tl.load(extra + row * S + j, mask=mask, other=0.0)
    to = of_gates + row * gates
    drive += offset_of(i, t, b, drive_rim, drive_step, drive_row)
    if LSTM:
        a3 = tl.load(at + 3 * S, mask=mask, other=0.0)
        c = tl.load(cell + row * S + j, mask=mask, other=0.0)
        dc = tl.load(of_cell + state, mask=mask, other=0.0)
        if reset is not None:
            dc = tl.where(flag(reset, t + 1, b, T, B), 0.0, dc)
        total = dc + dh * a3 * (1 - other * other)
        tl.store(before_cell + state, tl.where(m, total * a1, dc), mask=mask)
        along = _store_gate(to, tl.where(m, total * a2 * a0 * (1 - a0), 0.0), drive, j, mask, 0, S)
        along += _store_gate(to, tl.where(m, total * c * a1 * (1 - a1), 0.0), drive, j, mask, 1, S)
        along += _store_gate(to, tl.where(m, total * a0 * (1 - a2 * a2), 0.0), drive, j, mask, 2, S)
        of_a3 = tl.where(m, dh * other * a3 * (1 - a3), 0.0)
        along += _store_gate(to, of_a3, drive, j, mask, 3, S)
        before = tl.where(m, 0.0, arrived)
    else:
        mixed = dh * a1
        of_new = tl.where(m, (dh - mixed) * (1 - a2 * a2), 0.0)
        of_r = tl.where(m, of_new * other * a0 * (1 - a0), 0.0)
        of_z = tl.where(m, dh * (h - a2) * a1 * (1 - a1), 0.0)
        along = _store_gate(to, of_r, drive, j, mask, 0, S)
        along += _store_gate(to, of_z, drive, j, mask, 1, S)
        along += _store_gate(to, of_new, drive, j, mask, 2, S)
        to = of_product + row * gates + j
        tl.store(to, of_r, mask=mask)
        tl.store(to + S, of_z, mask=mask)
        tl.store(to + 2 * S, of_new * a0, mask=mask)
        before = tl.where(m, mixed, arrived)
    if gate is not None:
        weight = tl.load(gate + row)
        of_logit = tl.sum(along) * weight * (1 - weight)
        at = offset_of(i, t, b, key_rim, key_step, key_row) + j
        before += of_logit * tl.load(key_query + at, mask=mask, other=0.0)
        tl.store(of_key_query + at, of_logit * h, mask=mask)
    tl.store(before_hidden + state, before, mask=mask)
