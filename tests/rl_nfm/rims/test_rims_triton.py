"""The steps of RIMs in Triton against the plain path in float64: interpreted, or with -m gpu."""

import copy

import pytest
import torch
from torch import Tensor

from rl_nfm.rims import RIM_LSTM, RIMGRUCell, RIMLSTMCell, Variant, triton_check, triton_loop
from rl_nfm.rims.products import Products, SequenceInputs
from rl_nfm.rims.products_at_once import StepBlock, drive_at_once
from rl_nfm.rims.step import StepSpec, StepWeights
from rl_nfm.rims.unroll import unroll
from rl_nfm.support.triton_guard import TritonGuard
from tests.triton_devices import interpreted_only

CELLS = {"lstm": RIMLSTMCell, "gru": RIMGRUCell}
F64 = torch.float64


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """Names of the kernels that were launched, without their check at first use."""
    names: list[str] = []
    launch = triton_loop.launch

    def note(name, *args, **constants):
        names.append(name)
        launch(name, *args, **constants)

    monkeypatch.setattr(triton_loop, "launch", note)
    monkeypatch.setattr(triton_check, "guard", TritonGuard("RIMs", lambda *_: []))
    return names


def make(kind: str = "lstm", variant="official", rim_dropout=0.0, sizes=(7, 15, 5, 3)):
    torch.manual_seed(0)
    cell = CELLS[kind](*sizes, variant=variant, rim_dropout=rim_dropout)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.normal_(std=0.3)
    return cell


def run(cell, device: str, dtype, *, steps=3, batch=2, masks=True) -> list[Tensor]:
    """Outputs, last states, which were active, and the gradients of all that has one."""
    torch.manual_seed(1)
    cell = copy.deepcopy(cell).to(device, dtype)
    count = 2 if cell.kind == "lstm" else 1
    x = torch.randn(steps, batch, cell.input_size)
    states = torch.randn(count, batch, cell.hidden_size)
    reset, valid = torch.rand(steps, batch) < 0.3, torch.rand(steps, batch) < 0.7
    weights = [torch.randn(steps, batch, cell.hidden_size), *torch.randn_like(states)]
    x, *states = (part.to(device, dtype).requires_grad_() for part in (x, *states))
    reset, valid = (reset.to(device), valid.to(device)) if masks else (None, None)
    torch.manual_seed(2)  # of the dropout
    *results, active = cell.run(x, *states, reset=reset, valid=valid)
    results = [part for part in results if part is not None]
    weighted = zip(weights, results, strict=True)
    loss = sum((weight.to(device, dtype) * part).sum() for weight, part in weighted)
    grads = torch.autograd.grad(loss, [x, *states, *cell.parameters()])
    return [*results, active, *grads]


def assert_close(ours, plain, tolerance=2e-5):
    for actual, wanted in zip(ours, plain, strict=True):
        if actual.dtype == torch.bool:
            assert torch.equal(actual, wanted)
        else:
            error = (actual.double() - wanted.double()).norm()
            assert error <= tolerance * wanted.double().norm() + 1e-9


def assert_cell_equals_the_plain_path(device, launched, cell, steps, masks) -> None:
    shape = {"steps": steps, "batch": 2, "masks": masks}
    ours = run(cell, device, torch.float32, **shape)
    assert len(launched) == 1 + steps * (3 + 3)  # forward and backward
    launched.clear()
    assert_close(ours, run(cell, device, F64, **shape))
    assert not launched


@pytest.mark.parametrize(
    ("kind", "variant", "masks"), [("lstm", "official", True), ("gru", "dido1998", False)]
)
def test_cells_equal_the_plain_path(device, launched, kind, variant, masks):
    cell = make(kind, variant, rim_dropout=0.3)
    assert_cell_equals_the_plain_path(device, launched, cell, 3, masks)


@interpreted_only
@pytest.mark.parametrize(
    ("kind", "variant", "rim_dropout", "masks"),
    [
        ("gru", "paper", 0.0, True),
        ("lstm", "previous", 0.0, False),
        pytest.param("lstm", "dido1998", 0.0, True, marks=pytest.mark.slow),
        pytest.param("gru", "previous", 0.3, True, marks=pytest.mark.slow),
        pytest.param("lstm", "paper", 0.3, True, marks=pytest.mark.slow),
        pytest.param("gru", "official", 0.0, True, marks=pytest.mark.slow),
    ],
)
def test_other_variants(device, launched, kind, variant, rim_dropout, masks):
    cell = make(kind, variant, rim_dropout)
    assert_cell_equals_the_plain_path(device, launched, cell, 2, masks)


