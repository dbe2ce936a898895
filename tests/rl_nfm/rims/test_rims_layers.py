"""`RIM_LSTM`, `RIM_GRU` and `BlocksWrapper`: call and shapes of `nn.LSTM`, packing, borders."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rl_nfm.rims import (
    BRIM_LSTM,
    RIM_GRU,
    RIM_LSTM,
    VARIANTS,
    BlocksWrapper,
    Variant,
    kernels,
)

MODELS: dict[type[nn.Module], Any] = {RIM_LSTM: nn.LSTM, RIM_GRU: nn.GRU}
F64 = torch.float64


def make(model: Any, *arguments, dtype=F64, rim_dropout=0.0, **options):
    torch.manual_seed(0)
    rims = model(5, 6, 3, 2, *arguments, rim_dropout=rim_dropout, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in rims.parameters():
            parameter.normal_(std=0.5)
    return rims


def parts(state: Any) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else tuple(state)


def like(model: Any, tensors: Any) -> Any:
    """A state as the model takes it."""
    return tuple(tensors) if model is RIM_LSTM else tensors[0]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize(
    ("num_layers", "batch_first", "bidirectional"),
    list(itertools.product((1, 3), (False, True), (False, True))),
)
def test_shapes_are_those_of_torch(model, variant, num_layers, batch_first, bidirectional):
    options = {"batch_first": batch_first, "dropout": 0.3, "bidirectional": bidirectional}
    options["dropout"] = 0.3 if num_layers > 1 else 0.0
    rims = make(model, num_layers, variant=variant, rim_dropout=0.1, dtype=torch.float32, **options)
    torchs = MODELS[model](5, 6, num_layers, **options)
    for shape in ((4, 2, 5), (4, 5)):
        x = torch.randn(shape, requires_grad=True)
        (output, state), (wanted, wanted_state) = rims(x), torchs(x)
        assert output.shape == wanted.shape
        for part, other in zip(parts(state), parts(wanted_state), strict=True):
            assert part.shape == other.shape
        again, _ = rims(x, like(model, [torch.randn_like(part) for part in parts(state)]))
        assert again.shape == wanted.shape
        again.sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in rims.parameters())


def test_it_replaces_nn_lstm_with_half_the_parameters():
    rims, torchs = RIM_LSTM(600, 300, 6, 4), nn.LSTM(600, 300)
    assert sum(p.numel() for p in rims.parameters()) == 544_100
    assert sum(p.numel() for p in torchs.parameters()) == 1_082_400


@pytest.mark.parametrize("model", MODELS)
def test_layers_and_directions_by_hand(model):
    """Two layers, two directions: the same as running the four cells and turning sequences."""
    rims = make(model, 2, bidirectional=True, variant=Variant(pass_inactive=True))
    x = torch.randn(4, 3, 5, dtype=F64)
    count = len(parts(rims(x)[1]))
    state = torch.randn(count, 4, 3, 6, dtype=F64)
    output, last = rims(x, like(model, state))
    inputs, cells = x, list(rims.cells)
    for layer in range(2):
        ahead = cells[2 * layer].run(inputs, *state[:, 2 * layer])
        back = cells[2 * layer + 1].run(inputs.flip(0), *state[:, 2 * layer + 1])
        inputs = torch.cat((ahead[0], back[0].flip(0)), -1)
        torch.testing.assert_close(parts(last)[0][2 * layer], ahead[1])
        torch.testing.assert_close(parts(last)[0][2 * layer + 1], back[1])
    torch.testing.assert_close(output, inputs)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_sequences_equal_one_by_one(model, enforce_sorted, bidirectional):
    rims = make(model, 2, bidirectional=bidirectional)
    lengths = torch.tensor([5, 3, 1] if enforce_sorted else [3, 1, 5])
    x = torch.randn(5, 3, 5, dtype=F64)
    reset = torch.rand(5, 3) < 0.3
    start = torch.randn(2, 4 if bidirectional else 2, 3, 6, dtype=F64)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
    output, state = rims(packed, like(model, start), reset)
    assert isinstance(output, PackedSequence)
    assert torch.equal(output.batch_sizes, packed.batch_sizes)
    padded, out_lengths = pad_packed_sequence(output)
    assert torch.equal(out_lengths, lengths)
    for b, length in enumerate(lengths.tolist()):
        alone, alone_state = rims(
            x[:length, b], like(model, start[:, :, b]), reset[:length, b]
        )  # without batch
        torch.testing.assert_close(padded[:length, b], alone)
        for part, wanted in zip(parts(state), parts(alone_state), strict=True):
            torch.testing.assert_close(part[:, b], wanted)


def test_packed_gradients_ignore_the_padding():
    rims = make(RIM_LSTM)
    x = torch.randn(4, 2, 5, dtype=F64, requires_grad=True)
    output, _ = rims(pack_padded_sequence(x, torch.tensor([4, 2])))
    output.data.square().sum().backward()
    assert not x.grad[2:, 1].any()
    assert x.grad[:2, 1].any()
    assert x.grad[:, 0].flatten(1).any(1).all()


@pytest.mark.parametrize("model", MODELS)
def test_batch_first_is_the_same_computation(model):
    plain, turned = make(model, 2), make(model, 2, True)
    x, reset = torch.randn(4, 3, 5, dtype=F64), torch.rand(4, 3) < 0.3
    output, state = plain(x, None, reset)
    other, other_state = turned(x.transpose(0, 1), None, reset.t())
    assert torch.equal(other.transpose(0, 1), output)
    for part, wanted in zip(parts(other_state), parts(state), strict=True):
        assert torch.equal(part, wanted)


@pytest.mark.parametrize("model", MODELS)
def test_nothing_crosses_a_reset_in_either_direction(model):
    rims = make(model, 2, bidirectional=True)
    x = torch.randn(5, 1, 5, dtype=F64, requires_grad=True)
    reset = torch.tensor([False, False, True, False, False])[:, None]
    output, _ = rims(x, None, reset)
    before, _ = rims(x[:2])
    after, _ = rims(x[2:])
    torch.testing.assert_close(output, torch.cat((before, after)))
    (grad,) = torch.autograd.grad(output[:2].square().sum(), x)
    assert not grad[2:].any()
    assert grad[:2].any()


@pytest.mark.parametrize("model", MODELS)
def test_a_sequence_in_two_calls_equals_one(model):
    rims = make(model, 2)
    x = torch.randn(7, 3, 5, dtype=F64)
    whole, last = rims(x)
    first, state = rims(x[:4])
    second, state = rims(x[4:], state)
    torch.testing.assert_close(torch.cat((first, second)), whole)
    for part, wanted in zip(parts(state), parts(last), strict=True):
        torch.testing.assert_close(part, wanted)


def test_any_length_runs_through_the_same_code():
    rims = make(RIM_LSTM, dtype=torch.float32)
    short, long = torch.randn(50, 2, 5), torch.randn(200, 2, 5)
    long[:50] = short
    torch.testing.assert_close(rims(long)[0][:50], rims(short)[0])


@pytest.mark.parametrize("model", MODELS)
def test_dropout_between_layers_only_in_training(model):
    rims = make(model, 2, dropout=0.5)
    x = torch.randn(4, 3, 5, dtype=F64)
    assert not torch.equal(rims(x)[0], rims(x)[0])
    rims.eval()
    assert torch.equal(rims(x)[0], rims(x)[0])
    single = make(model, 1, dropout=0.5)  # nothing between layers to drop
    assert torch.equal(single(x)[0], single(x)[0])


def test_which_rims_are_active():
    rims = make(RIM_LSTM, 2, bidirectional=True)
    x = torch.randn(4, 3, 5, dtype=F64)
    output, _, active = rims.run(x, None, None)
    assert active.shape == (4, 4, 3, 3)
    assert (active.sum(-1) == 2).all()
    changed = output[1:, :, 6:].unflatten(-1, (3, 2)) != output[:-1, :, 6:].unflatten(-1, (3, 2))
    # The last layer's backward direction: what was updated at t differs from the state after t + 1.
    assert torch.equal(active[3, :-1], changed.all(-1))
    assert rims.run(x[:, 0], None, None)[2].shape == (4, 4, 3)


@pytest.mark.parametrize("model", MODELS)
def test_saved_and_copied(model):
    rims = make(model, 2)
    other = model(5, 6, 3, 2, 2, rim_dropout=0.0, dtype=F64)
    x = torch.randn(4, 3, 5, dtype=F64)
    assert not torch.equal(other(x)[0], rims(x)[0])
    other.load_state_dict(rims.state_dict())
    assert torch.equal(other(x)[0], rims(x)[0])
    twin = copy.deepcopy(rims)
    rims.reset_parameters()
    assert torch.equal(other(x)[0], twin(x)[0])
    assert not torch.equal(other(x)[0], rims(x)[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.zeros(4, 2, 6)), r"input: shape \(4, 2, 6\) .* 5 features"),
        (lambda m: m(torch.zeros(5)), r"input: shape \(5,\)"),
        (lambda m: m(torch.zeros(0, 2, 5)), "no step"),
        (lambda m: m(torch.zeros(4, 2, 5), (torch.zeros(1, 3, 6),) * 2), r"\(1, 2, 6\)"),
        (lambda m: m(torch.zeros(4, 2, 5), None, torch.zeros(2, 4) > 0), r"reset: .* \(4, 2\)"),
        (lambda _: RIM_LSTM(5, 6, 3, 2, 0), "num_layers: 0"),
        (lambda _: RIM_LSTM(5, 6, 3, 2, dropout=1.5), "dropout: 1.5"),
        (lambda _: RIM_LSTM(5, 6, 4, 2), "hidden_size: 6"),
        (lambda _: RIM_GRU(5, 6, 3, 2, variant="papr"), "did you mean 'paper'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(RIM_LSTM(5, 6, 3, 2))
    assert len(str(error.value).splitlines()) == 1


def test_blocks_wrapper_keeps_both_states_side_by_side():
    torch.manual_seed(0)
    blocks = BlocksWrapper(7, 12, 3, num_blocks=4, update_topk=2).eval()
    x, start = torch.randn(5, 2, 7), torch.randn(1, 2, 24)
    output, state = blocks(x, start)
    assert output.shape == (5, 2, 3)
    assert state.shape == (1, 2, 24)
    hidden, (h, c) = blocks.rims(blocks.encoder(x), (start[..., :12], start[..., 12:]))
    assert torch.equal(output, blocks.decoder(hidden))
    assert torch.equal(state, torch.cat((h, c), -1))
    output.sum().backward()
    assert all(p.grad is not None for p in blocks.parameters())
    blocks = BlocksWrapper(7, 12, 3, 0.5, 4, 2)
    assert not torch.equal(blocks(x, start)[0], blocks(x, start)[0])


def compiled_twin(backend: str) -> tuple[Tensor, ...]:
    """Results and gradients of a compiled module, less those of the plain one."""
    rims = make(RIM_LSTM, dtype=torch.float32)
    x, reset = torch.randn(3, 2, 5, requires_grad=True), torch.rand(3, 2) < 0.3
    results = []
    for module in (rims, torch.compile(rims, backend=backend, fullgraph=True)):
        output, (hidden, cell) = module(x, None, reset)
        loss = output.square().sum() + hidden.sum() + cell.sum()
        grads = torch.autograd.grad(loss, [x, *rims.parameters()])
        results.append((output, hidden, cell, *grads))
    return tuple(a - b for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile_takes_all_steps_as_one_graph(backend):
    assert all(gap.abs().max() < 1e-5 for gap in compiled_twin(backend))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # from inside the compiler
@pytest.mark.parametrize("model", MODELS)
def test_compiled_steps_equal_plain_ones(model):
    plain, compiled = make(model, dtype=F64), make(model, dtype=F64, compiled=True)
    x, reset = torch.randn(6, 2, 5, dtype=F64), torch.rand(6, 2) < 0.3
    results = []
    for rims in (plain, compiled):
        output, _ = rims(x, None, reset)
        grads = torch.autograd.grad(output.square().sum(), list(rims.parameters()))
        results.append((output, *grads))
    for actual, wanted in zip(*results, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_cuda_equals_cpu(variant):
    plain = make(RIM_LSTM, 2, variant=variant)
    cuda = copy.deepcopy(plain).cuda()
    x, reset = torch.randn(6, 3, 5, dtype=F64), torch.rand(6, 3) < 0.3
    results = []
    for rims, device in ((plain, "cpu"), (cuda, "cuda")):
        output, _ = rims(x.to(device), None, reset.to(device))
        grads = torch.autograd.grad(output.square().sum(), list(rims.parameters()))
        results.append([part.cpu() for part in (output, *grads)])
    for actual, wanted in zip(*results, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.gpu
def test_forward_and_backward_are_captured_as_a_cuda_graph():
    rims = make(RIM_LSTM, dtype=torch.float32).cuda()
    x = torch.randn(6, 3, 5, device="cuda", requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(
        lambda x: rims(x)[0], (torch.randn_like(x, requires_grad=True),)
    )
    output, wanted = graphed(x), rims(x)[0]
    torch.testing.assert_close(output, wanted)
    (grad,) = torch.autograd.grad(output.square().sum(), x)
    (wanted_grad,) = torch.autograd.grad(wanted.square().sum(), x)
    torch.testing.assert_close(grad, wanted_grad)


def two_layers(**options) -> tuple[RIM_LSTM, Tensor]:
    return make(RIM_LSTM, 2, variant=Variant(**options)), torch.randn(4, 3, 5, dtype=F64)


def one_by_one(rims: RIM_LSTM, x: Tensor, hand_on: Any) -> tuple[Tensor, Tensor]:
    """Output of the second layer, and what it read."""
    first, second = rims.cells
    output, _, _, active = first.run(x)
    read = hand_on(output, active.repeat_interleave(2, -1))
    return second.run(read)[0], read


def test_a_layer_hands_on_what_active_rims_computed_and_zeros_of_the_others():
    rims, x = two_layers()
    wanted, read = one_by_one(rims, x, lambda output, active: output * active)
    assert ((read == 0).sum(-1) == 2).all()  # one of three RIMs of size 2
    assert torch.equal(rims(x)[0], wanted)


def test_what_inactive_rims_keep_may_be_handed_on():
    rims, x = two_layers(pass_inactive=True)
    wanted, _ = one_by_one(rims, x, lambda output, active: output)
    assert torch.equal(rims(x)[0], wanted)
    assert VARIANTS["dido1998"].pass_inactive  # as that project's code does
    assert not VARIANTS["official"].pass_inactive


def test_without_a_gradient_where_asked_for():
    rims, x = two_layers(pass_inactive=True, block_inactive_gradient=True)
    free, _ = two_layers(pass_inactive=True)
    blocked = one_by_one(
        rims, x, lambda output, active: torch.where(active, output, output.detach())
    )
    assert torch.equal(rims(x)[0], free(x)[0])
    wanted = torch.autograd.grad(blocked[0].square().sum(), list(rims.cells[0].parameters()))
    found = torch.autograd.grad(rims(x)[0].square().sum(), list(rims.cells[0].parameters()))
    torch.testing.assert_close(found, wanted)
    other = torch.autograd.grad(free(x)[0].square().sum(), list(free.cells[0].parameters()))
    assert not torch.allclose(found[0], other[0])
    with pytest.raises(ValueError, match="block_inactive_gradient"):
        Variant(block_inactive_gradient=True)


@pytest.mark.parametrize("model", MODELS)
def test_arguments_by_the_names_of_torch(model):
    rims, x = make(model), torch.randn(4, 3, 5, dtype=F64)
    output, state = rims(x)
    assert torch.equal(rims(input=x, hx=None)[0], output)
    assert torch.equal(rims(input=x, hx=state)[0], rims(x, state)[0])
    rims.flatten_parameters()
    first, last = x[0], like(model, [part[0] for part in parts(state)])
    cell = rims.cells[0]
    assert torch.equal(parts(cell(input=first, hx=last))[0], parts(cell(first, last))[0])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("fused", [True, False])
def test_an_empty_batch_gives_an_empty_output_as_in_torch(model, variant, fused, monkeypatch):
    if not fused:
        monkeypatch.setattr(kernels, "supports", lambda *_: False)
    options = {"dtype": torch.float32, "rim_dropout": 0.1}
    rims, torchs = make(model, 2, variant=variant, **options), MODELS[model](5, 6, 2)
    x = torch.randn(4, 0, 5, requires_grad=True)
    (output, state), (wanted, wanted_state) = rims(x), torchs(x)
    assert output.shape == wanted.shape
    assert [p.shape for p in parts(state)] == [p.shape for p in parts(wanted_state)]
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert all(p.grad is not None and not p.grad.any() for p in rims.parameters())


@pytest.mark.parametrize("model", MODELS)
def test_an_input_of_another_type_is_refused_as_in_torch(model):
    rims, torchs = make(model, dtype=torch.float32), MODELS[model](5, 6)
    x = torch.randn(4, 3, 5, dtype=F64)
    for net in (rims, torchs):
        with pytest.raises(ValueError, match=r"float64.*float32"):
            net(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert rims(x.bfloat16())[0].dtype == torch.float32


@pytest.mark.parametrize("layer", [RIM_LSTM, BRIM_LSTM])
def test_a_state_that_is_not_h_and_c_is_refused(layer):
    rims = layer(5, 12, 3, 2) if layer is RIM_LSTM else layer(5, 12, num_rims=3, num_active=2)
    x, h = torch.zeros(7, 4, 5), torch.zeros(1, 4, 12)
    for state in (h, (h,), (h, h, h), (h, None)):
        with pytest.raises(ValueError, match=r"state: .* must be \(h, c\), two tensors"):
            rims(x, state)


def test_a_tuple_as_the_state_of_a_gru_is_refused():
    rims, h = RIM_GRU(5, 12, 3, 2), torch.zeros(1, 4, 12)
    with pytest.raises(ValueError, match="state: tuple is not allowed, must be h, one tensor"):
        rims(torch.zeros(7, 4, 5), (h,))
