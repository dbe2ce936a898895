"""The CPU kernels of the RIM steps, against the same steps in plain PyTorch."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rl_nfm.rims import RIM_GRU, RIM_LSTM, VARIANTS, RIMGRUCell, RIMLSTMCell, kernels
from rl_nfm.rims.products import SequenceInputs
from rl_nfm.rims.step import StepSpec, StepWeights
from rl_nfm.rims.unroll import unroll
from rl_nfm.support import cpp

CELLS = {"lstm": RIMLSTMCell, "gru": RIMGRUCell}
F64 = torch.float64


@pytest.fixture(autouse=True)
def _built():
    if not kernels.supports(torch.zeros(1)):
        pytest.skip("no C++ compiler")


def make(kind: str = "lstm", form: str = "official", dtype=F64, rim_dropout=0.0):
    torch.manual_seed(0)
    cell = CELLS[kind](7, 35, 5, 3, variant=form, rim_dropout=rim_dropout, dtype=dtype)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.normal_(std=0.4 if dtype == F64 else 0.15)  # rounding must not grow
    return cell


def run(cell, steps: int = 11, batch: int = 3, masks: bool = True, seed: int = 1) -> list[Tensor]:
    """Outputs, last states, which were active, and the gradients of all that has one."""
    torch.manual_seed(seed)
    dtype, count = cell.query.dtype, 2 if cell.kind == "lstm" else 1
    x = torch.randn(steps, batch, 7, dtype=dtype, requires_grad=True)
    state = [torch.randn(batch, 35, dtype=dtype, requires_grad=True) for _ in range(count)]
    reset = torch.rand(steps, batch) < 0.3 if masks else None
    valid = torch.rand(steps, batch) < 0.7 if masks else None
    *results, active = cell.run(x, *state, reset=reset, valid=valid)
    results = [part for part in results if part is not None]
    loss = sum((torch.randn_like(part) * part).sum() for part in results)
    inputs = [x, *state, *cell.parameters()]
    return [*results, active, *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("form", sorted(VARIANTS))
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("rim_dropout", [0.0, 0.3])
def test_kernels_equal_the_plain_path(kind, form, dtype, rim_dropout, monkeypatch):
    cell = make(kind, form, dtype, rim_dropout)
    fused = run(cell)
    monkeypatch.setattr(kernels, "supports", lambda *_: False)
    plain = run(cell)
    for actual, wanted in zip(fused, plain, strict=True):
        if dtype == F64:
            torch.testing.assert_close(actual, wanted)
        else:
            assert (actual.float() - wanted.float()).norm() <= 2e-5 * wanted.float().norm()


@pytest.mark.parametrize("steps", [1, 8, 9])
@pytest.mark.parametrize("masks", [False, True])
def test_any_number_of_steps_with_and_without_masks(steps, masks, monkeypatch):
    cell = make()
    fused = run(cell, steps, masks=masks)
    monkeypatch.setattr(kernels, "supports", lambda *_: False)
    for actual, wanted in zip(fused, run(cell, steps, masks=masks), strict=True):
        torch.testing.assert_close(actual, wanted)


def test_without_gradients_nothing_is_kept_and_the_result_is_the_same():
    cell = make()
    x, hidden, memory = torch.randn(9, 3, 7, dtype=F64), *torch.randn(2, 3, 35, dtype=F64)
    with_gradients = cell.run(x, hidden, memory)
    with torch.no_grad():
        without = cell.run(x, hidden, memory)
    for actual, wanted in zip(without, with_gradients, strict=True):
        assert torch.equal(actual, wanted)


def test_results_do_not_depend_on_threads():
    cell, before, results = make(), torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(run(cell, batch=64))  # 64 * 35 numbers: enough to be shared
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        torch.testing.assert_close(one, three, rtol=1e-12, atol=1e-12)


def plain_lstm(
    drive: Tensor, valid: Tensor | None = None
) -> tuple[StepSpec, StepWeights, SequenceInputs, Tensor, Tensor]:
    """An LSTM of one number, whose gates are `drive` [T, B, 4]: arguments of `unroll`."""
    dtype, zeros = drive.dtype, torch.zeros(1, drive.shape[1], 1, dtype=drive.dtype)
    weights = StepWeights(
        input=torch.eye(4, dtype=dtype).unsqueeze(1),
        hidden=torch.zeros(1, 1, 4, dtype=dtype),
        base=torch.zeros(1, 1, 4, dtype=dtype),
    )
    return (
        StepSpec(cell="lstm", num_active=1),
        weights,
        SequenceInputs(drive, valid=valid),
        zeros,
        zeros,
    )


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_nonlinearities_at_every_scale(fused, dtype, monkeypatch):
    """In units of the last place; of PyTorch's own, tanh has 0.5 and sigmoid 1.2 of them."""
    if not fused:
        monkeypatch.setattr(kernels, "supports", lambda *_: False)
    size = torch.cat((torch.logspace(-36, 2, 20001), torch.linspace(0.01, 20, 20001))).to(dtype)
    x = torch.cat((-size, size))
    high = torch.full_like(x, 60)  # opens a gate fully
    args = plain_lstm(torch.stack((high, high, x, high), -1).unsqueeze(0))
    assert last_places(unroll(*args).cell, x.double().tanh()) < 2
    args = plain_lstm(torch.stack((high, high, x, high), -1).unsqueeze(0))
    assert last_places(unroll(*args).output, x.double().tanh().tanh()) < 3
    x = x[x > -87]
    high = torch.full_like(x, 60)
    args = plain_lstm(torch.stack((x, high, high, high), -1).unsqueeze(0))
    assert last_places(unroll(*args).cell, x.double().sigmoid()) < 2


