"""NFM and RIMs under whatever records, transforms or fakes operations, with kernels switched on.

Each result is compared with finite differences, or with plain calls at inputs other than those that
were recorded. Kernels read addresses: a graph with one in it would silently compute with the
recorded tensors.
"""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from rl_nfm.nfm import NeuralFunctionModule, NFMConfig
from rl_nfm.rims import RIMGRUCell, RIMLSTMCell
from rl_nfm.support.cpp import runs_eagerly

F64 = torch.float64
SHAPES = {"nfm": (2, 3, 6, 5), "lstm": (3, 2, 7), "gru": (3, 2, 7)}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "nfm":
        lists = [
            [nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 5, 3, stride=2)]
            for _ in range(2)
        ]
        config = NFMConfig(key_size=3, value_size=2, heads=2, top_k=2, read_passes="all")
        net: nn.Module = NeuralFunctionModule(lists, channels=(4, 4, 5), config=config).to(F64)
    else:
        cell = {"lstm": RIMLSTMCell, "gru": RIMGRUCell}[name]
        net = cell(7, 20, 5, 3, rim_dropout=0.0, dtype=F64)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.4)
    return net


def function_of(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return net if isinstance(net, NeuralFunctionModule) else Steps(net)


def slope(run: Callable[[Tensor], Tensor], x: Tensor, along: Tensor) -> Tensor:
    """Finite differences; the choice of the k highest does not change over so short a step."""
    with torch.no_grad():
        return (run(x + 1e-6 * along) - run(x - 1e-6 * along)) / 2e-6


@pytest.fixture(params=SHAPES)
def case(request) -> tuple[nn.Module, Callable[[Tensor], Tensor], Tensor, Tensor]:
    net = make(request.param)
    x, other = torch.randn(2, *SHAPES[request.param], dtype=F64)
    return net, function_of(net), x, other


@pytest.mark.parametrize("gradients", [False, True])
def test_forward_mode_derivatives(case, gradients):
    _, run, x, along = case
    with torch.set_grad_enabled(gradients), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(run(forward_ad.make_dual(x, along))).tangent
    assert tangent is not None
    torch.testing.assert_close(tangent, slope(run, x, along), rtol=1e-6, atol=1e-7)
    with torch.set_grad_enabled(gradients):
        tangent = torch.func.jvp(run, (x,), (along,))[1]
    torch.testing.assert_close(tangent, slope(run, x, along), rtol=1e-6, atol=1e-7)


def test_forward_mode_derivatives_by_parameters(case):
    net, _, x, _ = case
    parameters = dict(net.named_parameters())
    torch.manual_seed(1)
    along = {name: torch.randn_like(p) for name, p in parameters.items()}

    def run(changed: dict[str, Tensor]) -> Tensor:
        if isinstance(net, NeuralFunctionModule):
            return torch.func.functional_call(net, changed, (x,))
        return torch.func.functional_call(
            Steps(net), {f"cell.{k}": v for k, v in changed.items()}, x
        )

    with torch.no_grad():
        tangent = torch.func.jvp(run, (parameters,), (along,))[1]
        ahead, behind = (
            run({k: p + step * along[k] for k, p in parameters.items()}) for step in (1e-6, -1e-6)
        )
    torch.testing.assert_close(tangent, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-6)


class Steps(nn.Module):
    """All steps of a cell as a module's `forward`, as `functional_call` wants it."""

    def __init__(self, cell: nn.Module):
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        return self.cell.run(x)[0]  # pyright: ignore[reportCallIssue]


def test_gradients_by_transforms_equal_those_of_backward(case):
    net, run, x, _ = case
    wanted = torch.autograd.grad(run(x.requires_grad_()).square().sum(), x)[0]
    x = x.detach()
    got = torch.func.grad(lambda x: run(x).square().sum())(x)
    torch.testing.assert_close(got, wanted)
    net.requires_grad_(False)
    torch.testing.assert_close(torch.func.grad(lambda x: run(x).square().sum())(x), wanted)


def test_gradients_of_each_sample(case):
    net, _, x, other = case
    module = net if isinstance(net, NeuralFunctionModule) else Steps(net)
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, parameters, (x,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, torch.stack((x, other)))
    for n, sample in enumerate((x, other)):
        loss_of_one, of = module(sample).square().sum(), list(module.parameters())
        wanted = torch.autograd.grad(loss_of_one, of, materialize_grads=True)
        got = [each[name][n] for name, _ in module.named_parameters()]
        torch.testing.assert_close(got, list(wanted))


def test_vmap(case):
    _, run, x, other = case
    both = torch.func.vmap(run)(torch.stack((x, other)))
    torch.testing.assert_close(both, torch.stack((run(x), run(other))))


@pytest.mark.filterwarnings("ignore")  # tracing warns of what it cannot record
@pytest.mark.parametrize("gradients", [False, True])
def test_recorded_graphs_compute_with_what_they_are_given(case, gradients):
    _, run, x, other = case
    with torch.set_grad_enabled(gradients):
        wanted = run(other)
        traced: Any = torch.jit.trace(run, (x,), check_trace=False)
        torch.testing.assert_close(traced(other), wanted)
        torch.testing.assert_close(make_fx(run)(x)(other), wanted)
        graph = make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)(x)
        torch.testing.assert_close(graph(other), wanted)
        if not gradients:  # PyTorch cannot functionalise any autograd.Function
            functional = torch.func.functionalize(run)
            torch.testing.assert_close(make_fx(functional)(x)(other), wanted)


@pytest.mark.slow
def test_exported_programs_need_no_operator_of_ours():
    net = make("nfm")
    x, other = torch.randn(2, *SHAPES["nfm"], dtype=F64)
    program = torch.export.export(net, (x,))
    assert "rl_nfm" not in program.graph_module.code
    torch.testing.assert_close(program.module()(other), net(other))


def test_fake_tensors(case):
    net, run, x, _ = case
    shape = run(x).shape
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert run(mode.from_tensor(x)).shape == shape
    del net


class _Everything(TorchFunctionMode):
    """Sees each call of PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.called.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def test_a_mode_that_sees_each_call_sees_the_attention(case):
    net, run, x, _ = case
    wanted = run(x)
    with _Everything() as mode:
        torch.testing.assert_close(run(x), wanted)
    assert mode.called & {"einsum"} if isinstance(net, NeuralFunctionModule) else {"sigmoid"}


@pytest.mark.parametrize(
    "enter",
    [
        lambda: torch.device("meta"),
        lambda: torch.no_grad(),
        lambda: torch.autocast("cpu", torch.bfloat16),
        functools.partial(torch.autograd.graph.saved_tensors_hooks, lambda x: x, lambda x: x),
    ],
)
def test_what_neither_records_nor_transforms_does_not_count(enter):
    parameter, x = nn.Parameter(torch.ones(2)), torch.ones(2)
    with enter():
        assert runs_eagerly(parameter, x, None, parameter[:1])
    with forward_ad.dual_level():
        assert runs_eagerly(x)
        assert not runs_eagerly(x, forward_ad.make_dual(x, x))
    assert not runs_eagerly(torch.ones(2, device="meta"))
    assert not runs_eagerly(x.to_sparse())
