"""Pre-activation residual networks, shared by the agents' encoders and by classification.

Source: He et al. 2016, "Identity Mappings in Deep Residual Networks", with the layout that the
NFM paper's classification builds on (Verma et al. 2019, Manifold Mixup): the first activation of a
block also feeds its shortcut, and nothing normalises the last stage.
Deviations, each an option: group norm (as in Kumar et al. 2022, whose Atari ResNets drop batch
norm) or none instead of batch norm; a 7x7 stem with pooling, for frames of 84x84. Without a norm
the blocks start as the identity, after Fixup (Zhang et al. 2019): the last convolution is zero and
the others are scaled by L ** (-1 / (2m - 2)), L blocks of m convolutions each.

Shapes: B batch, C channels, H x W pixels.
"""

import dataclasses
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn

from rl_nfm.backbones.norms import FusedSequential, Norm, make_norm, norm_relu
from rl_nfm.backbones.pixels import PixelConv
from rl_nfm.support.bounds import Bounded

_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig(Bounded):
    """Options of a `PreActResNet`."""

    depth: Literal[10, 18, 34, 50] = 18
    """Counted layers: 10, 18 and 34 have blocks of two 3x3 convolutions, 50 has bottlenecks."""
    width: Annotated[int, Gt(0)] = 64
    """Channels of the first stage (published: 64); each later stage doubles them."""
    stem: Literal["pixel", "halving", "imagenet"] = "imagenet"
    """Before the stages: `pixel` 3x3 (32x32 images), `halving` 3x3 with stride 2 (64x64),
    `imagenet` 7x7 with stride 2, norm, ReLU and 3x3 max pooling with stride 2 (84x84 and up)."""
    norm: Norm = "batch"
    """Before each convolution: batch norm (published), group norm of 16 channels, or none."""


class _Block(nn.Module):
    """Norm, ReLU, convolution for each of `kernels`, around a shortcut."""

    def __init__(self, channels: list[int], kernels: list[int], stride: int, norm: Norm):
        super().__init__()
        inputs, outputs = channels[:-1], channels[1:]
        self.norms = nn.ModuleList(make_norm(norm, c) for c in inputs)
        # The stride sits in the first 3x3 convolution.
        strides = [stride if i == kernels.index(3) else 1 for i in range(len(kernels))]
        self.convs = nn.ModuleList(
            nn.Conv2d(c, d, k, stride=s, padding=k // 2, bias=norm == "none")
            for c, d, k, s in zip(inputs, outputs, kernels, strides, strict=True)
        )
        changes = stride != 1 or channels[0] != channels[-1]
        self.shortcut = (
            nn.Conv2d(channels[0], channels[-1], 1, stride=stride, bias=False) if changes else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, D, ceil(H / stride), ceil(W / stride)]."""
        h = norm_relu(self.norms[0], x)
        shortcut = x if self.shortcut is None else self.shortcut(h)
        h = self.convs[0](h)
        for norm, conv in zip(self.norms[1:], self.convs[1:], strict=True):
            h = conv(norm_relu(norm, h))
        return h + shortcut


def _make_stem(config: ResNetConfig, in_channels: int) -> nn.Module:
    width, bias = config.width, config.norm == "none"
    if config.stem == "imagenet":
        return FusedSequential(
            PixelConv(in_channels, width, 7, stride=2, padding=3, bias=bias),
            make_norm(config.norm, width),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
    stride = 2 if config.stem == "halving" else 1
    return PixelConv(in_channels, width, 3, stride=stride, padding=1, bias=bias)


class PreActResNet(nn.Module):
    """Stem and four stages: `stages[0]` holds the stem too, so that the list is the network."""

    def __init__(self, config: ResNetConfig, *, in_channels: int):
        super().__init__()
        expansion, kernels = (4, [1, 3, 1]) if config.depth == 50 else (1, [3, 3])
        self.stages = nn.ModuleList()
        self.stage_channels: list[int] = []
        channels = config.width
        for stage, count in enumerate(_BLOCKS[config.depth]):
            layers: list[nn.Module] = [_make_stem(config, in_channels)] if stage == 0 else []
            inner = config.width * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                widths = [channels, *[inner] * (len(kernels) - 1), inner * expansion]
                layers.append(_Block(widths, kernels, stride, config.norm))
                channels = inner * expansion
            self.stages.append(nn.Sequential(*layers))
            self.stage_channels.append(channels)
        if config.norm == "none":
            self._start_as_identity()

    def _start_as_identity(self) -> None:
        blocks = self._blocks()
        for block in blocks:
            scale = len(blocks) ** (-1 / (2 * len(block.convs) - 2))
            for conv in block.convs:
                assert isinstance(conv, nn.Conv2d)
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                with torch.no_grad():
                    conv.weight.mul_(0.0 if conv is block.convs[-1] else scale)
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)

    def share_convolutions(self, other: "PreActResNet") -> None:
        """Take the other network's convolutions inside the blocks; the rest stays this one's own.

        Stem, norms and shortcuts are what the NFM authors' ResNet gives each pass of its own in its
        variant with shared parameters.

        Raises:
            ValueError: the other network has other sizes.
        """
        for block, shared in zip(self._blocks(), other._blocks(), strict=True):
            shapes = [[conv.weight.shape for conv in blocks.convs] for blocks in (block, shared)]
            if shapes[0] != shapes[1]:
                raise ValueError("other: its convolutions have other sizes")
            block.convs = shared.convs

    def _blocks(self) -> list[_Block]:
        return [module for module in self.modules() if isinstance(module, _Block)]

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the last stage [B, stage_channels[-1], H', W']."""
        for stage in self.stages:
            x = stage(x)
        return x


def make_pass_networks(
    config: ResNetConfig, *, in_channels: int, passes: int, share_convolutions: bool
) -> list[PreActResNet]:
    """A network for each pass of NFM, with convolutions of their own or those of the first."""
    networks = [PreActResNet(config, in_channels=in_channels) for _ in range(passes)]
    for network in networks[1:] if share_convolutions else ():
        network.share_convolutions(networks[0])
    return networks


class PreActResNetClassifier(nn.Module):
    """A `PreActResNet`, global average pooling and one linear layer: [B, C, H, W] to [B, classes].

    With `stem="pixel"` and `norm="batch"` this is the network of the paper's classification.
    """

    def __init__(self, config: ResNetConfig, *, in_channels: int = 3, num_classes: int):
        super().__init__()
        self.backbone = PreActResNet(config, in_channels=in_channels)
        self.head = nn.Linear(self.backbone.stage_channels[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes]."""
        return self.head(self.backbone(images).mean(dim=(2, 3)))
