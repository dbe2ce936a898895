"""The end of a step and what the next one begins with, in Triton: `triton_kernels` says how.

A program takes all RIMs of one sample, because they compete to be active.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false
# pyright: reportOptionalOperand=false, reportOperatorIssue=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportPossiblyUnboundVariable=false
# Triton's language looks like Python, but its types are known to its own compiler only.

import triton
import triton.language as tl

from rl_nfm.rims.triton_kernels import flag, offset_of, row_of, sigmoid, store_state, tanh


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
    tl.store(gate + row, sigmoid(logit), mask=mask)
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
def load_finish(
    output_bias, dropout, shown, hidden, reset, key_query, key_rim, key_step, key_row, rank_query,
    valid, active, i, b, j, t, T, B, slot, kept,
    N: tl.constexpr, NP: tl.constexpr, S: tl.constexpr, SP: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """What `end_step` needs besides the update."""
    mask = (i < N)[:, None] & (j < S)[None, :]
    row = row_of(i, t, b, T, B)
    here = (row * S)[:, None] + j[None, :]
    step = (row_of(i, slot, b, kept, B) * S)[:, None] + j[None, :]
    m = (tl.load(active + row, mask=i < N, other=0) != 0)[:, None]
    cut = flag(reset, t + 1, b, T, B)
    h = tl.load(hidden + here, mask=mask, other=0.0)
    candidate = tl.load(shown + step, mask=mask, other=0.0)
    factor = tl.full([NP, SP], 1.0, tl.float32)
    if dropout is not None:
        factor = tl.load(dropout + here, mask=mask, other=0.0)
    linear_bias = tl.zeros([SP], tl.float32)
    gate_bias = linear_bias
    if output_bias is not None:
        linear_bias = tl.load(output_bias + j, mask=j < S, other=0.0)
        if GATED:
            gate_bias = tl.load(output_bias + S + j, mask=j < S, other=0.0)
    key, ranker, is_valid = _load_choice(
        key_query, key_rim, key_step, key_row, rank_query, valid, i, j, b, t + 1, T, B, N, S
    )
    return m, cut, h, candidate, factor, linear_bias, gate_bias, key, ranker, is_valid


@triton.jit
def end_step(
    added, opened, loaded, update, hidden, last_hidden, output, gate, active, active_out, i, b, j,
    t, T, B, slot, kept,
    N: tl.constexpr, S: tl.constexpr, TOP: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """New states from what was read times its weights; then `_choose` of the next step.

    `update` keeps the linear part and the gate after their nonlinearities [n, kept, B, U].
    """
    m, cut, h, candidate, factor, linear_bias, gate_bias, key, ranker, is_valid = loaded
    mask = (i < N)[:, None] & (j < S)[None, :]
    added = (added + linear_bias[None, :]) * factor
    if GATED:
        opened = sigmoid(opened + gate_bias[None, :])
        added = tanh(added)
        to = update + (row_of(i, slot, b, kept, B) * (2 * S))[:, None] + j[None, :]
        tl.store(to, added, mask=mask)
        tl.store(to + S, opened, mask=mask)
        added *= opened
    h = tl.where(m, candidate + added, h)
    at = ((t * B + b).to(tl.int64) * (N * S) + i * S)[:, None] + j[None, :]
    tl.store(output + at, h, mask=mask)
    h = tl.where(cut, 0.0, h)
    store_state(hidden, last_hidden, h, i, b, j, t, T, B, mask, S)
    _choose(h, key, ranker, is_valid, gate, active, active_out, i, b, t + 1, T, B, N, TOP)


@triton.jit(do_not_specialize=["key_rim", "key_step", "key_row", "t", "T", "B", "slot", "kept"])
def finish(
    linear, output_bias, dropout, update, shown, hidden, reset, last_hidden, output, key_query,
    key_rim, key_step, key_row, rank_query, valid, gate, active, active_out, t, T, B, slot, kept,
    N: tl.constexpr, NP: tl.constexpr, S: tl.constexpr, SP: tl.constexpr, TOP: tl.constexpr,
    GATED: tl.constexpr,
):  # fmt: skip
    """`end_step` from what was read times its weights, [n, B, U]."""
    b = tl.program_id(0)
    i = tl.arange(0, NP)
    j = tl.arange(0, SP)
    mask = (i < N)[:, None] & (j < S)[None, :]
    at = ((i * B + b) * (2 * S if GATED else S))[:, None] + j[None, :]
    added = tl.load(linear + at, mask=mask, other=0.0)
    opened = added
    if GATED:
        opened = tl.load(linear + at + S, mask=mask, other=0.0)
    loaded = load_finish(
        output_bias, dropout, shown, hidden, reset, key_query, key_rim, key_step, key_row,
        rank_query, valid, active, i, b, j, t, T, B, slot, kept, N, NP, S, SP, GATED,
    )  # fmt: skip
    end_step(
        added, opened, loaded, update, hidden, last_hidden, output, gate, active, active_out, i, b,
        j, t, T, B, slot, kept, N, S, TOP, GATED,
    )  # fmt: skip
