"""Group norm with ReLU: one pass in Triton beside PyTorch's in float64.

Without a GPU the kernels run in Triton's interpreter.
"""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from rl_nfm.backbones import norms
from rl_nfm.backbones.norms import FusedSequential, GroupNorm, norm_relu
from rl_nfm.backbones.resnet import PreActResNet, ResNetConfig
from rl_nfm.encoders import make_encoder
from rl_nfm.nfm.config import NFMConfig
from rl_nfm.nfm.output import OutBlock

kernels = pytest.importorskip("rl_nfm.backbones.norm_kernels", exc_type=ImportError)
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
pytestmark = [pytest.mark.gpu] if CUDA else []

SHAPES = [
    (12, 4, ()),
    (6, 2, (1,)),
    (20, 1, (3, 7)),
    (48, 3, (5, 5)),
    (32, 2, (9, 11)),
    (64, 4, (3, 3)),
    (10, 2, (2, 3, 5)),
]
"""Channels, groups, sizes."""


@pytest.fixture(autouse=True)
def use_kernels(monkeypatch):
    monkeypatch.setenv("RL_NFM_KERNELS", "triton")


@pytest.fixture
def plain(monkeypatch):
    """Switches the kernels off."""

    def switch() -> None:
        monkeypatch.setenv("RL_NFM_KERNELS", "0")

    return switch


@pytest.fixture
def in_pieces(monkeypatch):
    monkeypatch.setattr(kernels, "FORWARD_TILE", 256)
    monkeypatch.setattr(kernels, "BACKWARD_TILE", 128)


def make_norm(channels: int, groups: int, dtype: torch.dtype = torch.float32) -> GroupNorm:
    norm = GroupNorm(groups, channels, device=DEVICE, dtype=dtype)
    generator = torch.Generator().manual_seed(channels)
    for parameter in norm.parameters():
        parameter.data.copy_(torch.randn(channels, generator=generator))
    return norm


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Deviation 3 around 1, so that a wrong mean shows."""
    generator = torch.Generator().manual_seed(sum(shape))
    x = (3 * torch.randn(shape, generator=generator) + 1).to(DEVICE, dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def with_gradients(y: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    grad = torch.randn(y.shape, generator=generator).to(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def exact(norm: GroupNorm, x: Tensor, relu: bool) -> list[Tensor]:
    """PyTorch's in float64."""
    leaves = tuple(t.detach().double().requires_grad_() for t in (x, norm.weight, norm.bias))
    y = F.group_norm(leaves[0], norm.num_groups, leaves[1], leaves[2], norm.eps)
    return with_gradients(y.relu() if relu else y, leaves)


def relative(ours: Tensor, expected: Tensor) -> float:
    return float((ours.double() - expected.double()).norm() / expected.double().norm())


def launched(norm: GroupNorm, x: Tensor, relu: bool) -> list[Tensor]:
    """Values and gradients, certain to come from the kernels."""
    x = x.detach().requires_grad_()
    y = norm.run(x, relu=relu)
    assert "GroupNorm" not in type(y.grad_fn).__name__  # PyTorch's
    return with_gradients(y, (x, norm.weight, norm.bias))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("channels", "groups", "sizes"), SHAPES)
@pytest.mark.parametrize("pieces", [False, True])
def test_float64_agrees(channels, groups, sizes, relu, pieces, request):
    if pieces:
        request.getfixturevalue("in_pieces")
    norm, x = make_norm(channels, groups), draw(2, channels, *sizes)
    bound = (
        5e-5 if channels // groups * math.prod(sizes) < 4 else 2e-6
    )  # 3 numbers may be near equal
    for ours, expected in zip(launched(norm, x, relu), exact(norm, x, relu), strict=True):
        assert relative(ours, expected) < bound


