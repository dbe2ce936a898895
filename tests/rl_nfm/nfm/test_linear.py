"""Linear layers with Triton beside their products, against float64: interpreted, or with -m gpu."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rl_nfm.nfm import linear
from rl_nfm.nfm.linear import run_linear
from rl_nfm.support.triton_guard import TritonGuard


@pytest.fixture
def device(device, monkeypatch) -> str:
    """Where kernels that are wrong or cannot be launched are used all the same."""
    guard = TritonGuard("linear layers", lambda *_: [])
    monkeypatch.setattr(guard, "give_up", lambda *_, error: pytest.fail(str(error)))
    monkeypatch.setattr(linear, "guard", guard)
    return device


def draw(*shape: int, seed: int) -> torch.Tensor:
    """Multiples of 1/4 that half precision holds, and whose sums over columns it holds too."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator) / 4


def make_layer(inputs: int, outputs: int, device: str, dtype=torch.float32) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, device=device, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(draw(outputs, inputs, seed=1))
        layer.bias.copy_(draw(outputs, seed=2) + 1 / 32)  # no result is 0
    return layer


def gradients(y, leaves, **options):
    grad = draw(*y.shape, seed=3).to(y)
    return [y, *torch.autograd.grad(y, leaves, grad, **options)]


def exact(layer, x, factor, relu):
    """Result and gradients in float64."""
    leaves = [t.detach().cpu().double().requires_grad_() for t in (x, *layer.parameters(), factor)]
    rows, weight, bias, f = leaves
    y = F.linear(rows, f * weight, f * bias)
    return gradients(F.relu(y) if relu else y, leaves)


