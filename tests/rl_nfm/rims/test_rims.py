"""The RIM cells and their hand-written backward, against a naive twin and by invariants."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.rims import VARIANTS, BRIMVariant, RIMGRUCell, RIMLSTMCell, Variant
from rl_nfm.rims.cells import dropout_mask
from rl_nfm.rims.products import SequenceInputs
from rl_nfm.rims.sparse import select_active, sparse_softmax, sparse_softmax_backward
from rl_nfm.rims.step import StepSpec, StepWeights
from rl_nfm.rims.unroll import unroll

CELLS = {"lstm": RIMLSTMCell, "gru": RIMGRUCell}
FORMS = sorted(VARIANTS)
F64 = torch.float64


def make(kind: str = "lstm", variant: str | Variant = "official", sizes=(7, 12, 3, 2), dtype=F64):
    """A cell away from its small initial weights, where all paths matter, without dropout."""
    torch.manual_seed(0)
    cell = CELLS[kind](*sizes, variant=variant, rim_dropout=0.0, dtype=dtype)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.normal_(std=0.4)
    return cell


def states(cell, batch: int) -> list[Tensor]:
    count = 2 if cell.kind == "lstm" else 1
    dtype = cell.query.dtype
    return [torch.randn(batch, cell.hidden_size, dtype=dtype) for _ in range(count)]


class BlockGradient(torch.autograd.Function):
    """The published gradient block: identity forward, times the mask backward."""

    @staticmethod
    def forward(ctx, x, mask):
        ctx.save_for_backward(mask)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None


def naive_read(cell, x: Tensor, h: Tensor) -> tuple[list[Tensor], Tensor]:
    """What each RIM reads of the input, and a number for each: the highest are active."""
    form, n, heads = cell.variant, cell.num_rims, cell.variant.input_heads
    keys = [x @ key for key in cell.key.chunk(form.input_slots, 1)]
    keys = [torch.zeros_like(keys[0]), *keys]
    values = [x @ value for value in cell.value.chunk(form.input_slots, 1)]
    values = [torch.zeros_like(values[0]), *values]  # null first
    if form.input_bias:
        keys = [key + cell.key_bias for key in keys]
        values = [value + cell.value_bias for value in values]
    values = torch.stack([sum(value.chunk(heads)) / heads for value in values])
    scores = torch.stack(
        [torch.stack([naive_score(cell, h[i], i, key) for key in keys]) for i in range(n)]
    )
    if form.input_gate == "across":
        weights = naive_cut(scores[:, 1].softmax(0), cell.num_active)
        return [weights[i] * values[1] for i in range(n)], scores[:, 1]
    weights = torch.stack([naive_cut(row.softmax(0), 2) for row in scores])
    order = scores[:, 1] if form.input_bias else -weights[:, 0]
    return [weights[i] @ values for i in range(n)], order


def naive_score(cell, state: Tensor, i: int, key: Tensor) -> Tensor:
    """The mean over the heads."""
    form = cell.variant
    pairs = zip(
        (state @ cell.query[i]).chunk(form.input_heads), key.chunk(form.input_heads), strict=True
    )
    return sum(q @ k / math.sqrt(form.input_key_size) for q, k in pairs) / form.input_heads


def naive_cut(weights: Tensor, k: int) -> Tensor:
    if len(weights) <= k + 1:
        return weights
    cut = F.relu(weights - sorted(weights)[-k - 1] - 1e-7)
    return cut / (cut.sum() + 1e-7)


def naive_step(cell, x: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """One step, one sample at a time and one RIM at a time, as the method is described.

    x: [F], h and c: [n, s].
    """
    form, n = cell.variant, cell.num_rims
    read, order = naive_read(cell, x, h)
    order = order.tolist()
    active = set(sorted(range(n), key=lambda i: (-order[i], i))[: cell.num_active])
    candidates, cells = [], []
    for i in range(n):
        inputs = read[i] if i in active or not form.mask_input else torch.zeros_like(read[i])
        w_ih, w_hh = cell.weight_ih[:, i].t(), cell.weight_hh[i].t()
        biases = (cell.bias_ih[i], cell.bias_hh[i]) if form.cell_bias else (None, None)
        if cell.kind == "lstm":
            new_h, new_c = torch._VF.lstm_cell(
                inputs[None], (h[i][None], c[i][None]), w_ih, w_hh, *biases
            )
            cells.append(new_c[0])
        else:
            new_h = torch._VF.gru_cell(inputs[None], h[i][None], w_ih, w_hh, *biases)
        candidates.append(new_h[0])
    new_hs, new_cs = [], []
    shown = [candidates[i] if form.source == "candidate" or i in active else h[i] for i in range(n)]
    shown = [BlockGradient.apply(shown[i], torch.tensor(float(i in active))) for i in range(n)]
    for i in range(n):
        new_hs.append(candidates[i] + naive_update(cell, shown, i) if i in active else h[i])
        if c is not None:
            new_cs.append(cells[i] if i in active else c[i])
    return torch.stack(new_hs), torch.stack(new_cs) if c is not None else None


def naive_update(cell, shown: list[Tensor], i: int) -> Tensor:
    """What RIM i makes of what the others show."""
    form, n, size = cell.variant, cell.num_rims, cell.hidden_size // cell.num_rims
    d, e = form.key_size, form.value_size or size
    heads = []
    for head in range(form.heads):
        q = slice(head * d, (head + 1) * d)
        k = slice((form.heads + head) * d, (form.heads + head + 1) * d)
        v = slice(2 * form.heads * d + head * e, 2 * form.heads * d + (head + 1) * e)
        query = shown[i] @ cell.project[i][:, q]
        logits = torch.stack([query @ (shown[j] @ cell.project[j][:, k]) for j in range(n)])
        weights = (logits / math.sqrt(d)).softmax(0)
        heads.append(sum(weights[j] * (shown[j] @ cell.project[j][:, v]) for j in range(n)))
    read = torch.cat(heads)
    if form.communication == "grouped":
        return read @ cell.output[i]
    out = read @ cell.output[0] + cell.output_bias
    if form.communication == "linear":
        return out
    return torch.sigmoid(out[size:]) * torch.tanh(out[:size])


def naive_run(cell, x: Tensor, state: list[Tensor], reset: Tensor) -> tuple[Tensor, list[Tensor]]:
    outputs, n = [], cell.num_rims
    hs = list(state[0].unflatten(1, (n, -1)))
    cs = list(state[1].unflatten(1, (n, -1))) if len(state) > 1 else [None] * len(hs)
    for t in range(len(x)):
        for b in range(x.shape[1]):
            if reset[t, b]:
                hs[b] = torch.zeros_like(hs[b])
                cs[b] = None if cs[b] is None else torch.zeros_like(cs[b])
            hs[b], cs[b] = naive_step(cell, x[t, b], hs[b], cs[b])
        outputs.append(torch.stack(hs).flatten(1))
    last = [torch.stack(hs).flatten(1)]
    if cell.kind == "lstm":
        last.append(torch.stack(cs).flatten(1))
    return torch.stack(outputs), last


MORE_FORMS = [
    dataclasses.replace(VARIANTS["dido1998"], input_heads=3, input_value_size=5),
    *(Variant(input_slots=slots, input_value_size=5) for slots in (2, 3, 4)),
]


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("form", [*FORMS, *MORE_FORMS], ids=[*FORMS, "heads", "2", "3", "4"])
@pytest.mark.parametrize("steps", [1, 11])  # 11: more than one chunk of steps, the last one short
@pytest.mark.parametrize("rims", [(12, 3, 2), (20, 5, 2)])  # `across` cuts the second only
def test_outputs_and_gradients_equal_a_naive_twin(kind, form, steps, rims):
    cell = make(kind, form, sizes=(7, *rims))
    x = torch.randn(steps, 3, 7, dtype=F64, requires_grad=True)
    state = [part.requires_grad_() for part in states(cell, 3)]
    reset = torch.rand(steps, 3) < 0.2
    inputs = [x, *state, *cell.parameters()]
    output, *last, _ = cell.run(x, *state, reset=reset)
    last = [part for part in last if part is not None]
    expected, expected_last = naive_run(cell, x, state, reset)
    weights = [torch.randn_like(part) for part in (output, *last)]
    for actual, wanted in zip((output, *last), (expected, *expected_last), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)
    grads = [
        torch.autograd.grad(
            sum((w * part).sum() for w, part in zip(weights, parts, strict=True)),
            inputs,
            allow_unused=True,
            materialize_grads=True,
        )
        for parts in ((output, *last), (expected, *expected_last))
    ]
    for actual, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-8, atol=1e-10)


def test_an_input_is_shared_by_the_k_highest_less_the_next():
    logits = torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=F64).log().view(4, 1, 1)
    # less 0.2 and cut at 0: 0.2, 0, 0.1, 0; of their sum two thirds and one third
    wanted = torch.tensor([2 / 3, 0, 1 / 3, 0], dtype=F64)
    torch.testing.assert_close(sparse_softmax(logits, 2).flatten(), wanted, atol=1e-6, rtol=0)
    assert torch.equal(sparse_softmax(logits, 3), logits.softmax(0))
    assert not sparse_softmax(torch.zeros(4, 1, 1), 2).any()


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_gradients_of_sharing_an_input_against_autograd(k):
    logits = torch.randn(5, 3, 1, dtype=F64, requires_grad=True)
    grad = torch.randn(5, 3, 1, dtype=F64)
    (wanted,) = torch.autograd.grad(sparse_softmax(logits, k), logits, grad)
    torch.testing.assert_close(sparse_softmax_backward(logits.detach(), k, grad), wanted)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("form", FORMS)
def test_gradients_against_finite_differences(kind, form):
    # All RIMs active: with inactive ones the published gradient block is, on purpose, not the
    # derivative. Small sizes, but odd ones.
    small = dataclasses.replace(
        VARIANTS[form], input_key_size=3, input_value_size=2, heads=2, key_size=2, value_size=3
    )
    cell = make(kind, small, sizes=(2, 6, 3, 3))
    x = torch.randn(3, 2, 2, dtype=F64, requires_grad=True)
    state = [part.requires_grad_() for part in states(cell, 2)]
    reset = torch.tensor([[False, False], [False, True], [False, False]])
    names = [name for name, _ in cell.named_parameters()]

    def run(*tensors):
        parameters = dict(zip(names, tensors[: len(names)], strict=True))
        x, *state = tensors[len(names) :]
        with torch.nn.utils.stateless._reparametrize_module(cell, parameters):
            output, hidden, memory, _ = cell.run(x, *state, reset=reset)
        return (output, hidden) if memory is None else (output, hidden, memory)

    inputs = [p.detach().clone().requires_grad_() for p in cell.parameters()]
    # Along a random direction of all inputs at once; entry by entry for the published form.
    assert torch.autograd.gradcheck(run, (*inputs, x, *state), fast_mode=form != "official")


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("form", FORMS)
def test_exactly_k_are_active_and_the_others_bit_unchanged(kind, form):
    cell = make(kind, form, sizes=(7, 20, 5, 2), dtype=torch.float32)
    state = states(cell, 16)
    output, *last, active = cell.run(torch.randn(1, 16, 7), *state)
    assert active.shape == (1, 16, 5)
    assert (active.sum(-1) == 2).all()
    still = ~active[0].repeat_interleave(4, -1)
    for before, after in zip(state, [part for part in last if part is not None], strict=True):
        assert torch.equal(before[still], after[still])
        assert not (before[~still] == after[~still]).any()
    assert torch.equal(output[0], last[0])


@pytest.mark.parametrize("form", ["official", "paper", "previous", "dido1998"])
def test_one_step_loss_sends_no_gradient_into_inactive_blocks(form):
    cell = make("lstm", form, sizes=(7, 20, 5, 2))
    state = [part.requires_grad_() for part in states(cell, 1)]
    output, _, _, active = cell.run(torch.randn(1, 1, 7, dtype=F64), *state)
    blocks = active[0, 0].repeat_interleave(4)
    (output * blocks).square().sum().backward()  # inactive outputs are the state itself
    off = ~active[0, 0]
    for grad in (cell.query.grad, cell.weight_hh.grad, cell.weight_ih.grad.transpose(0, 1)):
        assert not grad[off].any()
        assert grad[~off].flatten(1).any(1).all()
    # Others read an inactive RIM, but no gradient goes back into its state.
    assert not state[0].grad[0][~blocks].any()
    assert state[0].grad[0][blocks].all()
    # Its key and value weights do learn from being read, as in the authors' code.
    assert cell.project.grad[off].any()


def test_all_active_without_gate_and_communication_is_independent_lstm_cells():
    n, batch, size = 3, 4, 5
    cells = [nn.LSTMCell(6, size, dtype=F64) for _ in range(n)]
    x = torch.randn(2, batch, 6, dtype=F64)
    hidden = torch.randn(n, batch, size, dtype=F64)
    memory = torch.randn(n, batch, size, dtype=F64)
    weights = StepWeights(
        input=torch.stack([cell.weight_ih.t() for cell in cells], 1),
        hidden=torch.stack([cell.weight_hh.t() for cell in cells]),
        base=torch.stack([(cell.bias_ih + cell.bias_hh)[None] for cell in cells]),
    )
    spec = StepSpec(cell="lstm", num_active=n)
    result = unroll(spec, weights, SequenceInputs(x), hidden, memory)
    assert result.active.all()
    for i, cell in enumerate(cells):
        state = (hidden[i], memory[i])
        for t in range(2):
            state = cell(x[t], state)
            torch.testing.assert_close(result.output[t, :, i], state[0])
        torch.testing.assert_close(result.cell[i], state[1])


@pytest.mark.parametrize("kind", CELLS)
def test_one_rim_is_a_cell_on_the_weighed_value(kind):
    cell = make(kind, sizes=(7, 5, 1, 1))
    with torch.no_grad():  # tanh(0) = 0: no communication
        cell.output.zero_()
        cell.output_bias.zero_()
    plain = (nn.LSTMCell if kind == "lstm" else nn.GRUCell)(20, 5, dtype=F64)
    with torch.no_grad():
        plain.weight_ih.copy_(cell.weight_ih[:, 0].t())
        plain.weight_hh.copy_(cell.weight_hh[0].t())
        plain.bias_ih.copy_(cell.bias_ih[0])
        plain.bias_hh.copy_(cell.bias_hh[0])
    x, state = torch.randn(4, 7, dtype=F64), states(cell, 4)
    gate = torch.sigmoid(((state[0] @ cell.query[0]) * (x @ cell.key)).sum(-1, keepdim=True) / 8)
    inputs = gate * (x @ cell.value)
    if kind == "lstm":
        for actual, wanted in zip(cell(x, tuple(state)), plain(inputs, tuple(state)), strict=True):
            torch.testing.assert_close(actual, wanted)
    else:
        torch.testing.assert_close(cell(x, state[0]), plain(inputs, state[0]))


def test_a_zero_input_equals_the_null_slot():
    """Without bias its key and value are zero, so nothing is read and all RIMs tie."""
    cell = make()
    state = states(cell, 3)
    zero = cell.run(torch.zeros(1, 3, 7, dtype=F64), *state)
    with torch.no_grad():
        cell.key.zero_()
        cell.value.zero_()
    nothing = cell.run(torch.randn(1, 3, 7, dtype=F64), *state)
    assert torch.equal(zero[0], nothing[0])
    assert zero[3][0].tolist() == [[True, True, False]] * 3  # ties: the lower index


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("form", FORMS)
def test_permuting_rims_permutes_the_result(kind, form):
    cell = make(kind, form, sizes=(7, 12, 4, 2))
    x, state = torch.randn(4, 3, 7, dtype=F64), states(cell, 3)
    order = torch.tensor([2, 0, 3, 1])
    output, _, _, active = cell.run(x, *state)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            if name == "weight_ih":
                parameter.copy_(parameter[:, order])
            elif parameter.shape[0] == 4:
                parameter.copy_(parameter[order])
    state = [part.unflatten(1, (4, 3))[:, order].flatten(1) for part in state]
    permuted, _, _, permuted_active = cell.run(x, *state)
    wanted = output.unflatten(2, (4, 3))[:, :, order].flatten(2)
    torch.testing.assert_close(permuted, wanted, rtol=1e-10, atol=1e-12)
    assert torch.equal(permuted_active, active[..., order])


# official: query 6 x 50 x 64, key 600 x 64, value 600 x 200, cell 6 (200 + 50 + 2) 200 (GRU: 150),
# projections 6 x 50 x 192, output and gate (64 + 1) 100: nothing off the blocks, nothing unused.
OFFICIAL = 19_200 + 38_400 + 120_000 + 302_400 + 57_600 + 6_500


@pytest.mark.parametrize(
    ("kind", "form", "hidden", "count"),
    [
        ("lstm", "official", 300, OFFICIAL),
        ("gru", "official", 300, OFFICIAL - 302_400 * 1 // 4),
        ("lstm", "official", 300, 544_100),
        ("lstm", "dido1998", 300, 1_034_864),
        ("gru", "dido1998", 300, 899_864),
        ("lstm", "dido1998", 600, 2_150_864),
    ],
)
def test_parameters_are_the_published_ones(kind, form, hidden, count):
    cell = CELLS[kind](600, hidden, 6, 4, variant=form)
    assert sum(p.numel() for p in cell.parameters()) == count


def test_initial_weights():
    torch.manual_seed(0)
    cell = RIMLSTMCell(600, 300, 6, 4)
    for weight in (cell.query, cell.key, cell.value, cell.project):
        assert float(weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    for weight, bound in ((cell.weight_hh, 300**-0.5), (cell.output, 64**-0.5)):
        assert 0.99 * bound < float(weight.detach().abs().max()) <= bound


def test_evaluation_is_deterministic_from_a_zero_state():
    cell = RIMLSTMCell(7, 12, 3, 2)  # dropout 0.1
    x = torch.randn(5, 4, 7)
    cell.eval()
    first, again = cell.run(x)[0], cell.run(x)[0]
    assert torch.equal(first, again)
    assert torch.equal(first, cell.run(x, torch.zeros(4, 12), torch.zeros(4, 12))[0])
    cell.train()
    assert not torch.equal(cell.run(x)[0], cell.run(x)[0])
    torch.manual_seed(3)
    drawn = cell.run(x)[0]
    torch.manual_seed(3)
    assert torch.equal(drawn, cell.run(x)[0])


@pytest.mark.parametrize("kind", CELLS)
def test_dropout_of_what_is_read(kind):
    """With all of it dropped (nearly), only the block's own recurrence is left."""
    cell = make(kind, dtype=torch.float32)
    x, state = torch.randn(1, 3, 7), states(cell, 3)
    cell.rim_dropout = 1 - 2**-16  # the largest that the mask can represent
    dropped = cell.run(x, *state)
    cell.eval()
    with torch.no_grad():
        cell.value.zero_()
        cell.output[..., : cell.output.shape[-1] // 2] = 0
        cell.output_bias[: cell.output_bias.shape[0] // 2] = 0
    torch.testing.assert_close(dropped[0], cell.run(x, *state)[0])


@pytest.mark.parametrize("kind", CELLS)
def test_what_is_not_dropped_is_scaled_up(kind, monkeypatch):
    """Both what is read of the input and the linear part of the communication: here all of it."""
    monkeypatch.setattr(
        "rl_nfm.rims.cells.dropout_mask",
        lambda shape, p, device: (torch.ones(shape, dtype=torch.bool), 1 / (1 - p)),
    )
    cell = make(kind)
    x, state = torch.randn(4, 3, 7, dtype=F64), states(cell, 3)
    cell.rim_dropout = 0.75
    scaled = cell.run(x, *state)
    cell.eval()
    with torch.no_grad():
        cell.value *= 4
        cell.output[..., : cell.output.shape[-1] // 2] *= 4
        cell.output_bias[: cell.output_bias.shape[0] // 2] *= 4
    torch.testing.assert_close(scaled[0], cell.run(x, *state)[0])


def test_dropout_mask():
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    keep, scale = dropout_mask((300, 1001), 0.1, cpu)
    assert scale == 65536 / (65536 - 6554)  # 0.1 is rounded to 6554 / 65536
    # 300,300 draws: deviation of the fraction sqrt(0.09 / 300300) = 5.5e-4.
    assert float((~keep).float().mean()) == pytest.approx(6554 / 65536, abs=3e-3)
    assert (~keep).float().mean(0).max() < 0.2  # no position of a word is special
    keep, scale = dropout_mask((64,), 0.0, cpu)
    assert keep.all()
    assert scale == 1


def test_dropped_gradients_equal_finite_differences():
    cell = make(sizes=(3, 6, 2, 2))
    cell.rim_dropout = 0.4
    x = torch.randn(3, 2, 3, dtype=F64, requires_grad=True)
    state = [part.requires_grad_() for part in states(cell, 2)]

    def run(*inputs):
        torch.manual_seed(1)
        return cell.run(*inputs)[:3]

    assert torch.autograd.gradcheck(run, (x, *state))


@pytest.mark.parametrize("kind", CELLS)
def test_a_sequence_in_two_calls_equals_one(kind):
    cell = make(kind)
    x, state = torch.randn(7, 2, 7, dtype=F64), states(cell, 2)
    whole = cell.run(x, *state)
    first = cell.run(x[:3], *state)
    second = cell.run(x[3:], *[part for part in first[1:3] if part is not None])
    torch.testing.assert_close(torch.cat((first[0], second[0])), whole[0])
    torch.testing.assert_close(second[1], whole[1])
    for t in range(7):
        state = cell(x[t], tuple(state)) if kind == "lstm" else (cell(x[t], state[0]),)
        torch.testing.assert_close(state[0], whole[0][t])


@pytest.mark.parametrize("kind", CELLS)
def test_reset_forgets_all_before_it(kind):
    cell = make(kind)
    x, state = torch.randn(5, 2, 7, dtype=F64), states(cell, 2)
    reset = torch.zeros(5, 2, dtype=torch.bool)
    reset[2, 0] = reset[0, 1] = True
    output = cell.run(x, *state, reset=reset)[0]
    plain, fresh = cell.run(x, *state)[0], cell.run(x[2:])[0]
    torch.testing.assert_close(output[:2, 0], plain[:2, 0])
    torch.testing.assert_close(output[2:, 0], fresh[:, 0])
    torch.testing.assert_close(output[:, 1], cell.run(x)[0][:, 1])
    state[0].requires_grad_()
    cell.run(x, *state, reset=reset)[0][2:].sum().backward()
    assert not state[0].grad.any()


@pytest.mark.parametrize("kind", CELLS)
def test_invalid_steps_keep_the_state(kind):
    cell = make(kind)
    x, state = torch.randn(4, 2, 7, dtype=F64), states(cell, 2)
    valid = torch.tensor([[True, True], [True, False], [True, False], [True, False]])
    output, hidden, _, active = cell.run(x, *state, valid=valid)
    short = cell.run(x[:1], *state)
    assert torch.equal(hidden[1], output[0, 1])
    torch.testing.assert_close(hidden[1], short[1][1])
    assert not active[1:, 1].any()
    torch.testing.assert_close(output[:, 0], cell.run(x, *state)[0][:, 0])


def test_select_active_by_hand():
    # Columns are two samples. First: 3 > 2 > 1 = 1, the lower index of the tie. Second: all equal.
    logits = torch.tensor([[1.0, 0.0], [3.0, 0.0], [1.0, 0.0], [2.0, 0.0]]).unsqueeze(-1)
    earlier = torch.ones(4, 4, dtype=torch.bool).tril(-1).unsqueeze(-1)
    active = select_active(logits, 3, earlier).squeeze(-1)
    assert active.t().tolist() == [[True, True, False, True], [True, True, True, False]]


def test_autocast_and_low_precision_inputs_compute_in_the_weights_type():
    cell = make(dtype=torch.float32)
    x = torch.randn(3, 2, 7).bfloat16()
    exact = cell.run(x.float())[0]
    with torch.autocast("cpu", torch.bfloat16):
        output, hidden, _, _ = cell.run(x)
        output.sum().backward()
    assert output.dtype == hidden.dtype == torch.float32
    assert torch.equal(output, exact)
    assert all(p.grad.dtype == torch.float32 for p in cell.parameters())


def test_values_not_asked_for_get_no_gradient():
    """Frozen parts, and a loss on the cell state alone."""
    cell = make()
    for name, parameter in cell.named_parameters():
        parameter.requires_grad_(name == "weight_hh")
    cell.run(torch.randn(3, 2, 7, dtype=F64))[2].sum().backward()
    assert cell.weight_hh.grad.any()
    assert all(p.grad is None for name, p in cell.named_parameters() if name != "weight_hh")


def test_cells_without_batch_and_state():
    for kind, cell in ((kind, make(kind)) for kind in CELLS):
        x = torch.randn(7, dtype=F64)
        alone, batched = cell(x), cell(x[None])
        if kind == "lstm":
            torch.testing.assert_close(alone[1], batched[1][0])
            alone, batched = alone[0], batched[0]
        torch.testing.assert_close(alone, batched[0])
        assert alone.shape == (12,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 12, 3, 2), "input_size: 0"),
        ((7, 0, 3, 2), "hidden_size: 0"),
        ((7, 12, 0, 2), "num_rims: 0"),
        ((7, 12, 5, 2), r"hidden_size: 12 .* num_rims \(5\)"),
        ((7, 12, 3, 0), "num_active: 0 .* 1..3"),
        ((7, 12, 3, 4), "num_active: 4 .* 1..3"),
    ],
)
def test_bad_sizes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        RIMLSTMCell(*arguments)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"variant: 'oficial' .* did you mean 'official'"):
        RIMLSTMCell(7, 12, 3, 2, variant="oficial")
    with pytest.raises(ValueError, match=r"rim_dropout: 1.0 .*\[0, 1\)"):
        RIMLSTMCell(7, 12, 3, 2, rim_dropout=1.0)


