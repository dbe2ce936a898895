"""The backward of the kernels in `triton_kernels`, whose conventions hold here too."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false
# pyright: reportOptionalOperand=false, reportOperatorIssue=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportPossiblyUnboundVariable=false
# Triton's language looks like Python, but its types are known to its own compiler only.

import triton
import triton.language as tl

from rl_nfm.rims.triton_kernels import flag, offset_of, row_of


@triton.jit
def _arriving(
    of_hidden, parts, of_output, output_rim, output_step, output_row, reset, i, b, j, t, T, B, mask,
    S: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Gradient of the new state of one RIM: that of the next step, and of the output.

    What came through the product of the next step stands in `parts` [n, PARTS, B, s], by gate.
    """
    x = tl.load(of_hidden + (i * B + b) * S + j, mask=mask, other=0.0)
    for part in tl.static_range(PARTS):
        x += tl.load(parts + ((i * PARTS + part) * B + b) * S + j, mask=mask, other=0.0)
    x = tl.where(flag(reset, t + 1, b, T, B), 0.0, x)
    if of_output is not None:
        at = offset_of(i, t, b, output_rim, output_step, output_row) + j
        x += tl.load(of_output + at, mask=mask, other=0.0)
    return x


@triton.jit(do_not_specialize=["output_rim", "output_step", "output_row", "t", "T", "B"])
def finish_backward(
    of_hidden, parts, of_output, output_rim, output_step, output_row, reset, active, update,
    dropout, of_update, t, T, B,
    S: tl.constexpr, SP: tl.constexpr, PARTS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Gradient of what was read times its weights, [n, T, B, U]."""
    i, b = tl.program_id(0) // B, tl.program_id(0) % B
    j = tl.arange(0, SP)
    mask = j < S
    width = 2 * S if GATED else S
    row = row_of(i, t, b, T, B)
    m = tl.load(active + row) != 0
    dh = _arriving(of_hidden, parts, of_output, output_rim, output_step, output_row, reset, i, b, j,
                   t, T, B, mask, S, PARTS)  # fmt: skip
    dh = tl.where(m, dh, 0.0)
    factor = 1.0
    if dropout is not None:
        factor = tl.load(dropout + row * S + j, mask=mask, other=0.0)
    to = of_update + row * width + j
    if GATED:
        squashed = tl.load(update + row * width + j, mask=mask, other=0.0)
        opened = tl.load(update + row * width + S + j, mask=mask, other=0.0)
        of_gate = dh * squashed * opened * (1 - opened)
        tl.store(to + S, tl.where(m, of_gate, 0.0), mask=mask)
        dh = tl.where(m, dh * opened * (1 - squashed * squashed), 0.0)
    tl.store(to, dh * factor, mask=mask)


@triton.jit(do_not_specialize=[
    "output_rim", "output_step", "output_row", "drive_rim", "drive_step", "drive_row", "key_rim",
    "key_step", "key_row", "t", "T", "B",
])  # fmt: skip
def blocks_backward(
    of_hidden, parts, of_output, output_rim, output_step, output_row, of_shown, of_cell, reset,
    active, acts, extra, cell, hidden, drive, drive_rim, drive_step, drive_row, gate, key_query,
    key_rim, key_step, key_row, of_gates, of_product, of_parts, of_key_query, before_hidden,
    before_cell, t, T, B,
    S: tl.constexpr, SP: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Gradients of the gates, of the input's logit, and of the states before the step.

    That of the hidden state lacks what comes through the product with the weights: the gradient of
    that product is `of_product`, of an LSTM `of_gates`, and, once more, `of_parts` by gate.
    """
    i, b = tl.program_id(0) // B, tl.program_id(0) % B
    j = tl.arange(0, SP)
    mask = j < S
    gates = PARTS * S
    row = row_of(i, t, b, T, B)
    state = (i * B + b) * S + j
    m = tl.load(active + row) != 0
    arrived = _arriving(of_hidden, parts, of_output, output_rim, output_step, output_row, reset, i,
                        b, j, t, T, B, mask, S, PARTS)  # fmt: skip
    dh = arrived
    if of_shown is not None:
        dh += tl.load(of_shown + state, mask=mask, other=0.0)
    h = tl.load(hidden + row * S + j, mask=mask, other=0.0)
    at = acts + row * gates + j
    a0 = tl.load(at, mask=mask, other=0.0)
    a1 = tl.load(at + S, mask=mask, other=0.0)
    a2 = tl.load(at + 2 * S, mask=mask, other=0.0)
    other = tl.load(extra + row * S + j, mask=mask, other=0.0)
    to = of_gates + row * gates + j
    drive += offset_of(i, t, b, drive_rim, drive_step, drive_row) + j
    if gate is not None:
        weight = tl.load(gate + row)
        d0 = tl.load(drive, mask=mask, other=0.0)
        d1 = tl.load(drive + S, mask=mask, other=0.0)
        d2 = tl.load(drive + 2 * S, mask=mask, other=0.0)
        at_key = offset_of(i, t, b, key_rim, key_step, key_row) + j
        key = tl.load(key_query + at_key, mask=mask, other=0.0)
    part = B * S
    of_parts += (i * PARTS * B + b) * S + j
    if PARTS == 4:
        a3 = tl.load(at + 3 * S, mask=mask, other=0.0)
        c = tl.load(cell + row * S + j, mask=mask, other=0.0)
        dc = tl.load(of_cell + state, mask=mask, other=0.0)
        dc = tl.where(flag(reset, t + 1, b, T, B), 0.0, dc)
        if gate is not None:
            d3 = tl.load(drive + 3 * S, mask=mask, other=0.0)
        total = dc + dh * a3 * (1 - other * other)
        g0 = tl.where(m, total * a2 * a0 * (1 - a0), 0.0)
        g1 = tl.where(m, total * c * a1 * (1 - a1), 0.0)
        g2 = tl.where(m, total * a0 * (1 - a2 * a2), 0.0)
        g3 = tl.where(m, dh * other * a3 * (1 - a3), 0.0)
        tl.store(before_cell + state, tl.where(m, total * a1, dc), mask=mask)
        tl.store(to + 3 * S, g3, mask=mask)
        tl.store(of_parts + 3 * part, g3, mask=mask)
        through2 = g2
        before = tl.where(m, 0.0, arrived)
    else:
        mixed = dh * a1
        g2 = tl.where(m, (dh - mixed) * (1 - a2 * a2), 0.0)
        g0 = tl.where(m, g2 * other * a0 * (1 - a0), 0.0)
        g1 = tl.where(m, dh * (h - a2) * a1 * (1 - a1), 0.0)
        to_product = of_product + row * gates + j
        tl.store(to_product, g0, mask=mask)
        tl.store(to_product + S, g1, mask=mask)
        through2 = g2 * a0
        tl.store(to_product + 2 * S, through2, mask=mask)
        before = tl.where(m, mixed, arrived)
    tl.store(to, g0, mask=mask)
    tl.store(to + S, g1, mask=mask)
    tl.store(to + 2 * S, g2, mask=mask)
    tl.store(of_parts, g0, mask=mask)
    tl.store(of_parts + part, g1, mask=mask)
    tl.store(of_parts + 2 * part, through2, mask=mask)
    if gate is not None:
        along = g0 * d0 + g1 * d1 + g2 * d2
        if PARTS == 4:
            along += g3 * d3
        of_logit = tl.sum(along) * weight * (1 - weight)
        before += of_logit * key
        tl.store(of_key_query + at_key, of_logit * h, mask=mask)
    tl.store(before_hidden + state, before, mask=mask)
