"""Gradients of the masked top-k attention in Triton; formulas and terms are in `triton_kernels`."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false
# pyright: reportOperatorIssue=false
# Triton's language looks like Python, but its types are known to its own compiler only.

import triton
import triton.language as tl

from rl_nfm.nfm.triton_kernels import _load_halves, _load_slot, _store_halves


@triton.jit(do_not_specialize=["firsts", "P"])
def query_gradient(
    grad, grad_batch, grad_row, layers, firsts, table, weights, slots, pairs,
    grad_query, grad_query_batch, grad_query_row, scale, P,
    H: tl.constexpr, HP: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, V: tl.constexpr,
    VP: tl.constexpr, TOP: tl.constexpr, TOPP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The query's gradient, and for `memory_gradient` int64 [B, P, H, TOP].

    dw_j = g . v_j;  ds_j = w_j (dw_j - sum_i w_i dw_i);  dq = scale sum_j ds_j k_j.

    `pairs` hold the bits of w_j, and in their upper half those of scale ds_j: one load for both.
    """
    blocks = tl.cdiv(P, BLOCK)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    lane = tl.arange(0, BLOCK * HP)
    p = (tl.program_id(0) % blocks) * BLOCK + lane // HP
    h = lane % HP
    live = (p < P) & (h < H)
    kk = tl.arange(0, KP // 2 if KP >= 16 else KP)[None, :]
    vv = tl.arange(0, VP // 2 if VP >= 16 else VP)[None, :]
    column = tl.arange(0, TOPP)[None, :]
    chosen = live[:, None] & (column < TOP)
    sample = b * P * H * TOP
    offset = (p * H + h)[:, None] * TOP + column
    w = tl.load(weights + sample + offset, mask=chosen, other=0.0)
    slot = tl.load(slots + sample + offset, mask=chosen, other=-1).to(tl.int32)
    g, g_high = _load_halves(grad + b * grad_batch + (p * grad_row + h * V), vv, V, live, VP)
    dw = tl.zeros([BLOCK * HP, TOPP], tl.float32)
    for j in tl.range(0, TOP, loop_unroll_factor=TOP if TOP <= 8 else 1):
        v, v_high = _load_slot(j, slot, table, layers, firsts, b, p, P, h, vv, V, VP, 1)
        products = g * v + g_high * v_high if VP >= 16 else g * v
        dw = tl.where(column == j, tl.sum(products, 1)[:, None], dw)
    ds = w * (dw - tl.sum(w * dw, 1)[:, None]) * scale
    high = ds.to(tl.int32, bitcast=True).to(tl.int64) << 32
    pair = high | (w.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)
    tl.store(pairs + sample + offset, pair, mask=chosen)
    dq = tl.zeros([BLOCK * HP, kk.shape[1]], tl.float32)
    dq_high = dq
    for j in tl.range(0, TOP, loop_unroll_factor=TOP if TOP <= 8 else 1):
        k, k_high = _load_slot(j, slot, table, layers, firsts, b, p, P, h, kk, K, KP, 0)
        one = tl.sum(tl.where(column == j, ds, 0.0), 1)[:, None]
        dq, dq_high = dq + one * k, dq_high + one * k_high
    start = grad_query + b * grad_query_batch + (p * grad_query_row + h * K)
    _store_halves(start, kk, K, live, dq, dq_high, KP)


@triton.jit
def _find_slot(slots, offset, slot, came, KEPT: tl.constexpr):
    """Which of the slots that a head kept `slot` is, or -1; see `memory_gradient`."""
    hit = tl.where(came, -1, -1)
    if KEPT % 4 == 0:
        for n in tl.static_range(KEPT // 4):
            four = tl.load(slots + offset // 4 + n, mask=came, other=-1)
            for j in tl.static_range(2):
                two = (four >> 32 * j).to(tl.int32)
                hit = tl.where((two & 0xFFFF) == slot, 4 * n + 2 * j, hit)
                hit = tl.where((two >> 16) == slot, 4 * n + 2 * j + 1, hit)
    else:
        for j in tl.range(0, KEPT, loop_unroll_factor=KEPT if KEPT <= 8 else 1):
            kept = tl.load(slots + offset + j, mask=came, other=-1).to(tl.int32)
            hit = tl.where(kept == slot, j, hit)
    return hit


@triton.jit
def _add_visit(
    sums, reader, visit, b, h, live, kk, vv, H: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
    V: tl.constexpr, VP: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Add the gradients of each row from one visit of a reader, if it attended to the row.

    `sums`: the keys' and the values', each in two halves.
    """
    dk, dk_high, dv, dv_high = sums
    query, query_batch, query_row, grad, grad_batch, grad_row, pairs, slots, P = reader
    both = tl.load(visit, mask=live, other=-1)
    came = both >= 0
    p = both.to(tl.int32)
    sample = b * P * H * KEPT
    offset = (p * H + h) * KEPT
    slots += sample // 4 if KEPT % 4 == 0 else sample
    hit = _find_slot(slots, offset, (both >> 32).to(tl.int32), came, KEPT)
    kept = came & (hit >= 0)
    pair = tl.load(pairs + sample + (offset + hit), mask=kept, other=0)
    w = pair.to(tl.int32).to(tl.float32, bitcast=True)
    ds = (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    q, q_high = _load_halves(query + b * query_batch + (p * query_row + h * K), kk, K, kept, KP)
    g, g_high = _load_halves(grad + b * grad_batch + (p * grad_row + h * V), vv, V, kept, VP)
    w, ds = w[:, None], ds[:, None]
    return dk + ds * q, dk_high + ds * q_high, dv + w * g, dv_high + w * g_high


@triton.jit
def _add_up(x, BLOCK: tl.constexpr, SPLIT: tl.constexpr, HP: tl.constexpr):
    """Sums over the lanes that share a row: [BLOCK * SPLIT * HP, size] to [BLOCK * HP, size]."""
    size: tl.constexpr = x.shape[1]
    return tl.reshape(tl.sum(tl.reshape(x, [BLOCK, SPLIT, HP * size]), 1), [BLOCK * HP, size])


@triton.jit(do_not_specialize=["firsts", "R"])
def memory_gradient(
    readers, firsts, visits, turns, order, grad_keys, grad_keys_batch, grad_keys_row, grad_values,
    grad_values_batch, grad_values_row, R,
    H: tl.constexpr, HP: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, V: tl.constexpr,
    VP: tl.constexpr, KEPT: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
    UNROLL: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Gradients of one layer's keys and values, R rows, from readers; ADD: to what is there.

    `readers`: of each, query and gradient of what it read with strides of samples and rows, weights
    with gradients of scores, slots, and number of positions. KEPT: of each, the slots that a head
    kept. Where that is a multiple of four, `slots` are read four at a time, as int64.

    Each row looks up who can have read it: `visits` int64 [visits of all readers, R] hold positions
    with the slots that the row is for them in the upper half, or -1; `firsts` is each reader's
    first. Rows stand there by `order`, so that those of equally many visits share a program;
    `turns` [programs of a sample, readers] is the largest number in each.
    """
    blocks = tl.cdiv(R, BLOCK)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    lane = tl.arange(0, BLOCK * SPLIT * HP)
    h = lane % HP
    part = lane // HP % SPLIT if SPLIT > 1 else 0
    n = block * BLOCK + lane // (HP * SPLIT)
    live = (n < R) & (h < H)
    kk = tl.arange(0, KP // 2 if KP >= 16 else KP)[None, :]
    vv = tl.arange(0, VP // 2 if VP >= 16 else VP)[None, :]
    dk = tl.zeros([BLOCK * SPLIT * HP, kk.shape[1]], tl.float32)
    dv = tl.zeros([BLOCK * SPLIT * HP, vv.shape[1]], tl.float32)
    sums = dk, dk, dv, dv
    visit = visits + (part * R + n)
    if UNROLL == 1:  # the first turns of all readers together
        for e in tl.static_range(len(readers)):
            one = visit + firsts[e] * R
            sums = _add_visit(sums, readers[e], one, b, h, live, kk, vv, H, K, KP, V, VP, KEPT[e])
    for e in tl.static_range(len(readers)):
        most = tl.load(turns + block * len(readers) + e)
        for m in range(SPLIT if UNROLL == 1 else 0, most, SPLIT * UNROLL):
            for i in tl.static_range(UNROLL):
                one = visit + (firsts[e] + m + i * SPLIT) * R
                sums = _add_visit(
                    sums, readers[e], one, b, h, live, kk, vv, H, K, KP, V, VP, KEPT[e]
                )
    dk, dk_high, dv, dv_high = sums
    if SPLIT > 1:
        dk, dk_high = _add_up(dk, BLOCK, SPLIT, HP), _add_up(dk_high, BLOCK, SPLIT, HP)
        dv, dv_high = _add_up(dv, BLOCK, SPLIT, HP), _add_up(dv_high, BLOCK, SPLIT, HP)
    lane = tl.arange(0, BLOCK * HP)
    h = lane % HP
    n = block * BLOCK + lane // HP
    live = (n < R) & (h < H)
    r = tl.load(order + n, mask=live, other=0)
    start = grad_keys + b * grad_keys_batch + (r * grad_keys_row + h * K)
    if ADD:
        before, before_high = _load_halves(start, kk, K, live, KP)
        dk, dk_high = dk + before, dk_high + before_high
    _store_halves(start, kk, K, live, dk, dk_high, KP)
    start = grad_values + b * grad_values_batch + (r * grad_values_row + h * V)
    if ADD:
        before, before_high = _load_halves(start, vv, V, live, VP)
        dv, dv_high = dv + before, dv_high + before_high
    _store_halves(start, vv, V, live, dv, dv_high, VP)
