"""NFM over networks that are no lists, by the names of their submodules."""

import copy
import importlib
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rl_nfm.nfm import NeuralFunctionModule, NFMConfig, NFMWrapper, record_attention

SMALL: dict[str, Any] = {"key_size": 3, "value_size": 3, "heads": 2}


def open_gates(net: nn.Module) -> None:
    for name, parameter in net.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.7)


def make_mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4), nn.Linear(4, 2)
    )


@pytest.mark.parametrize("share", [False, True])
def test_a_sequential_by_name_equals_its_list(share):
    """Naming the layers of an MLP is wrapping the list of them."""
    mlp, x = make_mlp(), torch.randn(7, 5)
    config = NFMConfig(**SMALL, share_passes=share)
    named = NFMWrapper(mlp, ["1", "3", "4"], example=x, config=config)
    layers = [nn.Sequential(mlp[0], mlp[1]), nn.Sequential(mlp[2], mlp[3]), mlp[4]]
    listed = NeuralFunctionModule(layers, channels=(8, 8, 4), config=config, rank=0)
    torch.manual_seed(1)
    open_gates(named)
    listed.places.load_state_dict(named.places.state_dict())
    torch.testing.assert_close(named(x), mlp[5](listed(x)))
    assert named.names == ["1", "3", "4"]


def test_at_the_start_the_network_is_itself():
    mlp, x = make_mlp(), torch.randn(7, 5)
    expected = mlp(x)
    assert torch.equal(NFMWrapper(mlp, ["1", "3"], example=x)(x), expected)
    # On its own the network knows no memory.
    assert torch.equal(mlp(x), expected)


class Branches(nn.Module):
    """A skip, a branch that is named before it runs, and a head on vectors."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.side = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.main = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        h = self.main(x).tanh()
        return self.head(self.side(h + self.main.bias.mean()).relu().mean((2, 3)))


def test_places_run_in_the_networks_order_and_mix_ranks():
    """Maps and a vector share a memory: the vector reads every pixel, maps read the vector."""
    x = torch.randn(2, 3, 6, 4)
    net = NFMWrapper(Branches(), ["head", "side", "main"], example=x, config=NFMConfig(**SMALL))
    assert net.names == ["main", "side", "head"]
    open_gates(net)
    with record_attention(net) as record:
        assert net(x).shape == (2, 3)
    # Of each pass 6 * 4 pixels of main, 3 * 2 of side and the vector itself, and null.
    assert len(record.readers[1, 2].slots) == 2 * (24 + 6 + 1) + 1
    # main in both passes, side and head of the first, and null
    assert record.readers[1, 0].weights.shape == (2, 6, 4, 2, 5)
    net(x).sum().backward()
    grads = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert {
        "passes.0.head.weight",
        "passes.1.head.weight",
        "places.places.0.project.weight",
    } <= grads


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (lambda i, o: nn.Conv1d(i, o, 3, stride=2, padding=1), (11,)),
        (lambda i, o: nn.Conv2d(i, o, 3, stride=2, padding=1), (7, 9)),
        (lambda i, o: nn.Conv3d(i, o, 3, stride=2, padding=1), (5, 4, 6)),
    ],
)
@pytest.mark.parametrize("options", [{}, {"out_kernel": 3, "out_norm": "batch"}])
def test_states_of_one_to_three_dimensions(layer, size, options):
    x = torch.randn(3, 2, *size)
    net = nn.Sequential(layer(2, 4), nn.Tanh(), layer(4, 6))
    wrapped = NFMWrapper(net, ["0", "2"], example=x, config=NFMConfig(**SMALL, **options))
    open_gates(wrapped)
    y = wrapped(x)
    assert y.shape == net(x).shape
    assert not torch.allclose(y, net(x))
    y.square().sum().backward()
    assert all(p.grad is not None for p in wrapped.places.parameters())


def test_tokens_with_channels_last():
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in "ab"]
    tokens = torch.randn(3, 5, 8)
    net = NFMWrapper(
        nn.Sequential(*layers),
        ["0", "1"],
        example=tokens,
        channel_dim=-1,
        config=NFMConfig(**SMALL),
    )
    open_gates(net)
    changed = tokens.clone()
    changed[1] += 1
    # Samples stay apart: dimension 0 is the batch, 1 the positions.
    differs = (net(changed) != net(tokens)).flatten(1).any(1)
    assert differs.tolist() == [False, True, False]


def test_copies_have_hooks_of_their_own():
    x = torch.randn(4, 5)
    net = NFMWrapper(make_mlp(), ["1", "3"], example=x, config=NFMConfig(**SMALL))
    open_gates(net)
    before = net(x)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)
    assert torch.equal(twin(x), before)
    assert not torch.allclose(net(x), before)


def test_wrapping_keeps_training_flags():
    mlp = make_mlp()
    mlp[1].eval()
    NFMWrapper(mlp, ["1"], example=torch.randn(2, 5))
    assert mlp[0].training
    assert not mlp[1].training


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3)
        self.pair = nn.LSTM(3, 3)

    def forward(self, x):
        return self.pair(self.layer(self.layer(x)))[0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["layr"], "'layr' is no submodule of Twice; near: layer"),
        (["layer"], "'layer' ran 2 times"),
        (["unused"], "'unused' ran 0 times"),
        (["pair"], "'pair' gives tuple"),
        ([], "at least one"),
        (["unused", "unused"], "each once"),
    ],
)
def test_bad_names_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        NFMWrapper(Twice(), names, example=torch.randn(2, 3))


def test_bad_channel_dim_is_refused():
    with pytest.raises(ValueError, match="channel_dim: 0"):
        NFMWrapper(make_mlp(), ["1"], example=torch.randn(2, 5), channel_dim=0)


def import_timm():
    """The timm package; it needs torchvision, whose wheel fails to import beside a CPU-only torch.

    There its compiled operators are missing. timm's networks use none, so declaring the two that
    torchvision describes at import is enough.
    """
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("timm needs torchvision")
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for operator in ("nms", "qnms"):
            OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
    return importlib.import_module("timm")


OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


@pytest.mark.parametrize(
    ("name", "places", "channel_dim"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"], 1),
        ("vit_tiny_patch16_224", ["blocks.2", "blocks.5", "blocks.11"], -1),
    ],
)
def test_timm_models(name, places, channel_dim):
    timm = import_timm()
    torch.manual_seed(0)
    options = {"img_size": 64} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=7, **options).eval()
    x = torch.randn(2, 3, 64, 64)
    net = NFMWrapper(model, places, example=x, channel_dim=channel_dim).eval()
    before = net(x)
    assert torch.equal(before, model(x))
    open_gates(net)
    assert not torch.allclose(net(x), before)
    net(x).sum().backward()
    assert all(p.grad is not None for p in net.places.parameters())


def test_readme_snippets():
    """The two examples of the README, as they stand there."""
    # A list of layers
    from rl_nfm.nfm import NeuralFunctionModule, NFMConfig

    layers = [
        nn.Sequential(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()),
    ]
    net = NeuralFunctionModule(layers, channels=(32, 64), config=NFMConfig(passes=2, top_k=4))
    features = net(torch.rand(8, 3, 84, 84))  # [8, 64, 21, 21]
    assert features.shape == (8, 64, 21, 21)

    # Any network, by the names of its submodules
    from rl_nfm.nfm import NFMWrapper, record_attention

    mlp = nn.Sequential(
        nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    )
    net = NFMWrapper(mlp, ["1", "3"], example=torch.rand(1, 10))
    with record_attention(net) as record:
        net(torch.rand(8, 10))
    for reader in record.readers.values():
        print(reader.sources, reader.top_k_frequency())
    assert list(record.readers) == [(1, 0), (1, 1)]


def test_a_replica_runs_with_its_own_weights():
    """As `nn.DataParallel` makes them: hooks are those of the original."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
    wrapper = NFMWrapper(model, ["0", "2"], example=torch.zeros(1, 6))
    with torch.no_grad():
        for parameter in wrapper.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    other = copy.deepcopy(wrapper)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    originals, replicas = [*wrapper.modules()], {}
    for module in originals:
        replicas[module] = module._replicate_for_data_parallel()
    values = dict(zip(wrapper.parameters(), other.parameters(), strict=True))
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            replica._modules[name] = replicas[child]
        for name, parameter in module._parameters.items():
            if parameter is not None:
                setattr(replica, name, values[parameter])
    x = torch.randn(5, 6)
    torch.testing.assert_close(replicas[wrapper](x), other(x))
    assert not torch.allclose(wrapper(x), other(x))