@interpreted_only
@pytest.mark.parametrize(
    ("sizes", "steps", "batch", "options"),
    [
        ((3, 16, 1, 1), 1, 3, {"heads": 1, "key_size": 3, "value_size": 2}),
        ((2, 6, 6, 6), 2, 1, {"heads": 3, "key_size": 1, "value_size": None, "cell_bias": False}),
        pytest.param((1, 99, 9, 4), 4, 5, {"heads": 2, "input_heads": 2}, marks=pytest.mark.slow),
    ],
)
def test_sizes_of_extremes(device, launched, sizes, steps, batch, options):
    cell = make("lstm", Variant(**options), sizes=sizes)
    shape = {"steps": steps, "batch": batch}
    ours = run(cell, device, torch.float32, **shape)
    assert launched
    assert_close(ours, run(cell, device, F64, **shape))


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("masks", [False, True])
def test_a_block_that_stands_alone(device, launched, kind, masks):
    """As the encoder `lstm` uses it: no input gate, no communication."""
    torch.manual_seed(0)
    gates = 20 if kind == "lstm" else 15
    drawn = [
        torch.randn(3, 1, gates),
        torch.randn(1, 5, gates),
        torch.randn(1, 1, gates),
        torch.randn(4, 2, 3),
        *torch.randn(2, 1, 2, 5),
    ]
    flags = torch.rand(2, 4, 2) < 0.4
    results = []
    for dtype in (torch.float32, F64):
        weight, hidden_weight, base, x, *states = (
            part.to(device, dtype).requires_grad_() for part in drawn
        )
        bias = base.detach().clone().requires_grad_() if kind == "gru" else None
        weights = StepWeights(weight, hidden_weight, base, bias)
        reset, valid = flags.to(device) if masks else (None, None)
        sequence = SequenceInputs(x, reset=reset, valid=valid)
        cell = states[1] if kind == "lstm" else None
        result = unroll(StepSpec(cell=kind, num_active=1), weights, sequence, states[0], cell)
        loss = result.output.square().sum() + result.hidden.sum()
        leaves = [part for part in (*weights, x, states[0], cell) if part is not None]
        grads = torch.autograd.grad(loss, leaves)
        results.append([part for part in (*result, *grads) if part is not None])
    assert len(launched) == 2 * 4
    assert_close(*results)


def test_equal_logits_choose_the_lower_and_nothing_is_kept_without_gradients(device, launched):
    cell = make().to(device)
    x = torch.randn(2, 2, 7, device=device)
    with torch.no_grad():
        output, *_, active = cell.run(x)
        assert active[0].tolist() == [[True, True, True, False, False]] * 2
        quiet = len(launched)
        assert quiet == 1 + 2 * 3
    assert torch.equal(cell.run(x)[0], output)


def test_gradients_are_equal_from_run_to_run_and_results_may_be_written_to(device, launched):
    cell = make().to(device)
    output, hidden, memory, active = cell.run(torch.randn(2, 1, 7, device=device))
    loss = output.sum() + hidden.sum() + memory.sum()
    for part in (output, hidden, memory, active):
        part.detach().zero_()
    one, two = (
        torch.autograd.grad(loss, list(cell.parameters()), retain_graph=True) for _ in range(2)
    )
    assert launched
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    upstream = torch.ones_like(output).transpose(0, 2).contiguous().transpose(0, 2)
    apart = torch.autograd.grad(output, list(cell.parameters()), upstream, retain_graph=True)
    dense = torch.autograd.grad(output.sum(), list(cell.parameters()))
    assert_close(apart, dense)


def test_other_forms_and_types_take_the_plain_path(device, launched):
    x = torch.randn(2, 3, 7, device=device)
    for cell in (make(variant="across"), make(variant=Variant(input_slots=2)), make().double()):
        cell.to(device).run(x.to(cell.query.dtype))
    assert not launched


def test_kernels_that_differ_are_not_used(device, launched, monkeypatch, caplog):
    def wrong(*_):
        yield torch.ones(2), torch.zeros(2)

    monkeypatch.setattr(triton_check, "guard", TritonGuard("RIMs", wrong))
    cell = make()
    for _ in range(2):
        assert_close(run(cell, device, torch.float32), run(cell, device, F64))
    assert not launched
    assert len(caplog.records) == 1


