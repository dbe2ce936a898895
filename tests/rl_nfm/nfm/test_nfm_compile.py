"""`torch.compile` takes NFM in one graph and computes the same."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rl_nfm.encoders import make_encoder
from rl_nfm.nfm import NeuralFunctionModule, NFMConfig, NFMWrapper, kernels
from rl_nfm.nfm.places import Place

PATHS = [
    pytest.param(
        True, marks=pytest.mark.skipif(not kernels.available(), reason="no compiler"), id="kernels"
    ),
    pytest.param(False, marks=pytest.mark.slow, id="plain"),
]


def make_net(use_kernels: bool, **options: Any) -> NeuralFunctionModule:
    torch.manual_seed(0)
    lists = [
        [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=3, padding=1)] for _ in range(2)
    ]
    config = NFMConfig(key_size=3, value_size=3, heads=2, top_k=2, **options)
    net = NeuralFunctionModule(lists, channels=(4, 6), config=config)
    prepare(net, use_kernels)
    return net


def prepare(net: nn.Module, use_kernels: bool) -> None:
    for place in net.modules():
        if isinstance(place, Place):
            place.use_kernels = use_kernels
            if hasattr(place, "gamma"):
                nn.init.constant_(place.gamma, 0.7)


def results(run: Any, net: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and gradients of all parameters."""
    y = run(x)
    loss = y.float().square().sum()
    grads = torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True)
    return [y, *grads]


def assert_same(net: nn.Module, x: Tensor, *, backend: str, tolerance: float = 1e-4) -> None:
    eager = results(net, net, x)
    torch.compiler.reset()
    compiled = results(torch.compile(net, fullgraph=True, backend=backend), net, x)
    for expected, actual in zip(eager, compiled, strict=True):
        assert (actual - expected).norm() <= tolerance * expected.norm() + 1e-6


@pytest.mark.parametrize(
    ("use_kernels", "options"),
    [
        (True, {}),
        (True, {"kv_owner": "reader", "cat_input": True}),
        (False, {"read_passes": "all", "null_slot": False, "top_k_mode": "dense"}),
        (False, {"top_k_mode": "sab", "rescale": "nearest", "out_kernel": 3, "out_norm": "group"}),
    ],
)
def test_one_graph_forward_and_backward(use_kernels, options):
    if use_kernels and not kernels.available():
        pytest.skip("no C++ compiler")
    assert_same(make_net(use_kernels, **options), torch.randn(2, 3, 10, 8), backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("use_kernels", PATHS)
def test_inductor(use_kernels):
    """Sizes that do not divide one another, up and down: 10x8 and 4x3."""
    assert_same(make_net(use_kernels), torch.randn(2, 3, 10, 8), backend="inductor")


def test_hooks_are_in_the_graph():
    mlp = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
    x = torch.randn(4, 5)
    net = NFMWrapper(mlp, ["1", "3"], example=x)
    prepare(net, kernels.available())
    assert_same(net, x, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("use_kernels", PATHS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_encoder_with_inductor(use_kernels, dtype):
    torch.manual_seed(0)
    encoder = make_encoder("nfm", width=8, depth=10, nfm={"key_size": 8, "value_size": 8})
    prepare(encoder, use_kernels)
    encoder = encoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    obs = torch.randint(0, 256, (1, 3, 4, 84, 84), dtype=torch.uint8)
    torch.compiler.reset()
    compiled = torch.compile(encoder, fullgraph=True)
    found = []
    for net in (encoder, compiled):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            features, _ = net(obs)
        grads = torch.autograd.grad(features.float().square().mean(), encoder.parameters())
        found.append(torch.cat([features.flatten(), *(g.flatten() for g in grads)]).float())
    tolerance = 1e-3 if dtype == "fp32" else 0.1
    assert (found[1] - found[0]).norm() <= tolerance * found[0].norm()
