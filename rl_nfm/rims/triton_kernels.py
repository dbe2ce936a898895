"""The steps of Recurrent Independent Mechanisms between their matrix products, in Triton: forward.

`triton_loop` launches these and the kernels of `triton_backward_kernels`; `step`, `blocks` and
`communication` hold the equations, whose letters are used here: n RIMs, B batch, s size of a RIM, G
its gates, h heads, d and e sizes of a head's keys and values, Q queries, keys and values of a RIM,
U its update with the gate. A program takes one RIM of one sample, in the communication one head of
one sample, and all RIMs of one sample where these compete.

What is kept of the steps is dense, [n, T, B, ...], or [n, kept, B, ...] for parts that no other
step reads, where step t lies at `slot`; if no gradient is needed, one step is kept. Tensors that
come from outside have strides of RIMs, steps and rows. Sizes that end in P are the ones before
them, brought to a power of two. Parts that a form of RIMs does not have are None. All is float32;
flags are uint8. No result depends on timing.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false
# pyright: reportOptionalOperand=false, reportOperatorIssue=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false
# Triton's language looks like Python, but its types are known to its own compiler only.

import triton
import triton.language as tl


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    """From its series in x^2 near 0, where 1 - 2 / (1 + e^2x) would lose all digits."""
    square = x * x
    series = -0.00570498686 * square + 0.02063908800
    series = series * square - 0.05373971537
    series = series * square + 0.13331441581
    series = series * square - 0.33333280683
    size = tl.abs(x)
    far = 1 - 2 / (1 + tl.exp(2 * size))
    return tl.where(size < 0.625, x + x * (square * series), tl.where(x < 0, -far, far))


@triton.jit
def row_of(i, t, b, T, B):
    """Number of a row of [n, T, B, ...]."""
    return (i.to(tl.int64) * T + t) * B + b


@triton.jit
def offset_of(i, t, b, of_rim, of_step, of_row):
    """Offset of a row of a tensor with strides."""
    return i.to(tl.int64) * of_rim + tl.cast(t, tl.int64) * of_step + b * of_row


@triton.jit
def flag(flags, t, b, T, B):
    """Whether the flag [T, B] of step t is set; not after the last step."""
    return tl.load(flags + t * B + b, mask=t < T, other=0) != 0


@triton.jit
def _choose(
    h, key_query, key_rim, key_step, key_row, rank_query, valid, gate, active, active_out,
    i, j, b, t, T, B, N: tl.constexpr, S: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """Write how much each RIM reads of the input of step t, and which are active, if it exists."""
    there = (i < N) & (t + 0 * i < T)
    mask = there[:, None] & (j < S)[None, :]
    at = offset_of(i, t, b, key_rim, key_step, key_row)[:, None] + j[None, :]
    logit = tl.sum(h * tl.load(key_query + at, mask=mask, other=0.0), 1)
    rank = logit
    if rank_query is not None:
        added = tl.load(rank_query + i[:, None] * S + j[None, :], mask=mask, other=0.0)
        rank = logit + tl.sum(h * added, 1)
    mine, theirs = rank[:, None], rank[None, :]
    lower = i[None, :] < i[:, None]  # among equal ones the lower index is ahead
    ahead = ((theirs > mine) | (lower & (theirs == mine))) & (i < N)[None, :]
    chosen = tl.sum(ahead.to(tl.int32), 1) < TOP
    if valid is not None:
        chosen = tl.where(flag(valid, t, b, T, B), chosen, False)
    row = row_of(i, t, b, T, B)
    tl.store(gate + row, _sigmoid(logit), mask=there)
    tl.store(active + row, chosen.to(tl.uint8), mask=there)
    tl.store(active_out + (t * B + b) * N + i, chosen.to(tl.uint8), mask=there)


@triton.jit(do_not_specialize=["key_rim", "key_step", "key_row", "T", "B"])
def begin(
    first_hidden, first_cell, reset, hidden, cell, key_query, key_rim, key_step, key_row,
    rank_query, valid, gate, active, active_out, T, B,
    N: tl.constexpr, NP: tl.constexpr, S: tl.constexpr, SP: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """The states [n, B, s] before the first step, and what `_choose` writes."""
    b = tl.program_id(0)
    i = tl.arange(0, NP)
    j = tl.arange(0, SP)
    mask = (i < N)[:, None] & (j < S)[None, :]
    source = (i * B + b)[:, None] * S + j[None, :]
    target = (row_of(i, 0, b, T, B) * S)[:, None] + j[None, :]
    h = tl.load(first_hidden + source, mask=mask, other=0.0)
    if reset is not None:
        h = tl.where(flag(reset, 0, b, T, B), 0.0, h)
    tl.store(hidden + target, h, mask=mask)
    if cell is not None:
        c = tl.load(first_cell + source, mask=mask, other=0.0)
        if reset is not None:
            c = tl.where(flag(reset, 0, b, T, B), 0.0, c)
        tl.store(cell + target, c, mask=mask)
    _choose(
        h, key_query, key_rim, key_step, key_row, rank_query, valid, gate, active, active_out,
        i, j, b, 0, T, B, N, S, TOP,
    )  # fmt: skip


@triton.jit
def _store_state(state, last, x, i, b, j, t, T, B, mask, reset, S: tl.constexpr):
    """Write a state after step t: before the next one, zero if that begins anew, or the last."""
    if reset is not None:
        x = tl.where(flag(reset, t + 1, b, T, B), 0.0, x)
    before = row_of(i, t + 1, b, T, B) * S
    after = (i * B + b) * S
    left = T - 1 - t + 0 * j
    if len(x.shape) == 2:
        before, after = before[:, None], after[:, None]
        left, j = left[None, :], j[None, :]
    tl.store(state + before + j, x, mask=mask & (left > 0))
    tl.store(last + after + j, x, mask=mask & (left == 0))
    return x


@triton.jit
def _gate_input(drive, base, weight, active, j, mask, PART: tl.constexpr, S: tl.constexpr,
                MASK_INPUT: tl.constexpr):  # fmt: skip
    """The input's part of one of the gates."""
    at = PART * S + j
    x = tl.load(base + at, mask=mask, other=0.0)
    x += weight * tl.load(drive + at, mask=mask, other=0.0)
    return tl.where(active, x, 0.0) if MASK_INPUT else x


