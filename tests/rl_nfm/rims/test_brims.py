"""Bidirectional RIMs against the authors' code, a naive twin and finite differences.

The authors' numbers are sarthmit/BRIMs (f8af67e, folder MNIST, two layers of 6 and 3 blocks, 4 and
2 of them active), executed in float64 in evaluation mode on these weights and inputs.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rl_nfm.rims import BRIM_GRU, BRIM_LSTM, BRIMVariant
from rl_nfm.rims.bidirectional import BRIMLayer

MODELS = {"lstm": BRIM_LSTM, "gru": BRIM_GRU}
SMALL = BRIMVariant(input_heads=2, input_key_size=3, heads=3, key_size=2, value_size=5)
F64 = torch.float64


def make(kind: str = "lstm", rims: Any = (6, 3), active: Any = (4, 2), **options: Any):
    """Layers away from their small initial weights, of 12 units, reading 5 features."""
    torch.manual_seed(0)
    layers = len(rims) if isinstance(rims, tuple) else options.pop("num_layers")
    options = {"variant": SMALL, "rim_dropout": 0.0, "dtype": F64, **options}
    brims = MODELS[kind](5, 12, rims, active, layers, **options)
    with torch.no_grad():
        for parameter in brims.parameters():
            parameter.normal_(std=0.5)
    return brims


def inputs(brims: Any, steps: int = 6, batch: int = 3) -> tuple[Tensor, list[Tensor], Tensor]:
    torch.manual_seed(1)
    x = torch.randn(steps, batch, 5, dtype=F64, requires_grad=True)
    count = 2 if brims.kind == "lstm" else 1
    state = [torch.randn(brims.num_layers, batch, 12, dtype=F64) for _ in range(count)]
    return x, [part.requires_grad_() for part in state], torch.rand(steps, batch) < 0.25


def like(brims: Any, state: Any) -> Any:
    """A state as the model takes it."""
    return tuple(state) if brims.kind == "lstm" else state[0]


def parts(state: Any) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else list(state)


PUBLIC = {
    "lstm": """
        0.338615759 0.164249283 -0.396337065 0.695115576 -0.615370467 -0.208192255
        -0.470187294 0.082192530 -0.135128694 -0.006044084 -0.697784634 0.732227857
        -0.002815817 -0.032516620 0.004348349 0.001028403 -0.005800359 -0.009325868
        0.008591909 0.003031421 0.002263152 -0.005876841 -0.004268220 -0.002469686
    """,
    "gru": """
        0.099279023 -1.376696115 0.405988118 0.022871888 -1.132334780 -1.262367635
        -1.022373740 0.925975833 0.629206986 -0.244307007 -0.825394701 -0.303043476
        -0.095203855 -0.175535494 -0.221329268 0.167897727 0.031315585 -0.007828660
        -0.095646589 0.204860696 0.035354514 0.055179976 0.084790656 -0.107435557
    """,
}
"""Output of the last step and gradient of the first input, both of the first sample."""


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_authors_code_gives_the_same_on_equal_weights(kind):
    brims = MODELS[kind](12, 12, (6, 3), (4, 2), variant="mnist", rim_dropout=0.0, dtype=F64)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64)

    attention = {"query", "below", "above", "project"}
    with torch.no_grad():
        for name, parameter in brims.named_parameters():
            scale = 0.3 if name.split(".")[-1] in attention else 0.5
            parameter.copy_(scale * draw(*parameter.shape))
    x = draw(6, 3, 12).requires_grad_()
    state = [draw(2, 3, 12) for _ in range(2 if kind == "lstm" else 1)]
    output, _ = brims(x, like(brims, state))
    (grad,) = torch.autograd.grad((output * draw(6, 3, 12)).sum(), x)
    public = torch.tensor([float(number) for number in PUBLIC[kind].split()], dtype=F64)
    torch.testing.assert_close(torch.cat((output[-1, 0], grad[0, 0])), public, rtol=0, atol=1e-8)


def naive_read(layer, i: int, h: Tensor, slots: list[Tensor]):
    """What RIM i of one sample reads, and its mean weight on nothing; `slots`: maps and vectors."""
    form, keys = layer.form, layer.query.shape[-1]
    both = [torch.zeros(keys + layer.weight_ih.shape[1], dtype=F64), *slots]
    read, null = [], 0.0
    for head in range(form.input_heads):
        d, e = form.input_key_size, layer.weight_ih.shape[1] // form.input_heads
        query = h @ layer.query[i][:, head * d : (head + 1) * d]
        logits = [query @ slot[head * d : (head + 1) * d] / math.sqrt(d) for slot in both]
        weights = torch.stack(logits).softmax(0)
        values = [slot[keys + head * e : keys + (head + 1) * e] for slot in both]
        read.append(sum(w * v for w, v in zip(weights, values, strict=True)))
        null += weights[0].item() / form.input_heads
    return torch.cat(read), null


def naive_talk(layer, shown: list[Tensor], i: int):
    form, heads = layer.form, []
    query_end, key_end = form.heads * form.key_size, 2 * form.heads * form.key_size
    for head in range(form.heads):
        of_keys = slice(head * form.key_size, (head + 1) * form.key_size)
        of_values = slice(head * form.value_size, (head + 1) * form.value_size)
        query = (shown[i] @ layer.project[i])[:query_end][of_keys]
        told = [s @ p for s, p in zip(shown, layer.project, strict=True)]
        logits = [query @ t[query_end:key_end][of_keys] / math.sqrt(form.key_size) for t in told]
        weights = torch.stack(logits).softmax(0)
        heads.append(sum(w * t[key_end:][of_values] for w, t in zip(weights, told, strict=True)))
    out = torch.cat(heads) @ layer.output[0] + layer.output_bias
    size = len(out) // 2
    return torch.sigmoid(out[size:]) * torch.tanh(out[:size])


def naive_layer(layer, slots: list[Tensor], state: list[Tensor]):
    """One step of one layer for one sample, one RIM at a time."""
    n = layer.num_rims
    old = [part.chunk(n) for part in state]
    reads = [naive_read(layer, i, old[0][i], slots) for i in range(n)]
    active = sorted(range(n), key=lambda i: (reads[i][1], i))[: layer.num_active]
    new = []
    for i in range(n):
        x, *before = (part[None] for part in (reads[i][0], *(part[i] for part in old)))
        weights = layer.weight_ih[i].t(), layer.weight_hh[i].t(), layer.bias_ih[i], layer.bias_hh[i]
        if layer.kind == "lstm":
            found = torch._VF.lstm_cell(x, before, *weights)
        else:
            found = torch._VF.gru_cell(x, before[0], *weights)
        new.append([part[0] for part in parts(found)])
    shown = [new[i][0] if i in active else new[i][0].detach() for i in range(n)]
    for i in range(n):
        new[i][0] = new[i][0] + naive_talk(layer, shown, i)
    kept = [new[i] if i in active else [part[i] for part in old] for i in range(n)]
    return [torch.cat(part) for part in zip(*kept, strict=True)]


def naive_run(brims: Any, x: Tensor, state: list[Tensor], reset: Tensor) -> list[Tensor]:
    """Output and last states, one sample at a time."""
    outputs, lasts = [], []
    for b in range(x.shape[1]):
        now = [[part[layer, b] for part in state] for layer in range(brims.num_layers)]
        tops = []
        for t in range(len(x)):
            if reset[t, b]:
                now = [[torch.zeros_like(part) for part in layer] for layer in now]
            before, now, below = now, [], x[t, b]
            for index, layer in enumerate(brims.cells):
                slots = [below @ layer.below]
                if index < brims.num_layers - 1:
                    slots.append(before[index + 1][0] @ layer.above)
                now.append(naive_layer(layer, slots, before[index]))
                below = now[-1][0]
            tops.append(below)
        outputs.append(torch.stack(tops))
        lasts.append([torch.stack(part) for part in zip(*now, strict=True)])
    last = [torch.stack(part, 1) for part in zip(*lasts, strict=True)]
    return [torch.stack(outputs, 1), *last]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    ("form", "rims", "active"),
    [
        (SMALL, (4, 3), (2, 2)),
        (SMALL, (2, 4, 3), (1, 3, 3)),
        (SMALL, (4,), (1,)),
        (SMALL, (1, 6), (1, 5)),
        ("mnist", (3, 2), (2, 1)),
        ("cifar10", (2, 3), (1, 2)),
    ],
    ids=lambda part: "small" if part is SMALL else str(part),
)
def test_outputs_and_gradients_equal_a_naive_twin(kind, form, rims, active):
    brims = make(kind, rims, active, variant=form)
    x, state, reset = inputs(brims, steps=4, batch=2)
    output, last = brims(x, like(brims, state), reset)
    results = [output, *parts(last)], naive_run(brims, x, state, reset)
    weights = [torch.randn_like(part) for part in results[0]]
    wanted = [x, *state, *brims.parameters()]
    grads = [torch.autograd.grad(found, wanted, weights) for found in results]
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_equal_finite_differences(kind):
    """With all RIMs active, since the block of inactive ones is no derivative."""
    brims = make(kind, (3, 2), (3, 2))
    x, state, reset = inputs(brims, steps=3, batch=2)
    names = [name for name, _ in brims.named_parameters()]

    def call(x: Tensor, first: Tensor, *tensors: Tensor) -> Tensor:
        given = [first, *(part.detach() for part in state[1:])]
        arguments = (x, like(brims, given), reset)
        named = dict(zip(names, tensors, strict=True))
        return torch.func.functional_call(brims, named, arguments)[0]

    assert torch.autograd.gradcheck(call, (x, state[0], *brims.parameters()), fast_mode=True)


def test_what_is_above_is_read_one_step_later_and_only_by_the_layer_below_it():
    brims = make(rims=(2, 2, 2), active=(2, 2, 2))
    x, state, _ = inputs(brims, steps=1)
    top = state[0].detach().clone()
    top[2] += 1.0
    _, (hidden, _) = brims(x, tuple(state))
    _, (other, _) = brims(x, (top, state[1]))
    same = [torch.equal(a, b) for a, b in zip(hidden, other, strict=True)]
    assert same == [True, False, False], "layer 0 reads layer 1, which changes within this step"
    assert brims.cells[2].above is None
    (grad,) = torch.autograd.grad(hidden[1].sum(), state[0])
    assert grad[2].any(), "the gradient reaches what was read from above"


def test_by_hand_nothing_is_read_where_the_weights_are_zero():
    """Queries 0: each slot has weight 1/3; values 6: each RIM reads 6 * 2 / 3 = 4 of two slots."""
    brims = BRIM_LSTM(1, 4, 2, 1, 2, rim_dropout=0.0, dtype=F64)
    layer = brims.cells[0]
    assert isinstance(layer, BRIMLayer)
    with torch.no_grad():
        layer.query.zero_()
    slots = [torch.full((1, layer.below.shape[1]), 6.0, dtype=F64)] * 2
    read, active = layer._read(slots, torch.zeros(2, 1, 2, dtype=F64))
    assert torch.allclose(read, torch.full((2, 1, 8), 4.0, dtype=F64))
    assert active.flatten().tolist() == [True, False], "of equals the lower is active"


def test_published_sizes():
    mnist, cifar = BRIM_LSTM(300, 300, (6, 3), (4, 2)), BRIM_LSTM(300, 300, 6, 4, variant="cifar10")
    # queries, two slots, gates' input, hidden, biases, communication, its output: 6 RIMs of 50
    first = 76_800 + 2 * 136_800 + 240_000 + 60_000 + 2_400 + 115_200 + 12_900
    # likewise with one slot: 3 RIMs of 100
    second = 76_800 + 196_800 + 480_000 + 120_000 + 2_400 + 115_200 + 25_800
    assert sum(p.numel() for p in mnist.parameters()) == first + second
    assert cifar.cells[0].below.shape == (300, 32 + 200)
    layer = mnist.cells[1]
    assert (layer.query.shape, layer.below.shape) == ((3, 100, 256), (300, 256 + 400))


@pytest.mark.parametrize("kind", MODELS)
def test_forms_of_input(kind):
    brims = make(kind)
    x, state, reset = inputs(brims)
    output, last = brims(x, like(brims, state), reset)
    brims.batch_first = True
    other, other_last = brims(x.transpose(0, 1), like(brims, state), reset.t())
    assert torch.equal(other, output.transpose(0, 1))
    torch.testing.assert_close(parts(other_last), parts(last))
    alone, alone_last = brims(x[:, 1], like(brims, [part[:, 1] for part in state]), reset[:, 1])
    torch.testing.assert_close(alone, output[:, 1])
    torch.testing.assert_close(parts(alone_last), [part[:, 1] for part in parts(last)])


@pytest.mark.parametrize("kind", MODELS)
def test_packed_sequences_equal_one_by_one(kind):
    brims = make(kind)
    x, state, reset = inputs(brims)
    lengths = torch.tensor([3, 1, 6])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, last = brims(packed, like(brims, state), reset)
    assert isinstance(output, PackedSequence)
    padded, _ = pad_packed_sequence(output)
    _, _, actives = brims.run_layers(packed, tuple(state), reset)
    for b, length in enumerate(lengths.tolist()):
        one = slice(b, b + 1)
        wanted, wanted_last = brims(
            x[:length, one], like(brims, [part[:, one] for part in state]), reset[:length, one]
        )
        torch.testing.assert_close(padded[:length, one], wanted)
        torch.testing.assert_close([p[:, one] for p in parts(last)], parts(wanted_last))
        for active, count in zip(actives, (4, 2), strict=True):
            assert active[:, b].sum(-1).tolist() == [count] * length + [0] * (6 - length)


def test_exactly_k_rims_change_and_the_others_keep_their_state_bit_for_bit():
    brims = make()
    x, state, _ = inputs(brims, steps=1)
    _, (hidden, cell), actives = brims.run_layers(x, tuple(state), None)
    for layer, (active, rims) in enumerate(zip(actives, (6, 3), strict=True)):
        for before, after in ((state[0][layer], hidden[layer]), (state[1][layer], cell[layer])):
            changed = (before != after).unflatten(-1, (rims, -1)).all(-1)
            assert torch.equal(changed, active[0])


def test_dropout_acts_in_training_only():
    brims = make(rim_dropout=0.5)
    x, *_ = inputs(brims)
    assert not torch.equal(brims(x)[0], brims(x)[0])
    assert torch.equal(brims.eval()(x)[0], make()(x)[0])


def test_what_rims_write_to_each_other_is_dropped_before_its_gate():
    """All is 0 but the bias b of what is written: tanh(0) or tanh(2 b), times sigmoid(b)."""
    brims = make(rims=(3,), active=(3,), rim_dropout=0.5)
    with torch.no_grad():
        for parameter in brims.parameters():
            parameter.zero_()
        brims.cells[0].output_bias.fill_(0.7)
    output = brims(torch.zeros(1, 400, 5, dtype=F64))[0]
    kept = output.gt(0).double()
    assert kept.mean().item() == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(output, kept * math.tanh(1.4) / (1 + math.exp(-0.7)))


def test_autocast_and_other_types():
    brims = make(dtype=torch.float32)
    x = torch.randn(4, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(brims(x)[0], brims(x)[0].float())
        assert brims(x.bfloat16())[0].dtype == torch.float32
    with pytest.raises(ValueError, match=r"float64.*float32"):
        brims(x.double())
    half = make(dtype=torch.bfloat16)
    assert half(x.bfloat16())[0].isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((5, 12, (6, 3), 2, 3), {}, r"num_rims: \[6, 3\] .* one for each layer: 3"),
        ((5, 12, 5, 2), {}, r"hidden_size: 12 is not a multiple of num_rims \(5\)"),
        ((5, 12, 3, (1, 4)), {}, r"num_active: 4 .* 1\.\.3"),
        ((5, 12, 3, 2, 0), {}, "num_layers: 0"),
        ((5, 12, 3, 2), {"rim_dropout": 1.0}, "rim_dropout: 1.0"),
        ((5, 12, 3, 2), {"variant": "minst"}, "did you mean 'mnist'"),
        ((5, 12, 3, 2), {"variant": BRIMVariant(input_heads=5)}, "input_heads: 5 .* divide 16"),
    ],
)
def test_bad_arguments_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message) as error:
        BRIM_LSTM(*arguments, **options)
    assert len(str(error.value).splitlines()) == 1


def test_states_of_another_shape_are_refused():
    brims = make()
    x, state, _ = inputs(brims)
    with pytest.raises(ValueError, match=r"state: shape \(1, 3, 12\) is not allowed.*\(2, 3, 12\)"):
        brims(x, tuple(part[:1] for part in state))