def last_places(actual: Tensor, wanted: Tensor) -> float:
    """Largest error in units of the last place of `actual`'s type."""
    error = (actual.flatten().double() - wanted).abs() / wanted.abs()
    return error.max().item() / torch.finfo(actual.dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e-5])
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # what to leave out also sets Intel GPUs
def test_half_precision_is_as_good_as_that_of_pytorch(dtype, scale, kind):
    """Relative error against float64: twice that of nn.LSTM or nn.GRU at most.

    Without oneDNN, whose LSTM keeps its state in float32 on processors with bf16 units.
    """

    def errors(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        exact = copy.deepcopy(net).double()
        with torch.no_grad():
            return net(x)[0].double() - exact(x.double())[0], exact(x.double())[0]

    found: dict[str, list[float]] = {"rims": [], "pytorch": []}
    for seed in range(4):
        torch.manual_seed(seed)
        x = (scale * torch.randn(20, 8, 30)).to(dtype)
        rims = {"lstm": RIM_LSTM, "gru": RIM_GRU}[kind](30, 60, 6, 4).to(dtype).eval()
        with torch.backends.mkldnn.flags(enabled=False):
            error, wanted = errors({"lstm": nn.LSTM, "gru": nn.GRU}[kind](30, 60).to(dtype), x)
        found["pytorch"].append(float(error.norm() / wanted.norm()))
        error, wanted = errors(rims, x)
        # Where rounding of the state has made a near tie go the other way, others are compared.
        chosen = (
            rims.run(x, None, None)[2],
            copy.deepcopy(rims).double().run(x.double(), None, None)[2],
        )
        same = (chosen[0] == chosen[1])[0].all(-1).cumprod(0).bool()
        assert same.float().mean() > 0.7
        found["rims"].append(float(error[same].norm() / wanted[same].norm()))
    assert sum(found["rims"]) <= 2 * sum(found["pytorch"])


def test_infinite_states_and_inputs_are_not_made_finite():
    """The exponential reaches 0 and infinity, and nan is not clamped away."""
    cell = make(dtype=torch.float32)
    x, hidden, memory = torch.randn(2, 4, 7), *torch.randn(2, 4, 35)
    x[0, 0, 0], hidden[1, 3], memory[2, 4] = torch.inf, torch.inf, -torch.inf
    results = [cell.run(x, hidden, memory)[0]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "supports", lambda *_: False)
        results.append(cell.run(x, hidden, memory)[0])
    assert torch.equal(results[0].isnan(), results[1].isnan())
    assert results[0][:, 3].isfinite().all()


def test_a_saturated_gate_has_no_gradient():
    cell = make(dtype=torch.float32)
    x = 1e20 * torch.randn(3, 4, 7)
    (grad,) = torch.autograd.grad(cell.run(x)[0].sum(), cell.key)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "supports", lambda *_: False)
        (plain,) = torch.autograd.grad(cell.run(x)[0].sum(), cell.key)
    torch.testing.assert_close(grad, plain)


def test_nan_is_passed_on():
    drive = torch.zeros(2, 3, 4)
    drive[0, 1, 2] = torch.nan
    output = unroll(*plain_lstm(drive)).output.flatten(1)
    assert output.isnan().tolist() == [[False, True, False]] * 2


def test_one_block_without_gate_keeps_its_state_where_not_valid():
    valid = torch.tensor([[True, False], [False, True]])
    result = unroll(*plain_lstm(torch.ones(2, 2, 4), valid))
    assert result.active.squeeze(-1).tolist() == valid.tolist()
    assert torch.equal(result.output[1, 0], result.output[0, 0])
    assert not result.output[0, 1].any()