@triton.jit(do_not_specialize=[
    "drive_rim", "drive_step", "drive_row", "t", "T", "B", "slot", "kept",
])  # fmt: skip
def run_blocks(
    product, drive, drive_rim, drive_step, drive_row, base, hidden_bias, gate, active, hidden,
    cell, reset, acts, extra, shown, last_hidden, last_cell, output, t, T, B, slot, kept,
    N: tl.constexpr, S: tl.constexpr, SP: tl.constexpr, LSTM: tl.constexpr,
    MASK_INPUT: tl.constexpr, PREVIOUS: tl.constexpr,
):  # fmt: skip
    """Candidates from the product of states and weights [n, B, G], and what the RIMs show.

    The new cell state too. Without communication (`output` is not None) the candidates are the new
    states.
    """
    i, b = tl.program_id(0) // B, tl.program_id(0) % B
    j = tl.arange(0, SP)
    mask = j < S
    gates = 4 * S if LSTM else 3 * S
    row = row_of(i, t, b, T, B)
    step = row_of(i, slot, b, kept, B)
    m = tl.load(active + row) != 0
    h = tl.load(hidden + row * S + j, mask=mask, other=0.0)
    weight = 1.0
    if gate is not None:
        weight = tl.load(gate + row)
    product += (i * B + b).to(tl.int64) * gates + j
    drive += offset_of(i, t, b, drive_rim, drive_step, drive_row)
    base += i * gates
    x0 = _gate_input(drive, base, weight, m, j, mask, 0, S, MASK_INPUT)
    x1 = _gate_input(drive, base, weight, m, j, mask, 1, S, MASK_INPUT)
    x2 = _gate_input(drive, base, weight, m, j, mask, 2, S, MASK_INPUT)
    p0 = tl.load(product, mask=mask, other=0.0)
    p1 = tl.load(product + S, mask=mask, other=0.0)
    p2 = tl.load(product + 2 * S, mask=mask, other=0.0)
    to = acts + step * gates + j
    if LSTM:
        x3 = _gate_input(drive, base, weight, m, j, mask, 3, S, MASK_INPUT)
        p3 = tl.load(product + 3 * S, mask=mask, other=0.0)
        c = tl.load(cell + row * S + j, mask=mask, other=0.0)
        a0 = _sigmoid(x0 + p0)
        a1 = _sigmoid(x1 + p1)
        a2 = _tanh(x2 + p2)
        a3 = _sigmoid(x3 + p3)
        new = a1 * c + a0 * a2
        other = _tanh(new)
        candidate = a3 * other
        tl.store(to + 3 * S, a3, mask=mask)
        _store_state(cell, last_cell, tl.where(m, new, c), i, b, j, t, T, B, mask, reset, S)
    else:
        if hidden_bias is not None:
            hidden_bias += i * gates + j
            p0 += tl.load(hidden_bias, mask=mask, other=0.0)
            p1 += tl.load(hidden_bias + S, mask=mask, other=0.0)
            p2 += tl.load(hidden_bias + 2 * S, mask=mask, other=0.0)
        a0 = _sigmoid(x0 + p0)
        a1 = _sigmoid(x1 + p1)
        other = p2
        a2 = _tanh(x2 + a0 * p2)
        candidate = a2 + a1 * (h - a2)
    tl.store(to, a0, mask=mask)
    tl.store(to + S, a1, mask=mask)
    tl.store(to + 2 * S, a2, mask=mask)
    tl.store(extra + step * S + j, other, mask=mask)
    if output is not None:
        new_h = tl.where(m, candidate, h)
        tl.store(output + ((t * B + b).to(tl.int64) * N + i) * S + j, new_h, mask=mask)
        _store_state(hidden, last_hidden, new_h, i, b, j, t, T, B, mask, reset, S)
    else:
        shows = tl.where(m, candidate, h) if PREVIOUS else candidate
        tl.store(shown + step * S + j, shows, mask=mask)