@pytest.mark.parametrize(("programs", "tile"), [(2, 64), (999, 32)])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("shape", "outputs"), [((3, 7, 5), 9), ((70, 3), 1), ((2, 1, 40), 130), ((1, 1), 64)]
)
def test_result_and_gradients(device, shape, outputs, scaled, relu, programs, tile, monkeypatch):
    """Few programs take more rows than they hold at a time; of many, sums are added in turns."""
    monkeypatch.setattr(linear, "MOST_PROGRAMS", programs)
    monkeypatch.setattr(linear, "TILE", tile)
    monkeypatch.setattr(linear, "COLUMNS", 16)
    layer = make_layer(shape[-1], outputs, device)
    x = draw(*shape, seed=0).to(device).requires_grad_()
    factor = torch.tensor(0.75 if scaled else 1.0, device=device, requires_grad=True)
    y = run_linear(layer, x, relu=relu, factor=factor if scaled else None)
    leaves = [x, *layer.parameters(), *[factor] * scaled]
    for ours, plain in zip(gradients(y, leaves), exact(layer, x, factor, relu), strict=False):
        torch.testing.assert_close(ours.double().cpu(), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_float32_gradients_of_parameters(device, dtype):
    layer = make_layer(6, 5, device)
    x = draw(2000, 6, seed=0).to(device, dtype).requires_grad_()
    factor = torch.tensor(0.5, device=device, requires_grad=True)
    with torch.autocast(device, dtype):
        y = run_linear(layer, x, relu=True, factor=factor)
    assert y.dtype == dtype
    found = gradients(y, [x, *layer.parameters(), factor])
    wanted = exact(layer, x, factor, True)
    assert [t.dtype for t in found[1:]] == [dtype, *[torch.float32] * 3]
    for ours, plain in zip(found[:2], wanted[:2], strict=True):
        torch.testing.assert_close(ours.double().cpu(), plain, rtol=1e-2, atol=1e-2)
    # A sum of 2000 numbers in half precision would be off by 1e-3. Interpreted, the product is.
    assert (found[3].cpu().double() - wanted[3]).norm() <= 1e-6 * wanted[3].norm()
    assert (found[2].cpu().double() - wanted[2]).norm() <= 5e-3 * wanted[2].norm()


def test_parameters_in_half_precision_and_a_frozen_one(device):
    layer = make_layer(3, 4, device, torch.bfloat16)
    layer.weight.requires_grad_(False)
    x = draw(5, 3, seed=0).to(device, torch.bfloat16)
    y = run_linear(layer, x)
    (of_bias,) = torch.autograd.grad(y.float().sum(), layer.bias)
    assert of_bias.dtype == torch.bfloat16
    assert torch.equal(of_bias, torch.full_like(of_bias, 5))
    layer.bias.requires_grad_(False)
    assert not run_linear(layer, x).requires_grad
    (of_x,) = torch.autograd.grad(run_linear(layer, x.requires_grad_()).sum(), x)
    assert torch.equal(of_x, layer.weight.sum(0).expand(5, 3))


def test_no_rows_and_rows_that_do_not_lie_side_by_side(device):
    layer = make_layer(3, 4, device)
    x = torch.zeros(0, 2, 3, device=device, requires_grad=True)
    found = gradients(run_linear(layer, x, relu=True), [x, *layer.parameters()])
    assert found[0].shape == (0, 2, 4)
    assert not any(t.any() for t in found[1:])
    x = draw(3, 5, seed=0).to(device)
    assert torch.equal(run_linear(layer, x.t()), layer(x.t()))
    (expanded,) = torch.autograd.grad(run_linear(layer, x.t()).sum(), layer.bias)
    assert torch.equal(expanded, torch.full_like(expanded, 5))


def test_second_derivatives(device):
    layer = make_layer(3, 4, device).double().float()
    x = draw(6, 3, seed=0).to(device).requires_grad_()
    factor = torch.tensor(0.5, device=device, requires_grad=True)
    results = []
    for ours in (True, False):
        leaves = [x, *layer.parameters(), factor]
        y = run_linear(layer, x, relu=True, factor=factor)
        if not ours:
            y = F.relu(F.linear(x, factor * layer.weight, factor * layer.bias))
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = sum(g.square().sum() for g in first)
        results.append([*first, *torch.autograd.grad(second, leaves)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


def test_gradients_are_equal_from_run_to_run(device):
    layer = make_layer(7, 70, device)
    x = torch.randn(999, 7, device=device, requires_grad=True)
    factor = torch.tensor(0.3, device=device, requires_grad=True)
    y = run_linear(layer, x, relu=True, factor=factor)
    one, two = (
        torch.autograd.grad(y, [*layer.parameters(), factor], torch.ones_like(y), retain_graph=True)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_layers_that_are_watched_or_replaced_are_called(device):
    calls = []
    layer = make_layer(3, 4, device)
    layer.register_forward_hook(lambda *_: calls.append(1))
    x = draw(5, 3, seed=0).to(device)
    run_linear(layer, x, relu=True)
    run_linear(nn.Sequential(layer), x)
    assert len(calls) == 2
    assert run_linear(nn.Linear(3, 4, bias=False, device=device), x).shape == (5, 4)


def test_a_failed_launch_means_the_plain_path(device, monkeypatch, caplog):
    monkeypatch.setattr(linear, "guard", TritonGuard("linear layers", lambda *_: []))
    monkeypatch.setattr(linear, "launch", lambda *_, **__: 1 / 0)
    layer, x = make_layer(3, 4, device), draw(5, 3, seed=0).to(device)
    factor = torch.ones((), device=device)  # without it there is nothing to cast
    assert torch.equal(run_linear(layer, x, factor=factor), layer(x))
    where = "cpu" if device == "cpu" else "cuda:0"
    assert [record.message for record in caplog.records] == [
        f"slower on {where} without the Triton linear layers: division by zero"
    ]


def test_the_check_passes(device, caplog):
    guard = TritonGuard("linear layers", linear._check)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert guard.ready(torch.device(device), dtype)
    assert not caplog.records


def test_nothing_changes_on_a_cpu_without_the_switch(monkeypatch):
    monkeypatch.delenv("RL_NFM_KERNELS", raising=False)
    monkeypatch.setattr(linear, "_Linear", None)
    layer, x = make_layer(3, 4, "cpu"), draw(5, 3, seed=0)
    assert torch.equal(run_linear(layer, x, relu=True), F.relu(layer(x)))