def test_results_may_be_written_to():
    cell = make()
    x = torch.randn(3, 2, 7, dtype=F64)
    gradients = []
    for write in (False, True):
        output, hidden, memory, active = cell.run(x)
        loss = output.sum() + hidden.sum() + memory.sum()
        if write:
            for part in (output, hidden, memory, active):
                part.detach().zero_()
        gradients.append(torch.autograd.grad(loss, list(cell.parameters()), retain_graph=True))
        gradients.append(torch.autograd.grad(loss, list(cell.parameters())))  # a second time
    for others in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], others, strict=True))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("hidden", lambda weights, sequence, h, c: (weights, sequence, h[:, :1], c)),
        ("cell", lambda weights, sequence, h, c: (weights, sequence, h, c[..., :2])),
        ("key_query", lambda w, s, h, c: (w, s._replace(key_query=s.key_query[:, :1]), h, c)),
        ("reset", lambda w, s, h, c: (w, s._replace(reset=torch.zeros(1, 3).bool()), h, c)),
        ("weights.base", lambda w, s, h, c: (w._replace(base=w.base[..., :4]), s, h, c)),
        ("weights.output", lambda w, s, h, c: (w._replace(output=w.output[..., :9]), s, h, c)),
        ("weights.project", lambda w, s, h, c: (w._replace(project=w.project[:2]), s, h, c)),
        ("key_query", lambda w, s, h, c: (w, s._replace(key_query=None), h, c)),
        ("cell", lambda w, s, h, c: (w, s, h, None)),
        ("valid", lambda w, s, h, c: (w, s._replace(valid=torch.ones(2, 3, dtype=F64)), h, c)),
        ("dropout", lambda w, s, h, c: (w, s._replace(dropout=s.key_query > 0), h, c)),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, change):
    cell = make()
    weights, sequence = cell._prepare(torch.randn(2, 3, 7, dtype=F64))
    weights, sequence, *states = change(weights, sequence, *torch.randn(2, 5, 3, 7, dtype=F64))
    with pytest.raises(ValueError, match=name):
        unroll(cell._spec(), weights, sequence, *states)


@pytest.mark.parametrize("switch", ["RL_NFM_KERNELS=0", "CXX=/nonexistent/compiler"])
def test_without_a_compiler_the_plain_path_runs(switch, monkeypatch, caplog):
    cell = make()
    fused = run(cell)
    monkeypatch.setenv(*switch.split("="))
    cpp.library.cache_clear()
    try:
        assert not kernels.supports(torch.zeros(1))
        plain = run(cell)
    finally:
        cpp.library.cache_clear()
    for actual, wanted in zip(fused, plain, strict=True):
        torch.testing.assert_close(actual, wanted)
    assert ("slower" in caplog.text) == ("CXX" in switch)


def test_other_types_and_tensors_without_storage_take_the_plain_path():
    half = RIM_LSTM(7, 10, 5, 3, dtype=torch.bfloat16)
    assert half(torch.randn(2, 3, 7).bfloat16())[0].isfinite().all()
    with FakeTensorMode():
        output, _ = RIM_LSTM(7, 10, 5, 3)(torch.randn(2, 3, 7))
    assert output.shape == (2, 3, 10)


def test_buffers_lie_where_the_tensors_are_and_not_on_the_default_device():
    cell = make()
    x, states = torch.randn(2, 3, 7, dtype=F64), torch.randn(2, 3, 35, dtype=F64)
    wanted = cell.run(x, *states)[0]
    with torch.device("meta"):
        assert torch.equal(cell.run(x, *states)[0], wanted)


def test_gradients_of_tensors_that_lie_otherwise(monkeypatch):
    """Transposed inputs, upstream gradients with the negative bit, hooks that change the layout."""
    cell = make()
    weights, sequence = cell._prepare(torch.randn(4, 3, 7, dtype=F64))
    weights = StepWeights(*(None if w is None else w.detach() for w in weights))
    states = torch.randn(2, 5, 3, 7, dtype=F64)
    query = sequence.key_query.detach().transpose(-1, -2).contiguous().transpose(-1, -2)
    query.requires_grad_()
    upstream = torch._neg_view(torch.randn(4, 3, 5, 7, dtype=F64))

    def turn(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, -1).contiguous() if tensor.dim() > 1 else tensor.clone()

    def turn_back(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, -1) if tensor.dim() > 1 else tensor

    def run() -> Tensor:
        given = sequence._replace(value=sequence.value.detach(), key_query=query)
        with torch.autograd.graph.saved_tensors_hooks(turn, turn_back):
            output = unroll(cell._spec(), weights, given, *states).output
        return torch.autograd.grad(output, query, upstream)[0]

    fused = run()
    monkeypatch.setattr(kernels, "supports", lambda *_: False)
    torch.testing.assert_close(fused, run())


@pytest.mark.parametrize(("rims", "shape"), [(1, (4, 3, 7)), (5, (1, 1, 7))])
def test_which_were_active_may_be_written_to(rims, shape):
    output, _, _, active = RIMLSTMCell(7, 35, rims, 1).run(torch.randn(shape))
    active.zero_()
    output.sum().backward()