@triton.jit
def load_parts(projected, row, head, i, N: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
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
    q, k, v = load_parts(projected, row, head, i, N, H, D, DP, E, EP)
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


@triton.jit(do_not_specialize=["key_rim", "key_step", "key_row", "t", "T", "B", "slot", "kept"])
def finish(
    linear, output_bias, dropout, update, shown, hidden, reset, last_hidden, output, key_query,
    key_rim, key_step, key_row, rank_query, valid, gate, active, active_out, t, T, B, slot, kept,
    N: tl.constexpr, NP: tl.constexpr, S: tl.constexpr, SP: tl.constexpr, TOP: tl.constexpr,
    GATED: tl.constexpr,
):  # fmt: skip
    """New states from what was read times its weights [n, B, U]; then `_choose` of the next step.

    `update` keeps the linear part and the gate after their nonlinearities [n, kept, B, U].
    """
    b = tl.program_id(0)
    i = tl.arange(0, NP)
    j = tl.arange(0, SP)
    width = 2 * S if GATED else S
    mask = (i < N)[:, None] & (j < S)[None, :]
    row = row_of(i, t, b, T, B)
    step = row_of(i, slot, b, kept, B)
    m = (tl.load(active + row, mask=i < N, other=0) != 0)[:, None]
    here = (row * S)[:, None] + j[None, :]
    h = tl.load(hidden + here, mask=mask, other=0.0)
    candidate = tl.load(shown + (step * S)[:, None] + j[None, :], mask=mask, other=0.0)
    at = ((i * B + b) * width)[:, None] + j[None, :]
    added = tl.load(linear + at, mask=mask, other=0.0)
    if output_bias is not None:
        added += tl.load(output_bias + j, mask=j < S, other=0.0)[None, :]
    if dropout is not None:
        added *= tl.load(dropout + here, mask=mask, other=0.0)
    if GATED:
        opened = tl.load(linear + at + S, mask=mask, other=0.0)
        if output_bias is not None:
            opened += tl.load(output_bias + S + j, mask=j < S, other=0.0)[None, :]
        opened = _sigmoid(opened)
        added = _tanh(added)
        to = update + (step * width)[:, None] + j[None, :]
        tl.store(to, added, mask=mask)
        tl.store(to + S, opened, mask=mask)
        added *= opened
    h = tl.where(m, candidate + added, h)
    at = ((t * B + b).to(tl.int64) * (N * S) + i * S)[:, None] + j[None, :]
    tl.store(output + at, h, mask=mask)
    h = _store_state(hidden, last_hidden, h, i, b, j, t, T, B, mask, reset, S)
    _choose(
        h, key_query, key_rim, key_step, key_row, rank_query, valid, gate, active, active_out,
        i, j, b, t + 1, T, B, N, S, TOP,
    )  # fmt: skip
