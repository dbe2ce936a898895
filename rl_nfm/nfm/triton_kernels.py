"""Masked top-k attention of an NFM in Triton; `triton_launch` launches it, and its gradients.

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

In `triton_gradients`, `query_gradient` forms the first three gradients, and `memory_gradient`
gathers the others of each row.

Slots are counted through all layers; slot `l` of position `p` stands for row `table[l * P + p]` of
its layer, or for none (-1). Sums, scores and softmax are float32. No result depends on timing.
Compiling takes time by the square of the loads that stand in the source after unrolling.

`layers`, of each written layer: keys, values, then of both the strides of samples, then of rows.
`firsts`: the first slot of each.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false
# pyright: reportOperatorIssue=false
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
def _load_halves(start, c, size, mask, P: tl.constexpr):
    """float32 [lanes, ..]: columns c of each row, and those P // 2 further where P is halved.

    Half as many threads then have a lane, and what it takes to find a row is repeated in each.
    """
    low = tl.load(start[:, None] + c, mask=mask[:, None] & (c < size), other=0.0).to(tl.float32)
    high = low
    if P >= 16:
        c += P // 2
        high = tl.load(start[:, None] + c, mask=mask[:, None] & (c < size), other=0.0)
        high = high.to(tl.float32)
    return low, high


@triton.jit
def _store_halves(start, c, size, mask, low, high, P: tl.constexpr):
    """What `_load_halves` reads."""
    tl.store(start[:, None] + c, low, mask=mask[:, None] & (c < size))
    if P >= 16:
        c += P // 2
        tl.store(start[:, None] + c, high, mask=mask[:, None] & (c < size))


@triton.jit
def _load_slot(
    j, slot, table, layers, firsts, b, p, P, h, c, size, SIZEP: tl.constexpr, PART: tl.constexpr
):
    """`_load_halves` of the keys (PART 0) or values (1) of each lane's j-th slot."""
    column = tl.arange(0, slot.shape[1])[None, :]
    one = tl.max(tl.where(column == j, slot, -1), 1)
    row = tl.load(table + one * P + p, mask=one >= 0, other=0)
    start, stride = _find_layers(layers, firsts, b, one, PART)
    return _load_halves(start + (row * stride + h * size), c, size, one >= 0, SIZEP)


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
    kk = tl.arange(0, KP // 2 if KP >= 16 else KP)[None, :]
    vv = tl.arange(0, VP // 2 if VP >= 16 else VP)[None, :]
    q, q_high = _load_halves(query + b * query_batch + (p * query_row + h * K), kk, K, live, KP)
    q, q_high = q * scale, q_high * scale
    column = tl.arange(0, TOPP)[None, :]
    empty = tl.where(column < TOP, NOTHING + column.to(tl.int64), FULL)
    best = empty + tl.zeros([BLOCK * SPLIT * HP, TOPP], tl.int64)
    for l0 in range(0, L, SPLIT * UNROLL):
        for n in tl.static_range(UNROLL):
            slot = l0 + n * SPLIT + part
            row = tl.load(table + slot * P + p, mask=live & (slot + 0 * p < L), other=-1)
            start, stride = _find_layers(layers, firsts, b, slot, 0)
            k, k_high = _load_halves(start + (row * stride + h * K), kk, K, row >= 0, KP)
            products = q * k
            if KP >= 16:
                products += q_high * k_high
            rank = _to_rank(tl.sum(products, 1), slot)
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
    slot = tl.where(chosen & (slot < L), slot, -1)
    head = p * H + h
    sample = b * P * H
    offset = head[:, None] * TOP + column
    tl.store(weights + sample * TOP + offset, w, mask=chosen)
    tl.store(slots + sample * TOP + offset, slot, mask=chosen)
    low = tl.zeros([BLOCK * HP, vv.shape[1]], tl.float32)
    high = low
    for j in tl.range(0, TOP, loop_unroll_factor=TOP if TOP <= 8 else 1):
        v, v_high = _load_slot(j, slot, table, layers, firsts, b, p, P, h, vv, V, VP, 1)
        one = tl.sum(tl.where(column == j, w, 0.0), 1)[:, None]
        low, high = low + one * v, high + one * v_high
    start = read + sample * V + head * V
    _store_halves(start, vv, V, (p < P) & (h < H), low, high, VP)
