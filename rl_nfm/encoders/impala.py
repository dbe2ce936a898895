"""The IMPALA network's "deep" encoder (Espeholt et al. 2018, figure 3), up to the last convolution.

Deviation: as in `nature`, the linear layer of 256 after the flattening belongs to the agent's head.
Later variants are options: global average pooling (Impoola, Trumpp et al. 2025, arXiv 2503.05546);
maxima over a grid of 6x6 and spectral norm of the residual convolutions (Beyond The Rainbow, Clark
et al. 2024, arXiv 2411.03820, with twice the width).

Parameters and multiply-accumulates at 84x84 with 4 frames: width 16, 97,744 and 53.2 million; width
32, 389,024 and 204.8 million, whatever the pooling. With a head of 512 units Beyond The Rainbow's
network has 2,904,234 parameters at 9 actions without the scales of the noise, as its public code
has (published: 2.9 million), and equal outputs on its weights. At 64x64x3, a linear layer of 256
has 83.76 % of all parameters, as published for what Impoola's pooling removes.

Shapes: as in `base`.
"""

import dataclasses
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from rl_nfm.backbones.pixels import PixelConv
from rl_nfm.encoders.base import FeedForwardEncoder, output_shape
from rl_nfm.encoders.registry import register_encoder
from rl_nfm.support.bounds import Bounded


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImpalaConfig(Bounded):
    """Options of the IMPALA encoder."""

    width: Annotated[int, Gt(0)] = 16
    """Channels of the first stage (published: 16; Beyond The Rainbow: 32); the other two have
    twice as many."""

    pool: Literal["flatten", "gap", "max6"] = "flatten"
    """What follows the last ReLU: nothing; the mean over all pixels (Impoola); the maxima over a
    grid of 6x6 (Beyond The Rainbow)."""

    spectral_norm: bool = False
    """Divide the weights of residual convolutions by their spectral norm, followed by one power
    iteration a training forward (Beyond The Rainbow)."""

    layer_norm: bool = False
    """Layer norm over the channels of each pixel, before each ReLU of the residual blocks (a place
    of our choice: sources that prefer it to spectral norm do not say where)."""


class _Conv(nn.Conv2d):
    """3x3, size kept. A spectral norm is computed in fp32 under autocast too."""

    def __init__(self, channels: int, spectral_norm: bool):
        super().__init__(channels, channels, 3, padding=1)
        if spectral_norm:
            parametrizations.spectral_norm(self)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """[N, C, H, W], shape kept."""
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight
        return F.conv2d(x, weight, self.bias, padding=1)


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel, [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """[N, C, H, W], shape kept."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Residual(nn.Module):
    """Twice norm, ReLU and convolution, added to the input."""

    def __init__(self, channels: int, config: ImpalaConfig):
        super().__init__()
        self.convs = nn.ModuleList(_Conv(channels, config.spectral_norm) for _ in range(2))
        self.norms = nn.ModuleList(
            _ChannelNorm(channels) if config.layer_norm else nn.Identity() for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W], shape kept."""
        h = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(F.relu(norm(h)))
        return x + h


_POOLS = {
    "flatten": nn.Identity,
    "gap": lambda: nn.AdaptiveAvgPool2d(1),
    "max6": lambda: nn.AdaptiveMaxPool2d(6),
}


@register_encoder("impala", ImpalaConfig)
class ImpalaEncoder(FeedForwardEncoder):
    """IMPALA: 3 stages of convolution, pooling and 2 residual blocks, ReLU, flattened."""

    def __init__(self, config: ImpalaConfig, *, obs_shape: tuple[int, int, int], num_actions: int):
        super().__init__()
        del num_actions
        channels, *_ = obs_shape
        layers: list[nn.Module] = []
        for outputs in (config.width, 2 * config.width, 2 * config.width):
            layers += [
                PixelConv(channels, outputs, 3, padding=1),
                nn.MaxPool2d(3, stride=2, padding=1),
                _Residual(outputs, config),
                _Residual(outputs, config),
            ]
            channels = outputs
        self.layers = nn.Sequential(*layers, nn.ReLU())
        self.pooling = _POOLS[config.pool]()
        network = nn.Sequential(self.layers, self.pooling)
        self.feature_dim = output_shape(network, obs_shape).numel()

    def feature_maps(self, pixels: Float[Tensor, "N C H W"]) -> Float[Tensor, "N c h w"]:
        """See `FeedForwardEncoder.feature_maps`."""
        return self.layers(pixels)

    def pool(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N D"]:
        """See `FeedForwardEncoder.pool` and `ImpalaConfig.pool`."""
        return self.pooling(maps).flatten(1)