@pytest.mark.parametrize("size", [42, 84])
def test_images_as_large_as_frames(size):
    """84x84x16 is more than stays in registers, with the sizes that the kernels really use."""
    norm, x = make_norm(32, 2), draw(1, 32, size, size)
    for ours, expected in zip(launched(norm, x, True), exact(norm, x, True), strict=True):
        assert relative(ours, expected) < 2e-6


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision_is_rounded_once(dtype, bound):
    norm, x = make_norm(48, 3), draw(2, 48, 5, 7, dtype=dtype)
    results = launched(norm, x, True)
    assert [r.dtype for r in results] == [dtype, dtype, torch.float32, torch.float32]
    for ours, expected in zip(results, exact(norm, x, True), strict=True):
        assert relative(ours, expected) < bound


def test_far_from_zero_the_deviation_stays_right(in_pieces):
    """A sum of squares less the square of the mean would have no digit left."""
    norm, x = make_norm(16, 2), draw(2, 16, 9, 9) / 100 + 1000
    assert relative(launched(norm, x, False)[0], exact(norm, x, False)[0]) < 3e-3


def test_type_and_layout_stay_under_autocast():
    norm, x = make_norm(32, 2), draw(2, 32, 5, 3, dtype=torch.bfloat16)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        y = norm_relu(norm, x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("relu", [False, True])
def test_channels_first_are_taken_too(relu):
    norm, x = make_norm(12, 3), draw(2, 12, 4, 5)
    first = x.contiguous()
    assert not first.is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(launched(norm, first, relu), launched(norm, x, relu), strict=True):
        assert torch.equal(a, b)


def test_half_precision_parameters():
    norm = make_norm(16, 1, torch.bfloat16)
    results = launched(norm, draw(2, 16, 3, 3, dtype=torch.bfloat16), True)
    assert {r.dtype for r in results} == {torch.bfloat16}


@pytest.mark.parametrize("relu", [False, True])
def test_nan_is_not_hidden(relu):
    norm, x = make_norm(8, 2), draw(2, 8, 3, 3)
    x[0, 1, 2, 2] = math.nan
    y = norm.run(x, relu=relu)
    assert y[0, :4].isnan().all()
    assert not y[0, 4:].isnan().any()
    assert not y[1].isnan().any()


def test_the_same_in_every_run(in_pieces):
    norm, x = make_norm(20, 2), draw(3, 20, 7, 6)
    for a, b in zip(launched(norm, x, True), launched(norm, x, True), strict=True):
        assert torch.equal(a, b)


def test_operators_are_registered_rightly():
    """Fake results, autograd and tracing as `torch.compile` and captures need them."""
    norm, rows = make_norm(12, 3), draw(2, 5, 12)
    args = (rows.requires_grad_(), norm.weight, norm.bias, 3, 1e-5, True)
    torch.library.opcheck(kernels.group_norm, args)
    with torch.no_grad():
        out, statistics = kernels.group_norm(*args)
    args = (out.detach(), rows, norm.weight, norm.bias, statistics, 3, 1e-5, True)
    torch.library.opcheck(kernels.group_norm_backward, args)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("trained", [(0, 1, 2), (0,), (1,), (2,), (1, 2)])
def test_second_and_third_derivatives(trained, relu):
    """Of gradients' norms, as penalties use them; beside PyTorch's group norm in float64."""
    norm, x = make_norm(6, 2), draw(2, 6, 3, 2)

    def derivatives(dtype: torch.dtype) -> list[Tensor]:
        x_, weight, bias = leaves = [t.detach().to(dtype) for t in (x, norm.weight, norm.bias)]
        wanted = [leaves[n].requires_grad_() for n in trained]
        if dtype == torch.float32:
            rows = x_.movedim(1, -1).flatten(1, -2).contiguous()
            y = kernels.group_norm(rows, weight, bias, 2, norm.eps, relu)[0]
        else:
            y = F.group_norm(x_, 2, weight, bias, norm.eps).movedim(1, -1).flatten(1, -2)
            y = y.relu() if relu else y
        found, size = [], y.sin().sum()
        for _ in range(3):
            grads = torch.autograd.grad(
                size, wanted, create_graph=True, allow_unused=True, materialize_grads=True
            )
            size = torch.stack([(g**2 * (g.detach() + 2).sin()).sum() for g in grads]).mean()
            found += grads
        return found

    for ours, expected in zip(derivatives(torch.float32), derivatives(torch.float64), strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-3, atol=1e-4)


def network() -> tuple[PreActResNet, Tensor]:
    torch.manual_seed(0)
    config = ResNetConfig(depth=10, width=8, stem="imagenet", norm="group")
    net = PreActResNet(config, in_channels=3).to(DEVICE, memory_format=torch.channels_last)  # pyright: ignore
    return net, draw(2, 3, 25, 30)


def test_residual_network(plain):
    net, x = network()
    ours = with_gradients(net(x), tuple(net.parameters()))
    plain()
    for a, b in zip(ours, with_gradients(net(x), tuple(net.parameters())), strict=True):
        assert relative(a, b) < 1e-4


def test_compiled_in_one_graph():
    net, x = next(network()[0].stages[1].children()), draw(2, 8, 5, 4)
    ours = with_gradients(net(x), tuple(net.parameters()))
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for a, b in zip(with_gradients(compiled(x), tuple(net.parameters())), ours, strict=True):
        assert relative(a, b) < 1e-5


@pytest.mark.parametrize("kernel", [1, 3])
def test_output_block_of_an_nfm_place(kernel, plain):
    torch.manual_seed(0)
    config = NFMConfig(heads=2, value_size=5, out_layers=2, out_norm="group", out_kernel=kernel)
    block = OutBlock(config, channels=48, rank=2).to(DEVICE)
    rows = draw(2, 4 * 3, 10).requires_grad_()
    leaves = (rows, *block.parameters())
    ours = with_gradients(block(rows, (4, 3)), leaves)
    plain()
    for a, b in zip(ours, with_gradients(block(rows, (4, 3)), leaves), strict=True):
        assert relative(a, b) < 1e-5


def test_every_pair_of_the_encoders_is_fused(monkeypatch):
    """No group norm of the agent's networks is followed by a ReLU of its own."""
    calls: list[bool] = []
    run = norms._run_kernels

    def counted(norm: GroupNorm, x: Tensor, relu: bool) -> Tensor:
        calls.append(relu)
        return run(norm, x, relu)

    monkeypatch.setattr(norms, "_run_kernels", counted)
    nfm = {"out_layers": 2, "out_norm": "group", "key_size": 4, "value_size": 4, "heads": 2}
    encoder = make_encoder("nfm", obs_shape=(1, 36, 36), width=16, depth=10, nfm=nfm).to(DEVICE)
    obs = torch.randint(0, 256, (1, 1, 1, 36, 36), dtype=torch.uint8, device=DEVICE)
    encoder(obs)
    assert len(calls) > 20
    assert all(calls)


class TestPlain:
    """Without kernels nothing is changed."""

    @pytest.fixture(autouse=True)
    def off(self, plain):
        plain()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_equal_bit_for_bit(self, dtype):
        norm, x = make_norm(12, 3, dtype), draw(2, 12, 4, 5, dtype=dtype)
        theirs = nn.GroupNorm(3, 12, device=DEVICE, dtype=dtype)
        theirs.load_state_dict(norm.state_dict())
        assert torch.equal(norm(x), theirs(x))
        assert torch.equal(norm_relu(norm, x), F.relu(theirs(x)))
        tail = (nn.ReLU(), nn.Flatten())
        assert torch.equal(FusedSequential(norm, *tail)(x), nn.Sequential(theirs, *tail)(x))

    def test_names_of_parameters_are_kept(self):
        config = NFMConfig(out_layers=2, out_norm="group")
        names = OutBlock(config, channels=16, rank=2).state_dict()
        assert sorted({name.split(".")[0] for name in names}) == ["0", "1", "3"]
        net, _ = network()
        assert "stages.0.0.1.weight" in net.state_dict()


def test_hooks_of_norm_and_relu_are_called():
    seen: list[str] = []
    for hooked in range(3):
        layers = FusedSequential(make_norm(8, 2), nn.ReLU(), nn.Flatten())
        layers[hooked].register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
        layers(draw(1, 8, 3, 3))
    assert seen == ["GroupNorm", "ReLU", "Flatten"]


def test_neighbours_are_fused_and_others_left():
    norm, other = make_norm(8, 2), nn.LeakyReLU()
    layers = [nn.ReLU(), norm, norm, nn.ReLU(), nn.ReLU(), norm, other, norm]
    x = draw(1, 8, 3, 3)
    expected = copy.deepcopy(nn.Sequential(*layers))(x)
    assert len(list(norms.fuse(layers))) == len(layers) - 1
    assert torch.allclose(FusedSequential(*layers)(x), expected, atol=1e-6)


def test_what_the_kernels_do_not_take_is_plain(monkeypatch):
    monkeypatch.setattr(norms, "_run_kernels", None)
    assert make_norm(6, 2, torch.float64)(draw(2, 6, 3, 3, dtype=torch.float64)).shape[1] == 6
    assert GroupNorm(2, 6, affine=False, device=DEVICE)(draw(2, 6, 3, 3)).shape[1] == 6
    with pytest.raises(RuntimeError, match=r"weight|channels"):
        make_norm(6, 2)(draw(2, 4, 3, 3))


def test_transforms_are_plain(monkeypatch):
    norm, x = make_norm(6, 2), draw(4, 2, 6, 3, 3)
    expected = torch.stack([norm(part) for part in x])
    monkeypatch.setattr(norms, "_run_kernels", None)
    assert torch.allclose(torch.func.vmap(norm)(x), expected, atol=1e-5)
    tangent = torch.func.jvp(norm, (x[0],), (x[0],))[1]  # a norm does not change with the scale
    assert tangent.abs().max() < 1e-4


class Failing:
    """A kernel that cannot be launched."""

    def __getitem__(self, grid: object) -> Any:
        raise RuntimeError("out of resource: shared memory")


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kernel", ["_forward", "_backward"])
def test_a_failed_launch_means_the_plain_path(kernel, relu, monkeypatch, caplog):
    norm, x = make_norm(12, 3), draw(2, 12, 3, 5)
    norm(x)  # checked
    monkeypatch.setattr(kernels, kernel, Failing())
    monkeypatch.setattr(norms.guard, "_verdicts", dict(norms.guard._verdicts))
    monkeypatch.setattr(norms.guard, "_warned", False)
    for ours, expected in zip(launched(norm, x, relu), exact(norm, x, relu), strict=True):
        assert relative(ours, expected) < 2e-6
    y = norm.run(x, relu=False)  # from now on
    assert "GroupNorm" in type(y.grad_fn).__name__
    assert [r.message.rpartition(": ")[2] for r in caplog.records] == ["shared memory"]


def test_a_launch_that_fails_in_the_check_leaves_the_kernels_unused(monkeypatch, caplog):
    monkeypatch.setattr(kernels, "_backward", Failing())
    monkeypatch.setattr(norms, "guard", guard := norms.TritonGuard("group norm", norms._check))
    assert not guard.ready(DEVICE, torch.float32)
    assert len(caplog.records) == 1


def test_kernels_that_differ_are_not_used(monkeypatch, caplog):
    guard = norms.TritonGuard("group norm", norms._check)
    monkeypatch.setattr(norms, "guard", guard)
    run = norms._run_kernels
    monkeypatch.setattr(norms, "_run_kernels", lambda *args: 1.001 * run(*args))
    norm, x = make_norm(8, 2), draw(2, 8, 3, 3)
    for _ in range(2):
        assert torch.equal(norm(x), F.group_norm(x, 2, norm.weight, norm.bias))
    assert len(caplog.records) == 1
    assert "slower" in caplog.text
    assert "group norm" in caplog.text


def test_the_check_passes_where_operations_are_counted_or_a_device_is_chosen(caplog):
    guard = norms.TritonGuard("group norm", norms._check)
    with torch.no_grad(), FlopCounterMode(display=False), torch.device("meta"):
        assert guard.ready(DEVICE, torch.float32)
    assert not caplog.records