def test_softmax_across_rims_divides_the_input():
    """With equal queries each of 3 RIMs reads a third of the value."""
    cell = make("lstm", "across")
    with torch.no_grad():
        for parameter in (cell.query, cell.output, cell.output_bias):
            parameter.zero_()
    x = torch.randn(1, 2, 7, dtype=F64)
    gates = F.linear((x[0] @ cell.value) / 3, cell.weight_ih[:, 0].t(), cell.bias_ih[0])
    i, _, g, o = (gates + cell.bias_hh[0]).chunk(4, -1)
    wanted = o.sigmoid() * (i.sigmoid() * g.tanh()).tanh()
    torch.testing.assert_close(cell.run(x)[0][0, :, :4], wanted)


def test_a_second_derivative_is_refused():
    cell = make("lstm")
    x = torch.randn(2, 3, 7, dtype=F64, requires_grad=True)
    (grad,) = torch.autograd.grad(cell.run(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(grad.square().sum(), x)


def test_what_an_ignored_input_holds_reaches_no_gradient():
    cell = make("lstm")
    x = torch.randn(3, 2, 7, dtype=F64)
    x[1, 0] = float("nan")
    valid = torch.tensor([[True, True], [False, True], [True, True]])
    cell.run(x, valid=valid)[0].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in cell.parameters())


@pytest.mark.parametrize("form", MORE_FORMS)
def test_dropout_of_more_heads_and_slots(form):
    cell = RIMLSTMCell(7, 20, 5, 3, variant=form, rim_dropout=0.3)
    x = torch.randn(9, 4, 7, requires_grad=True)
    output, *_ = cell.run(x)
    output.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (x, *cell.parameters()))
    assert not torch.equal(cell.run(x)[0], output)
    assert torch.equal(cell.eval().run(x)[0], cell.run(x)[0])


