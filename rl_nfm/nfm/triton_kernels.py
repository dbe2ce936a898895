"""Masked top-k attention of an NFM in Triton; `triton_launch` launches these.

A lane is one head of one position (of the reader, or of the memory in `memory_gradient`); a program
takes `BLOCK` positions of one sample with all their heads, so that a row of memory is read in one
piece. `SPLIT` lanes share what one lane would do one after the other: the slots of a position, or
the visits of a row; each does `UNROLL` of them together, so that one need not wait for the other.
Sizes that end in P are the ones before them, brought to a power of two.

Of one position and head, with g the gradient of what it read and dX that of X:

    s_l = scale q . k_l, the null slot's 0         dw_j = g . v_j
    j over the k highest s                         ds_j = w_j (dw_j - sum_i w_i dw_i)
    w_j = exp(s_j) / sum_i exp(s_i)                dq   = scale sum_j ds_j k_j
    read = sum_j w_j v_j, the null slot's v = 0    dk_j += scale ds_j q,  dv_j += w_j g

`query_gradient` forms the first three gradients, `memory_gradient` gathers the others of each row.

Slots are counted through all layers; slot `l` of position `p` stands for row `table[l * P + p]` of
its layer, or for none (-1). Sums, scores and softmax are float32. No result depends on timing.
Compiling takes time by the square of the loads that stand in the source after unrolling.

`layers`, of each written layer: keys, values, then of both the strides of samples, then of rows.
`firsts`: the first slot of each.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false
# Triton's language looks like Python, but its types are known to its own compiler only.

import triton
import triton.language as tl

NOTHING = tl.constexpr(-(2**63))
FULL = tl.constexpr(2**63 - 1)
LOWEST = tl.constexpr(-(2**31))
POSITIVE = tl.constexpr(2**31 - 1)


@triton.jit
def _to_rank(score, slot):
    """int64 that orders by score, then the first slot highest; NaN is above all."""
    score = tl.where(score == score, score + 0.0, float("nan"))  # -0 becomes 0
    bits = score.to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & POSITIVE)
    return (bits.to(tl.int64) << 32) + (POSITIVE - slot)


@triton.jit
def _from_rank(rank):
    """Score and slot; minus infinity and -1 for a place that was never taken."""
    bits = (rank >> 32).to(tl.int32)
    slot = POSITIVE - (rank & 0xFFFFFFFF).to(tl.int32)
    free = bits == LOWEST
    bits = bits ^ ((bits >> 31) & POSITIVE)
    score = bits.to(tl.float32, bitcast=True)
    return tl.where(free, float("-inf"), score), tl.where(free, -1, slot)


@triton.jit
def _offer(best, rank):
    """Replace the lowest of the best by a rank that is higher; no two ranks are equal."""
    low = tl.min(best, 1)[:, None]
    return tl.where(best == low, tl.maximum(low, rank[:, None]), best)


@triton.jit
def _find_layers(layers, firsts, b, slot, PART: tl.constexpr):
    """Where a sample's keys (PART 0) or values (1) begin in each slot's layer, and their stride."""
    start = layers[0][PART] + b * layers[0][2 + PART]
    stride = layers[0][4 + PART]
    for e in tl.static_range(1, len(layers)):
        inside = slot >= firsts[e]
        start = tl.where(inside, layers[e][PART] + b * layers[e][2 + PART], start)
        stride = tl.where(inside, layers[e][4 + PART], stride)
    return start, stride


@triton.jit
def _load_rows(layers, firsts, b, slot, row, columns, mask, PART: tl.constexpr):
    """float32 [lanes, k, size]: keys or values of the rows [lanes, k]."""
    start, stride = _find_layers(layers, firsts, b, slot, PART)
    offset = start + row * stride
    return tl.load(offset[:, :, None] + columns, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _merge(best, TOP: tl.constexpr, TOPP: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
           HP: tl.constexpr):  # fmt: skip
    """The best of all lanes that share a head: [BLOCK * SPLIT * HP, TOPP] to [BLOCK * HP, TOPP]."""
    column = tl.arange(0, TOPP)[None, :]
    best = tl.where(column < TOP, best, NOTHING)
    best = tl.permute(tl.reshape(best, [BLOCK, SPLIT, HP, TOPP]), [0, 2, 1, 3])
    best = tl.reshape(best, [BLOCK * HP, SPLIT * TOPP])
    merged = tl.full([BLOCK * HP, TOPP], NOTHING, tl.int64)
    for j in tl.static_range(TOP):
        high = tl.max(best, 1)[:, None]
        merged = tl.where(column == j, high, merged)
        best = tl.where(best == high, NOTHING, best)
    return merged


@triton.jit(do_not_specialize=["firsts", "P", "L"])
def read_memory(
    query, query_batch, query_row, layers, firsts, table, read, weights, slots, scale, P, L,
    H: tl.constexpr, HP: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, V: tl.constexpr,
    VP: tl.constexpr, TOP: tl.constexpr, TOPP: tl.constexpr, NULL: tl.constexpr,
    BLOCK: tl.constexpr, SPLIT: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """What is read [B, P, H * V], weights and slots [B, P, H, TOP] of each head; -1 is no row."""
    blocks = tl.cdiv(P, BLOCK)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    p0 = (tl.program_id(0) % blocks) * BLOCK
    lane = tl.arange(0, BLOCK * SPLIT * HP)
    h = lane % HP
    part = lane // HP % SPLIT if SPLIT > 1 else 0
    p = p0 + lane // (HP * SPLIT)
    live = (p < P) & (h < H)
    kk = tl.arange(0, KP)[None, :]
    columns = (h * K)[:, None] + kk
    q = tl.load(
        query + b * query_batch + p[:, None] * query_row + columns,
        mask=live[:, None] & (kk < K), other=0.0,
    ).to(tl.float32) * scale  # fmt: skip
    column = tl.arange(0, TOPP)[None, :]
    empty = tl.where(column < TOP, NOTHING + column.to(tl.int64), FULL)
    best = empty + tl.zeros([BLOCK * SPLIT * HP, TOPP], tl.int64)
    for l0 in range(0, L, SPLIT * UNROLL):
        for n in tl.static_range(UNROLL):
            slot = l0 + n * SPLIT + part
            row = tl.load(table + slot * P + p, mask=live & (slot + 0 * p < L), other=-1)
            start, stride = _find_layers(layers, firsts, b, slot, 0)
            k = tl.load(
                (start + row * stride)[:, None] + columns,
                mask=(row >= 0)[:, None] & (kk < K), other=0.0,
            )  # fmt: skip
            rank = _to_rank(tl.sum(q * k.to(tl.float32), 1), slot)
            best = _offer(best, tl.where(row >= 0, rank, NOTHING))
    if NULL:
        null = _to_rank(tl.zeros([BLOCK * SPLIT * HP], tl.float32), L)
        best = _offer(best, tl.where(part == 0, null, NOTHING) if SPLIT > 1 else null)
    if SPLIT > 1:
        best = _merge(best, TOP, TOPP, BLOCK, SPLIT, HP)
    lane = tl.arange(0, BLOCK * HP)
    h = lane % HP
    p = p0 + lane // HP
    score, slot = _from_rank(best)
    chosen = ((p < P) & (h < H))[:, None] & (column < TOP)
    score = tl.where(column < TOP, tl.where(chosen, score, 0.0), float("-inf"))
    e = tl.exp(score - tl.max(score, 1)[:, None])
    w = e / tl.sum(e, 1)[:, None]
    real = chosen & (slot >= 0) & (slot < L)
    row = tl.load(table + slot * P + p[:, None], mask=real, other=0)
    head = p * H + h
    sample = b * P * H
    offset = head[:, None] * TOP + column
    tl.store(weights + sample * TOP + offset, w, mask=chosen)
    tl.store(slots + sample * TOP + offset, tl.where(real, slot, -1), mask=chosen)
    vv = tl.arange(0, VP)
    v = _load_rows(layers, firsts, b, slot, row, (h * V)[:, None, None] + vv[None, None, :],
                   real[:, :, None] & (vv < V)[None, None, :], 1)  # fmt: skip
    tl.store(
        read + sample * V + head[:, None] * V + vv[None, :], tl.sum(w[:, :, None] * v, 1),
        mask=((p < P) & (h < H))[:, None] & (vv < V)[None, :],
    )  # fmt: skip


@triton.jit(do_not_specialize=["firsts", "P"])
def query_gradient(
    grad, grad_batch, grad_row, layers, firsts, table, weights, slots, scores,
    grad_query, grad_query_batch, grad_query_row, scale, P,
    H: tl.constexpr, HP: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, V: tl.constexpr,
    VP: tl.constexpr, TOP: tl.constexpr, TOPP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The query's gradient, and that of the scores times `scale` [B, P, H, TOP].

    dw_j = g . v_j;  ds_j = w_j (dw_j - sum_i w_i dw_i);  dq = scale sum_j ds_j k_j.
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
    tl.store(scores + sample + offset, ds, mask=chosen)
    target = grad_query + b * grad_query_batch + p[:, None] * grad_query_row
    tl.store(
        target + (h * K)[:, None] + kk[None, :], tl.sum(ds[:, :, None] * k, 1),
        mask=live[:, None] & (kk < K)[None, :],
    )  # fmt: skip


@triton.jit
def _find_readers(readers, b, reader, H: tl.constexpr):
    """The tensors of each visit's reader: see `readers` of `memory_gradient`; for one sample."""
    query, query_batch, query_row, grad, grad_batch, grad_row, weights, scores, slots, P, k = (
        readers[0]
    )
    query += b * query_batch
    grad += b * grad_batch
    sample = b * P * H * k
    weights += sample
    scores += sample
    slots += sample
    for e in tl.static_range(1, len(readers)):
        one = readers[e]
        is_one = reader == e
        sample = b * one[9] * H * one[10]
        query = tl.where(is_one, one[0] + b * one[1], query)
        query_row = tl.where(is_one, one[2], query_row)
        grad = tl.where(is_one, one[3] + b * one[4], grad)
        grad_row = tl.where(is_one, one[5], grad_row)
        weights = tl.where(is_one, one[6] + sample, weights)
        scores = tl.where(is_one, one[7] + sample, scores)
        slots = tl.where(is_one, one[8] + sample, slots)
        k = tl.where(is_one, one[10], k)
    return query, query_row, grad, grad_row, weights, scores, slots, k


