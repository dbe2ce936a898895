"""The CPU kernels of the RIM steps, against the same steps in plain PyTorch."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rl_nfm import cpp
from rl_nfm.rims import RIM_LSTM, VARIANTS, RIMGRUCell, RIMLSTMCell, kernels
from rl_nfm.rims.products import Sequence
from rl_nfm.rims.step import StepSpec, StepWeights
from rl_nfm.rims.unroll import unroll

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
            results.append(run(cell, batch=16))  # 16 * 35 * 5 numbers: worth threads
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        torch.testing.assert_close(one, three, rtol=1e-12, atol=1e-12)


def plain_lstm(
    drive: Tensor, valid: Tensor | None = None
) -> tuple[StepSpec, StepWeights, Sequence, Tensor, Tensor]:
    """An LSTM of one number, whose gates are `drive` [T, B, 4]: arguments of `unroll`."""
    dtype, zeros = drive.dtype, torch.zeros(1, drive.shape[1], 1, dtype=drive.dtype)
    weights = StepWeights(
        input=torch.eye(4, dtype=dtype).unsqueeze(1),
        hidden=torch.zeros(1, 1, 4, dtype=dtype),
        base=torch.zeros(1, 1, 4, dtype=dtype),
    )
    return StepSpec(cell="lstm", num_active=1), weights, Sequence(drive, valid=valid), zeros, zeros


def test_nonlinearities_over_the_whole_range():
    x = torch.cat((torch.linspace(-120, 120, 4001), torch.linspace(-2, 2, 4001)))
    x = torch.cat((x, torch.tensor([0.0, 1e-30, 1e30, -1e30])))
    wide, high = x.double(), torch.full_like(x, 50)
    args = plain_lstm(torch.stack((x, high, high, high), -1).unsqueeze(0))
    args[-1].fill_(0.25)  # what is forgotten not at all; the input gate is what is tested
    result = unroll(*args)
    cell = 0.25 + wide.sigmoid()
    assert (result.cell.flatten() - cell).abs().max() < 4e-7
    assert (result.output.flatten() - cell.tanh()).abs().max() < 4e-7
    args = plain_lstm(torch.stack((high, high, x, high), -1).unsqueeze(0))
    assert (unroll(*args).cell.flatten() - wide.tanh()).abs().max() < 4e-7


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
        ("are needed", lambda w, s, h, c: (w, s._replace(key_query=None), h, c)),
        ("are needed", lambda w, s, h, c: (w, s, h, None)),
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
    assert half(torch.randn(2, 3, 7))[0].isfinite().all()
    with FakeTensorMode():
        output, _ = RIM_LSTM(7, 10, 5, 3)(torch.randn(2, 3, 7))
    assert output.shape == (2, 3, 10)
