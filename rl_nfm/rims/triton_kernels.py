"""The steps of Recurrent Independent Mechanisms between their matrix products, in Triton: forward.

`triton_loop` launches these, the kernels of `triton_backward_kernels` and `triton_communication`;
`step`, `blocks` and `communication` hold the equations, whose letters are used here: n RIMs, B
batch, s size of a RIM, G its gates, h heads, d and e sizes of a head's keys and values, Q queries,
keys and values of a RIM, U its update with the gate. A program takes one RIM of one sample, or all
of one sample where these compete.

Each program loads what it can before it stores: its time is mostly that of waiting for memory, and
what stands behind a store would wait once more.

What is kept of the steps is dense, [n, T, B, ...], or [n, kept, B, ...] for parts that no other
step reads, where step t lies at `slot`; if no gradient is needed, one step is kept. Tensors that
come from outside have strides of RIMs, steps and rows. Sizes that end in P are the ones before
them, brought to a power of two. Parts that a form of RIMs does not have are None. All is float32;
flags are uint8. No result depends on timing.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false
# pyright: reportOptionalOperand=false, reportOperatorIssue=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportPossiblyUnboundVariable=false
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
    """Whether the flag [T, B] of step t is set; not after the last step, nor without flags."""
    is_set = b < 0
    if flags is not None:
        is_set = tl.load(flags + t * B + b, mask=t < T, other=0) != 0
    return is_set


@triton.jit
def _load_choice(
    key_query, key_rim, key_step, key_row, rank_query, valid, i, j, b, t, T, B,
    N: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """What `_choose` needs of step t: products with the state are logits, then ranks."""
    mask = ((i < N) & (t + 0 * i < T))[:, None] & (j < S)[None, :]
    at = offset_of(i, t, b, key_rim, key_step, key_row)[:, None] + j[None, :]
    key = tl.load(key_query + at, mask=mask, other=0.0)
    ranker = key
    if rank_query is not None:
        at = i[:, None] * S + j[None, :]
        ranker += tl.load(rank_query + at, mask=mask, other=0.0)
    is_valid = b >= 0
    if valid is not None:
        is_valid = flag(valid, t, b, T, B)
    return key, ranker, is_valid


@triton.jit
def _choose(h, key, ranker, is_valid, gate, active, active_out, i, b, t, T, B, N: tl.constexpr,
            TOP: tl.constexpr):  # fmt: skip
    """Write how much each RIM reads of the input of step t, and which are active, if it exists."""
    mask = (i < N) & (t + 0 * i < T)
    logit = tl.sum(h * key, 1)
    rank = tl.sum(h * ranker, 1)
    mine, theirs = rank[:, None], rank[None, :]
    lower = i[None, :] < i[:, None]  # among equal ones the lower index is ahead
    ahead = ((theirs > mine) | (lower & (theirs == mine))) & (i < N)[None, :]
    chosen = tl.sum(ahead.to(tl.int32), 1) < TOP
    chosen = tl.where(is_valid, chosen, False).to(tl.uint8)
    row = row_of(i, t, b, T, B)
    tl.store(gate + row, _sigmoid(logit), mask=mask)
    tl.store(active + row, chosen, mask=mask)
    tl.store(active_out + (t * B + b) * N + i, chosen, mask=mask)


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
    cut = flag(reset, 0, b, T, B)
    key, ranker, is_valid = _load_choice(
        key_query, key_rim, key_step, key_row, rank_query, valid, i, j, b, 0, T, B, N, S
    )
    if cell is not None:
        c = tl.load(first_cell + source, mask=mask, other=0.0)
        tl.store(cell + target, tl.where(cut, 0.0, c), mask=mask)
    h = tl.where(cut, 0.0, h)
    tl.store(hidden + target, h, mask=mask)
    _choose(h, key, ranker, is_valid, gate, active, active_out, i, b, 0, T, B, N, TOP)


@triton.jit
def _store_state(state, last, x, i, b, j, t, T, B, mask, S: tl.constexpr):
    """Write a state after step t: that before the next one, or the last."""
    before = row_of(i, t + 1, b, T, B) * S
    after = (i * B + b) * S
    left = T - 1 - t + 0 * j
    if len(x.shape) == 2:
        before, after = before[:, None], after[:, None]
        left, j = left[None, :], j[None, :]
    tl.store(state + before + j, x, mask=mask & (left > 0))
    tl.store(last + after + j, x, mask=mask & (left == 0))


@triton.jit
def _load_gate(
    product, drive, base, hidden_bias, weight, active, j, mask,
    PART: tl.constexpr, S: tl.constexpr, MASK_INPUT: tl.constexpr,
):  # fmt: skip
    """The parts of one of the gates that come from the input, and from the state."""
    at = PART * S + j
    from_state = tl.load(product + at, mask=mask, other=0.0)
    x = tl.load(base + at, mask=mask, other=0.0)
    x += weight * tl.load(drive + at, mask=mask, other=0.0)
    if hidden_bias is not None:
        from_state += tl.load(hidden_bias + at, mask=mask, other=0.0)
    if MASK_INPUT:
        x = tl.where(active, x, 0.0)
    return x, from_state


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
    cut = flag(reset, t + 1, b, T, B)
    weight = 1.0
    if gate is not None:
        weight = tl.load(gate + row)
    h = tl.load(hidden + row * S + j, mask=mask, other=0.0)
    product += (i * B + b).to(tl.int64) * gates
    drive += offset_of(i, t, b, drive_rim, drive_step, drive_row)
    base += i * gates
    if hidden_bias is not None:
        hidden_bias += i * gates
    x0, p0 = _load_gate(product, drive, base, hidden_bias, weight, m, j, mask, 0, S, MASK_INPUT)
    x1, p1 = _load_gate(product, drive, base, hidden_bias, weight, m, j, mask, 1, S, MASK_INPUT)
    x2, p2 = _load_gate(product, drive, base, hidden_bias, weight, m, j, mask, 2, S, MASK_INPUT)
    to = acts + step * gates + j
    a0 = _sigmoid(x0 + p0)
    a1 = _sigmoid(x1 + p1)
    if LSTM:
        x3, p3 = _load_gate(product, drive, base, hidden_bias, weight, m, j, mask, 3, S, MASK_INPUT)
        c = tl.load(cell + row * S + j, mask=mask, other=0.0)
        a2 = _tanh(x2 + p2)
        a3 = _sigmoid(x3 + p3)
        new = a1 * c + a0 * a2
        other = _tanh(new)
        candidate = a3 * other
        tl.store(to + 3 * S, a3, mask=mask)
        new = tl.where(cut, 0.0, tl.where(m, new, c))
        _store_state(cell, last_cell, new, i, b, j, t, T, B, mask, S)
    else:
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
        new_h = tl.where(cut, 0.0, new_h)
        _store_state(hidden, last_hidden, new_h, i, b, j, t, T, B, mask, S)
    else:
        shows = tl.where(m, candidate, h) if PREVIOUS else candidate
        tl.store(shown + step * S + j, shows, mask=mask)


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
    here = (row * S)[:, None] + j[None, :]
    at = ((i * B + b) * width)[:, None] + j[None, :]
    m = (tl.load(active + row, mask=i < N, other=0) != 0)[:, None]
    cut = flag(reset, t + 1, b, T, B)
    h = tl.load(hidden + here, mask=mask, other=0.0)
    candidate = tl.load(shown + (step * S)[:, None] + j[None, :], mask=mask, other=0.0)
    added = tl.load(linear + at, mask=mask, other=0.0)
    if GATED:
        opened = tl.load(linear + at + S, mask=mask, other=0.0)
    if output_bias is not None:
        added += tl.load(output_bias + j, mask=j < S, other=0.0)[None, :]
        if GATED:
            opened += tl.load(output_bias + S + j, mask=j < S, other=0.0)[None, :]
    if dropout is not None:
        added *= tl.load(dropout + here, mask=mask, other=0.0)
    key, ranker, is_valid = _load_choice(
        key_query, key_rim, key_step, key_row, rank_query, valid, i, j, b, t + 1, T, B, N, S
    )
    if GATED:
        opened = _sigmoid(opened)
        added = _tanh(added)
        to = update + (step * width)[:, None] + j[None, :]
        tl.store(to, added, mask=mask)
        tl.store(to + S, opened, mask=mask)
        added *= opened
    h = tl.where(m, candidate + added, h)
    at = ((t * B + b).to(tl.int64) * (N * S) + i * S)[:, None] + j[None, :]
    tl.store(output + at, h, mask=mask)
    h = tl.where(cut, 0.0, h)
    _store_state(hidden, last_hidden, h, i, b, j, t, T, B, mask, S)
    _choose(h, key, ranker, is_valid, gate, active, active_out, i, b, t + 1, T, B, N, TOP)