@triton.jit
def _add_visit(
    dk, dv, readers, visits, visit, b, r, h, live, M, R, kk, vv,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """Add the gradients of each row from its `visit`-th reader, if that one attended to the row."""
    p = tl.load(visits + visit * R + r, mask=live & (visit + 0 * r < M), other=-1)
    came = p >= 0
    both = tl.load(visits + (M + visit) * R + r, mask=came, other=0)
    slot = both & 0xFFFF
    query, query_row, grad, grad_row, weights, scores, slots, k = _find_readers(
        readers, b, both >> 16, H
    )
    offset = (p * H + h) * k
    hit = tl.where(came, -1, -1)
    if TOP <= 8:
        for j in tl.static_range(TOP):
            kept = tl.load(slots + offset + j, mask=came & (j + 0 * p < k), other=-1).to(tl.int32)
            hit = tl.where(kept == slot, j, hit)
    else:
        for j in range(TOP):
            kept = tl.load(slots + offset + j, mask=came & (j + 0 * p < k), other=-1).to(tl.int32)
            hit = tl.where(kept == slot, j, hit)
    kept = hit >= 0
    w = tl.load(weights + offset + hit, mask=kept, other=0.0)
    ds = tl.load(scores + offset + hit, mask=kept, other=0.0)
    q = tl.load(
        (query + p * query_row + h * K)[:, None] + kk, mask=kept[:, None] & (kk < K), other=0.0
    )
    g = tl.load(
        (grad + p * grad_row + h * V)[:, None] + vv, mask=kept[:, None] & (vv < V), other=0.0
    )
    return dk + ds[:, None] * q.to(tl.float32), dv + w[:, None] * g.to(tl.float32)


@triton.jit(do_not_specialize=["M", "R"])
def memory_gradient(
    readers, visits, grad_keys, grad_keys_batch, grad_keys_row, grad_values, grad_values_batch,
    grad_values_row, M, R,
    H: tl.constexpr, HP: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, V: tl.constexpr,
    VP: tl.constexpr, TOP: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """Gradients of one layer's keys and values, R rows, from all of its readers.

    `readers`: of each, query and gradient of what it read with strides of samples and rows, weights
    and gradients of scores, slots, number of positions, and k, the slots that it kept. TOP: most k.

    Each row looks up who can have read it: `visits` int32 [2, M, R] hold positions, or -1, and the
    slots that the row is for them, with the reader's number in the upper half.
    """
    blocks = tl.cdiv(R, BLOCK)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    r0 = (tl.program_id(0) % blocks) * BLOCK
    lane = tl.arange(0, BLOCK * SPLIT * HP)
    h = lane % HP
    part = lane // HP % SPLIT if SPLIT > 1 else 0
    r = r0 + lane // (HP * SPLIT)
    live = (r < R) & (h < H)
    kk = tl.arange(0, KP)[None, :]
    vv = tl.arange(0, VP)[None, :]
    dk = tl.zeros([BLOCK * SPLIT * HP, KP], tl.float32)
    dv = tl.zeros([BLOCK * SPLIT * HP, VP], tl.float32)
    for m in range(0, M, SPLIT * UNROLL):
        for n in tl.static_range(UNROLL):
            dk, dv = _add_visit(dk, dv, readers, visits, m + n * SPLIT + part, b, r, h, live, M, R,
                                kk, vv, H, K, V, TOP)  # fmt: skip
    if SPLIT > 1:
        dk = tl.reshape(tl.sum(tl.reshape(dk, [BLOCK, SPLIT, HP * KP]), 1), [BLOCK * HP, KP])
        dv = tl.reshape(tl.sum(tl.reshape(dv, [BLOCK, SPLIT, HP * VP]), 1), [BLOCK * HP, VP])
    lane = tl.arange(0, BLOCK * HP)
    h = lane % HP
    r = r0 + lane // HP
    live = (r < R) & (h < H)
    target = grad_keys + b * grad_keys_batch + r[:, None] * grad_keys_row + (h * K)[:, None]
    tl.store(target + kk, dk, mask=live[:, None] & (kk < K))
    target = grad_values + b * grad_values_batch + r[:, None] * grad_values_row + (h * V)[:, None]
    tl.store(target + vv, dv, mask=live[:, None] & (vv < V))