def test_a_failed_launch_means_the_plain_path(device, launched, monkeypatch, caplog):
    monkeypatch.setattr(triton_loop, "launch", lambda *_, **__: 1 / 0)
    cell = make()
    for _ in range(2):
        assert_close(run(cell, device, torch.float32), run(cell, device, F64))
    where = "cpu" if device == "cpu" else "cuda:0"
    assert [record.message for record in caplog.records] == [
        f"slower on {where} without the Triton RIMs: division by zero"
    ]


@pytest.mark.parametrize(("kind", "good"), [("lstm", 0), ("gru", 4)])
def test_a_failed_launch_in_the_backward_means_the_plain_path(
    device, launched, kind, good, monkeypatch, caplog
):
    """After the launches of the forward and `good` more."""
    note, forward = triton_loop.launch, 1 + 3 * 3

    def fail(name, *args, **constants):
        if len(launched) >= forward + good:
            raise RuntimeError("out of resource: shared memory")
        note(name, *args, **constants)

    monkeypatch.setattr(triton_loop, "launch", fail)
    cell = make(kind, rim_dropout=0.3)
    assert_close(run(cell, device, torch.float32), run(cell, device, F64))
    assert len(launched) == forward + good
    assert len(caplog.records) == 1
    assert "slower" in caplog.text


def test_shapes_that_do_not_fit_are_refused(device, launched):
    cell = make().to(device)
    weights, sequence = cell._prepare(torch.randn(2, 3, 7, device=device))
    states = torch.randn(2, 5, 3, 3, device=device)
    with pytest.raises(ValueError, match="hidden"):
        unroll(cell._spec(), weights, sequence, states[0, :, :1], states[1])
    assert not launched


@pytest.mark.parametrize("kind", ["gru"])
def test_the_check_passes(device, kind, caplog, monkeypatch):
    monkeypatch.setattr(triton_check, "guard", TritonGuard("RIMs", triton_check._check))
    with torch.no_grad():
        make(kind).to(device).run(torch.randn(1, 1, 7, device=device))
    assert list(triton_check.guard._verdicts.values()) == [True]
    assert not caplog.records


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("maps", [1, 4])
def test_products_of_all_at_once_are_those_of_pieces(slots, dropped, maps):
    generator = torch.Generator().manual_seed(slots)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=F64)

    n, steps, batch, features, size = 4, 11, 3, 2, 5
    weights = StepWeights(
        normal(features, n, 15), normal(n, size, 15), normal(n, 1, 15), normal(n, 1, 15),
        normal(n, 1, size), project=normal(n, size, 6), output=normal(maps, 4, size),
        output_bias=normal(1, 1, size),
    )  # fmt: skip
    keep = normal(n, steps, batch, features) > 0 if dropped else None
    sequence = SequenceInputs(normal(steps, batch, slots * features), keep)
    rows = steps * batch
    block = StepBlock(
        hidden=normal(n, rows, size), gates=normal(n, rows, 15), product=normal(n, rows, 15),
        active=None, gate=normal(n, rows, slots), shown=normal(n, rows, size),
        project=normal(n, rows, 6), read=normal(n, rows, 4), output=normal(n, rows, size),
    )  # fmt: skip
    results = []
    for at_once in (True, False):
        products = Products(weights, sequence, at_once=at_once)
        products.multiply(slice(0, steps), block)
        results.append([*products.weights, products.sequence.value])
    for actual, wanted in zip(*results, strict=True):
        torch.testing.assert_close(actual, wanted)
    if dropped and slots == 1:
        wanted = sequence.drive(weights.input)
        torch.testing.assert_close(drive_at_once(sequence.value, keep, weights.input), wanted)


@pytest.mark.gpu
def test_captured_as_a_cuda_graph_with_dropout():
    torch.manual_seed(0)
    rims = RIM_LSTM(24, 60, 6, 4).cuda()
    x = torch.randn(5, 3, 24, device="cuda", requires_grad=True)
    leaves = [x, *rims.parameters()]

    def step() -> list[Tensor]:
        loss = rims(x)[0].square().mean()
        return [loss, *torch.autograd.grad(loss, leaves)]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = step()
    for tensor in captured:
        tensor.zero_()
    torch.manual_seed(7)
    graph.replay()
    torch.cuda.synchronize()
    ours = [part.clone() for part in captured]
    torch.manual_seed(7)
    expected = step()
    assert_close(ours, expected)
