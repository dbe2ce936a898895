"""Gradients of the masked top-k attention in Triton; formulas and terms are in `triton_kernels`."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false
# Triton's language looks like Python, but its types are known to its own compiler only.

import triton
import triton.language as tl

from rl_nfm.nfm.triton_kernels import _load_rows


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
    kk = tl.arange(0, KP)
    vv = tl.arange(0, VP)
    column = tl.arange(0, TOPP)[None, :]
    chosen = live[:, None] & (column < TOP)
    sample = b * P * H * TOP
    offset = (p * H + h)[:, None] * TOP + column
    w = tl.load(weights + sample + offset, mask=chosen, other=0.0)
    slot = tl.load(slots + sample + offset, mask=chosen, other=-1).to(tl.int32)
    real = slot >= 0
    row = tl.load(table + slot * P + p[:, None], mask=real, other=0)
    g = tl.load(
        grad + b * grad_batch + p[:, None] * grad_row + (h * V)[:, None] + vv[None, :],
        mask=live[:, None] & (vv < V)[None, :], other=0.0,
    ).to(tl.float32)  # fmt: skip
    v = _load_rows(layers, firsts, b, slot, row, (h * V)[:, None, None] + vv[None, None, :],
                   real[:, :, None] & (vv < V)[None, None, :], 1)  # fmt: skip
    k = _load_rows(layers, firsts, b, slot, row, (h * K)[:, None, None] + kk[None, None, :],
                   real[:, :, None] & (kk < K)[None, None, :], 0)  # fmt: skip
    dw = tl.sum(g[:, None, :] * v, 2)
    ds = w * (dw - tl.sum(w * dw, 1)[:, None]) * scale
    high = ds.to(tl.int32, bitcast=True).to(tl.int64) << 32
    pair = high | (w.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)
    tl.store(pairs + sample + offset, pair, mask=chosen)
    target = grad_query + b * grad_query_batch + p[:, None] * grad_query_row
    tl.store(
        target + (h * K)[:, None] + kk[None, :], tl.sum(ds[:, :, None] * k, 1),
        mask=live[:, None] & (kk < K)[None, :],
    )  # fmt: skip


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
    elif KEPT < 8:
        for j in tl.static_range(KEPT):
            kept = tl.load(slots + offset + j, mask=came, other=-1).to(tl.int32)
            hit = tl.where(kept == slot, j, hit)
    else:
        for j in range(KEPT):
            kept = tl.load(slots + offset + j, mask=came, other=-1).to(tl.int32)
            hit = tl.where(kept == slot, j, hit)
    return hit


@triton.jit
def _add_visit(
    dk, dv, reader, visit, b, h, live, kk, vv,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Add the gradients of each row from one visit of a reader, if it attended to the row."""
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
    q = tl.load(
        (query + b * query_batch + (p * query_row + h * K))[:, None] + kk,
        mask=kept[:, None] & (kk < K), other=0.0,
    )  # fmt: skip
    g = tl.load(
        (grad + b * grad_batch + (p * grad_row + h * V))[:, None] + vv,
        mask=kept[:, None] & (vv < V), other=0.0,
    )  # fmt: skip
    return dk + ds[:, None] * q.to(tl.float32), dv + w[:, None] * g.to(tl.float32)


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
    kk = tl.arange(0, KP)[None, :]
    vv = tl.arange(0, VP)[None, :]
    dk = tl.zeros([BLOCK * SPLIT * HP, KP], tl.float32)
    dv = tl.zeros([BLOCK * SPLIT * HP, VP], tl.float32)
    visit = visits + (part * R + n)
    if UNROLL == 1:  # the first turns of all readers together
        for e in tl.static_range(len(readers)):
            one = visit + firsts[e] * R
            dk, dv = _add_visit(dk, dv, readers[e], one, b, h, live, kk, vv, H, K, V, KEPT[e])
    for e in tl.static_range(len(readers)):
        most = tl.load(turns + block * len(readers) + e)
        for m in range(SPLIT if UNROLL == 1 else 0, most, SPLIT * UNROLL):
            for i in tl.static_range(UNROLL):
                one = visit + (firsts[e] + m + i * SPLIT) * R
                dk, dv = _add_visit(dk, dv, readers[e], one, b, h, live, kk, vv, H, K, V, KEPT[e])
    if SPLIT > 1:
        dk = tl.reshape(tl.sum(tl.reshape(dk, [BLOCK, SPLIT, HP * KP]), 1), [BLOCK * HP, KP])
        dv = tl.reshape(tl.sum(tl.reshape(dv, [BLOCK, SPLIT, HP * VP]), 1), [BLOCK * HP, VP])
    lane = tl.arange(0, BLOCK * HP)
    h = lane % HP
    n = block * BLOCK + lane // HP
    live = (n < R) & (h < H)
    r = tl.load(order + n, mask=live, other=0)
    target = grad_keys + b * grad_keys_batch + r[:, None] * grad_keys_row + (h * K)[:, None] + kk
    real = live[:, None] & (kk < K)
    tl.store(target, dk + tl.load(target, mask=real).to(tl.float32) if ADD else dk, mask=real)
    target = grad_values + b * grad_values_batch + r[:, None] * grad_values_row
    target += (h * V)[:, None] + vv
    real = live[:, None] & (vv < V)
    tl.store(target, dv + tl.load(target, mask=real).to(tl.float32) if ADD else dv, mask=real)
