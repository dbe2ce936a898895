"""What a user puts in a layer's place is called, whatever its type, and gives what it should."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from rl_nfm.nfm import NeuralFunctionModule, NFMConfig
from rl_nfm.nfm.places import Place
from rl_nfm.support.modules import is_untouched


class Adapter(nn.Module):
    """A low-rank addition to a linear layer, which starts as none."""

    def __init__(self, inner: nn.Linear):
        super().__init__()
        self.inner = inner
        self.down = nn.Parameter(torch.randn(2, inner.in_features))
        self.up = nn.Parameter(torch.zeros(inner.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x @ self.down.t() @ self.up.t()


class SubclassAdapter(nn.Linear):
    """The same as a kind of `nn.Linear`, as some libraries have it."""

    @classmethod
    def of(cls, inner: nn.Linear) -> "SubclassAdapter":
        new = cls(inner.in_features, inner.out_features)
        new.load_state_dict(inner.state_dict())
        new.up = nn.Parameter(torch.zeros(inner.out_features, 2))
        return new

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input[..., :2] @ self.up.t()


def make(sizes: tuple[int, int] = (2, 2), **options) -> tuple[NeuralFunctionModule, Tensor]:
    """4 channels at 2 x 2 positions: rows and maps have one shape, so a mix-up would not raise."""
    torch.manual_seed(0)
    config = NFMConfig(key_size=2, value_size=2, heads=2, top_k=2, **options)
    lists = [[nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)] for _ in range(2)]
    net = NeuralFunctionModule(lists, channels=(4, 4), config=config).eval()
    for place in net.modules():
        if isinstance(place, Place) and hasattr(place, "gamma"):
            nn.init.constant_(place.gamma, 0.7)
    return net, torch.randn(3, 4, *sizes)


def replace(net: nn.Module, kind: type[nn.Module], by: Callable[[nn.Module], nn.Module]) -> int:
    """Put `by(layer)` in the place of all layers of one kind; how many there were."""
    found = [
        (parent, name)
        for parent in net.modules()
        for name, layer in parent.named_children()
        if type(layer) is kind
    ]
    for parent, name in found:
        setattr(parent, name, by(getattr(parent, name)))
    return len(found)


FORMS = [{}, {"out_norm": "group"}, {"out_norm": "batch", "cat_input": True}, {"out_layers": 1}]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", [(2, 2), (3, 5)])
@pytest.mark.parametrize("adapter", [Adapter, SubclassAdapter.of])
def test_adapters_around_linear_layers(form, sizes, adapter):
    net, x = make(sizes, **form)
    wanted = net(x)
    assert replace(net, nn.Linear, adapter) >= 4
    torch.testing.assert_close(net(x), wanted)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("up"):
                parameter.normal_()
    assert not torch.allclose(net(x), wanted, atol=1e-2)
    net(x).sum().backward()
    used = [p.grad for name, p in net.named_parameters() if name.endswith("up")]
    assert sum(g is not None and bool(g.any()) for g in used) >= 3


@pytest.mark.parametrize("kind", [nn.ReLU, nn.Conv2d])
def test_wrapped_layers_of_other_kinds(kind):
    net, x = make((2, 2), out_kernel=3, out_norm="group")
    wanted = net(x)
    assert replace(net, kind, nn.Sequential)
    torch.testing.assert_close(net(x), wanted)


def test_another_activation_is_used():
    net, x = make((2, 2), out_norm="group")
    twin = copy.deepcopy(net)
    assert replace(net, nn.ReLU, lambda _: nn.LeakyReLU(1.0)) == 2
    assert replace(twin, nn.ReLU, lambda _: nn.Identity()) == 2
    torch.testing.assert_close(net(x), twin(x))


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: parametrizations.weight_norm(layer),
        lambda layer: parametrize.register_parametrization(layer, "weight", nn.Identity()),
        lambda layer: prune.identity(layer, "weight"),
    ],
)
def test_parametrised_weights(change):
    net, x = make((2, 2))
    wanted = net(x)
    replace(net, nn.Linear, change)
    torch.testing.assert_close(net(x), wanted)
    net(x).sum().backward()


def test_a_forward_of_ones_own_is_called():
    net, x = make((2, 2))
    calls = []
    for layer in [layer for layer in net.modules() if type(layer) is nn.Linear]:
        forward = layer.forward
        layer.forward = lambda x, forward=forward: (calls.append(1), forward(x))[1]
    net(x)
    assert len(calls) == 8  # a projection in each of four places, two maps in each of two readers


def test_hooks_of_all_four_kinds_count():
    for name in (
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ):
        layer = nn.Linear(2, 2)
        assert is_untouched(layer, nn.Linear, nn.Conv2d)
        getattr(layer, name)(lambda *_: None)
        assert not is_untouched(layer, nn.Linear)
    assert not is_untouched(SubclassAdapter(2, 2), nn.Linear)


def test_hooks_on_all_modules_see_the_layers():
    net = NeuralFunctionModule([nn.Linear(3, 3), nn.Linear(3, 3)], channels=[3, 3], rank=0)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda *args: seen.append(args[0]))
    try:
        net(torch.randn(2, 3))
    finally:
        handle.remove()
    assert all(place.project in seen for place in net.places.places)