def test_threads_do_not_share_a_forward():
    torch.manual_seed(0)
    net = NFMWrapper(
        nn.Sequential(*(nn.Linear(6, 6) for _ in range(4))), ["0", "2"], example=torch.rand(1, 6)
    ).eval()
    inputs = [torch.randn(n, 6) for n in (1, 2, 3, 4) * 20]
    with torch.no_grad():
        alone = [net(x) for x in inputs]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(torch.no_grad()(net), inputs))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other)


def test_a_failed_forward_leaves_nothing_behind():
    net = NFMWrapper(
        nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), ["0"], example=torch.rand(1, 6)
    )
    with pytest.raises(RuntimeError):
        net(torch.randn(2, 5))
    x = torch.randn(2, 6)
    assert torch.equal(copy.deepcopy(net)(x), net(x))
    assert net.passes[1](x).shape == (2, 6)  # on its own, without NFM


def vgg_style(inplace: bool) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=inplace), nn.Conv2d(8, 8, 3, padding=1)
    )


@pytest.mark.parametrize("kv_owner", ["source", "reader"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("grad", [True, False])
def test_what_comes_after_a_place_may_work_in_place(kv_owner, layout, grad):
    """The earlier pass only writes; its memory must not be what the ReLU overwrites."""
    config = NFMConfig(initial_gamma=0.5, kv_owner=kv_owner)
    x = torch.randn(2, 3, 8, 8).to(memory_format=layout)
    found = []
    for inplace in (False, True):
        example = torch.zeros(1, 3, 8, 8)
        model = NFMWrapper(vgg_style(inplace), ["0", "2"], example=example, config=config)
        torch.manual_seed(1)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        model = model.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        with torch.set_grad_enabled(grad):
            y = model(x)
        if grad:
            y.square().sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([y.detach(), *grads])
    assert (len(found[0]) > 1) == grad
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_a_part_that_holds_a_place_is_refused(use_reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            h = self.first(x)
            return checkpoint(self.second, h, use_reentrant=use_reentrant)

    model = NFMWrapper(Checkpointed(), ["first", "second"], example=torch.zeros(1, 4))
    loss = model(torch.randn(2, 4, requires_grad=True)).sum()
    with pytest.raises(RuntimeError, match="'second' runs again inside a backward pass"):
        loss.backward()


def test_the_whole_wrapper_may_be_checkpointed():
    torch.manual_seed(0)
    model = NFMWrapper(
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
        ["0", "2"],
        example=torch.zeros(1, 4),
        config=NFMConfig(initial_gamma=0.5),
    )
    x, grads = torch.randn(2, 4), []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        model.zero_grad()
        run(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(grads[1], grads[0], atol=0, rtol=0)