def test_slots_are_refused_where_the_form_has_none():
    for wrong in ({"input_gate": "across"}, {"input_bias": True}, {"input_heads": 2}):
        with pytest.raises(ValueError, match="input_slots: 3 is only allowed"):
            Variant(input_slots=3, **wrong)


@pytest.mark.parametrize(
    "options",
    [{"communication": "liner"}, {"source": "prevous"}, {"input_gate": "nul"}, {"heads": 0}],
)
def test_a_variant_checks_its_values(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name}: .* is not allowed"):
        Variant(**options)
    if name == "heads":
        with pytest.raises(ValueError, match=r"^heads: 0 is not allowed"):
            BRIMVariant(heads=0)


@pytest.mark.parametrize(
    "wrong", [{"input_gate": "across", "input_bias": True}, {"mask_input": True}]
)
def test_forms_whose_biases_would_be_read_wrongly_are_refused(wrong):
    """A key's bias cancels only beside a null slot; a masked input would mask the biases too."""
    with pytest.raises(ValueError, match="not with"):
        Variant(**wrong)
    Variant(mask_input=True, cell_bias=False)


@pytest.mark.parametrize("kernels", ["0", "1"])
def test_flags_and_states_of_another_batch_are_refused(kernels, monkeypatch):
    """The plain loop broadcast them: a reset of one environment reset all."""
    monkeypatch.setenv("RL_NFM_KERNELS", kernels)
    cell = RIMLSTMCell(5, 12, 3, 2)
    x, state = torch.randn(1, 3, 5), (torch.randn(3, 12), torch.randn(3, 12))
    cell.run(x, *state, reset=torch.tensor([[True, False, False]]))
    for reset in (torch.tensor([True, False, False]), torch.ones(1, 1, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"reset: torch.bool .* must be torch.bool \(1, 3\)"):
            cell.run(x, *state, reset=reset)
    with pytest.raises(ValueError, match=r"reset: torch.uint8"):
        cell.run(x, *state, reset=torch.zeros(1, 3, dtype=torch.uint8))


def test_a_step_checks_its_shapes():
    lstm, gru = RIMLSTMCell(5, 12, 3, 2), RIMGRUCell(5, 12, 3, 2)
    with pytest.raises(ValueError, match=r"input: shape \(4, 6\) .* must be \[B, 5\]"):
        lstm(torch.zeros(4, 6))
    with pytest.raises(ValueError, match=r"input: shape \(2, 4, 5\)"):
        lstm(torch.zeros(2, 4, 5))
    with pytest.raises(ValueError, match=r"state: shape \(1, 12\) .* must be \(4, 12\)"):
        gru(torch.zeros(4, 5), torch.zeros(1, 12))


def test_dropout_in_training_compiles_as_one_graph_and_runs_under_vmap():
    torch.manual_seed(0)
    cell = RIMLSTMCell(5, 12, 3, 2, rim_dropout=0.5).train()
    x = torch.randn(2, 4, 5)
    hidden, _ = torch.vmap(cell, randomness="different")(x[:1].expand(2, -1, -1))
    assert not torch.equal(hidden[0], hidden[1])

    def keep(x):
        return x * dropout_mask((64, 64), 0.25, x.device)[0]

    kept = torch.compile(keep, fullgraph=True, backend="eager")(torch.ones(64, 64))
    assert float(kept.mean()) == pytest.approx(0.75, abs=0.03)
