import pytest
import torch
from torch import nn

from rl_nfm.backbones.norms import make_norm
from rl_nfm.backbones.resnet import (
    PreActResNet,
    PreActResNetClassifier,
    ResNetConfig,
    make_pass_networks,
)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("depth", "width", "classes", "expected"),
    [
        # Published networks: Manifold Mixup's, and the NFM paper's Synbols baselines (48 classes).
        (18, 64, 10, 11_171_146),
        (34, 64, 10, 21_279_306),
        (50, 64, 10, 23_509_066),
        (18, 64, 100, 11_217_316),
        (34, 64, 100, 21_325_476),
        (10, 12, 48, 177_468),
        (10, 24, 48, 698_760),
        (10, 64, 48, 4_919_920),
    ],
)
def test_published_parameter_counts(depth, width, classes, expected):
    config = ResNetConfig(depth=depth, width=width, stem="pixel", norm="batch")
    with torch.device("meta"):
        assert parameters(PreActResNetClassifier(config, num_classes=classes)) == expected


@pytest.mark.parametrize(
    ("stem", "size", "sizes"),
    [
        # 84 / 2 (convolution) / 2 (pooling) = 21, then halved and rounded up for each stage.
        ("imagenet", 84, [21, 11, 6, 3]),
        ("halving", 64, [32, 16, 8, 4]),
        ("pixel", 32, [32, 16, 8, 4]),
        ("pixel", 1, [1, 1, 1, 1]),
    ],
)
@pytest.mark.parametrize("depth", [10, 50])
def test_stage_sizes_and_channels(stem, size, sizes, depth):
    config = ResNetConfig(depth=depth, width=4, stem=stem, norm="group")
    net = PreActResNet(config, in_channels=2)
    x = torch.rand(3, 2, size, size + 1)
    for stage, expected, channels in zip(net.stages, sizes, net.stage_channels, strict=True):
        x = stage(x)
        assert x.shape[:3] == (3, channels, expected)
    assert net.stage_channels[-1] == 4 * 8 * (4 if depth == 50 else 1)


def test_block_equals_formula():
    """Without norms a block of stride 1 is x + conv(relu(conv(relu(x))))."""
    net = PreActResNet(ResNetConfig(depth=10, width=4, stem="pixel", norm="none"), in_channels=4)
    block = net.stages[0][1]
    nn.init.normal_(block.convs[1].weight)
    x = torch.randn(2, 4, 5, 7)
    expected = x + block.convs[1](block.convs[0](x.relu()).relu())
    torch.testing.assert_close(block(x), expected)


def test_without_norm_blocks_start_as_identity():
    net = PreActResNet(ResNetConfig(depth=18, width=4, stem="pixel", norm="none"), in_channels=3)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(net.stages[0](x), net.stages[0][0](x))
    # Fixup: kaiming's std sqrt(2 / 36) times L ** -1/2, L = 8 blocks of 2 convolutions.
    std = net.stages[0][1].convs[0].weight.std().item()
    assert std == pytest.approx((2 / 36) ** 0.5 * 8**-0.5, rel=0.3)


@pytest.mark.parametrize(("channels", "groups"), [(8, 1), (16, 1), (40, 2), (56, 2), (64, 4)])
def test_group_norm_divides_any_width(channels, groups):
    # 56 // 16 = 3 does not divide 56, 2 does.
    norm = make_norm("group", channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_every_parameter_gets_a_gradient(norm):
    net = PreActResNetClassifier(
        ResNetConfig(depth=18, width=4, stem="imagenet", norm=norm), num_classes=3
    )
    net(torch.rand(4, 3, 40, 40)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("depth", [10, 50])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_passes_share_the_convolutions_of_their_blocks_and_nothing_else(depth, norm):
    config = ResNetConfig(depth=depth, width=4, stem="imagenet", norm=norm)
    first, second = make_pass_networks(config, in_channels=3, passes=2, share_convolutions=True)
    names = dict(first.named_parameters())
    shared = {name for name, p in second.named_parameters() if p is names[name]}
    assert shared == {name for name in names if ".convs." in name}
    assert {name for name in names if "shortcut" in name} - shared  # there are such
    own = make_pass_networks(config, in_channels=3, passes=2, share_convolutions=False)
    assert not {id(p) for p in own[0].parameters()} & {id(p) for p in own[1].parameters()}
    x = torch.randn(2, 3, 40, 40)
    (first(x).sum() + second(x).sum()).backward()
    both = names["stages.1.0.convs.0.weight"].grad
    first.zero_grad()
    first(x).sum().backward()
    if norm == "batch":  # otherwise the blocks start as the identity
        assert not torch.allclose(names["stages.1.0.convs.0.weight"].grad, both)
    with pytest.raises(ValueError, match="other sizes"):
        second.share_convolutions(PreActResNet(ResNetConfig(depth=depth, width=8), in_channels=3))
