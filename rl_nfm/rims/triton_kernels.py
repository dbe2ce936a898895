"""The LSTM and GRU blocks of RIMs in Triton, and what holds for all kernels of RIMs.

`triton_loop` launches the kernels of this file and of `triton_finish`, `triton_communication`,
`triton_fused` and `triton_backward_kernels`. `step`, `blocks` and `communication` hold the
equations, whose letters are used here: n RIMs, B batch, s size of a RIM, G its gates, h heads, d
and e sizes of a head's keys and values, Q queries, keys and values of a RIM, U its update with the
gate.

What is kept of the steps is dense, [n, T, B, ...], or [n, kept, B, ...] for parts that no other
step reads, where step t lies at `slot`; if no gradient is needed, one step is kept. Tensors that
come from outside have strides of RIMs, steps and rows. Sizes that end in P are the ones before
them, brought to a power of two. Parts that a form of RIMs does not have are None. All is float32;
flags are uint8. No result depends on timing.

Each program loads what it can before it stores: its time is mostly that of waiting for memory, and
what stands behind a store would wait once more.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false
# pyright: reportOptionalOperand=false, reportOperatorIssue=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportPossiblyUnboundVariable=false
# Triton's language looks like Python, but its types are known to its own compiler only.

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """Of float32; exact enough also where the exponential overflows."""
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
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
def store_state(state, last, x, i, b, j, t, T, B, mask, S: tl.constexpr):
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
    a0 = sigmoid(x0 + p0)
    a1 = sigmoid(x1 + p1)
    if LSTM:
        x3, p3 = _load_gate(product, drive, base, hidden_bias, weight, m, j, mask, 3, S, MASK_INPUT)
        c = tl.load(cell + row * S + j, mask=mask, other=0.0)
        a2 = tanh(x2 + p2)
        a3 = sigmoid(x3 + p3)
        new = a1 * c + a0 * a2
        other = tanh(new)
        candidate = a3 * other
        tl.store(to + 3 * S, a3, mask=mask)
        new = tl.where(cut, 0.0, tl.where(m, new, c))
        store_state(cell, last_cell, new, i, b, j, t, T, B, mask, S)
    else:
        other = p2
        a2 = tanh(x2 + a0 * p2)
        candidate = a2 + a1 * (h - a2)
    tl.store(to, a0, mask=mask)
    tl.store(to + S, a1, mask=mask)
    tl.store(to + 2 * S, a2, mask=mask)
    tl.store(extra + step * S + j, other, mask=mask)
    if output is not None:
        new_h = tl.where(m, candidate, h)
        tl.store(output + ((t * B + b).to(tl.int64) * N + i) * S + j, new_h, mask=mask)
        new_h = tl.where(cut, 0.0, new_h)
        store_state(hidden, last_hidden, new_h, i, b, j, t, T, B, mask, S)
    else:
        shows = tl.where(m, candidate, h) if PREVIOUS else candidate
        tl.store(shown + step * S + j, shows, mask=mask)
