"""The IMPALA network's "deep" encoder (Espeholt et al. 2018, figure 3), up to the last convolution.

Deviation: as in `nature`, the linear layer of 256 after the flattening belongs to the agent's head.
"""

import dataclasses
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.encoders.base import FeedForwardEncoder, register_encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImpalaConfig:
    """Options of the IMPALA encoder."""

    width: Annotated[int, Gt(0)] = 16
    """Channels of the first stage (published: 16); the other two have twice as many."""


class _Residual(nn.Module):
    """Twice ReLU and convolution, added to the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W], shape kept."""
        h = x
        for conv in self.convs:
            h = conv(F.relu(h))
        return x + h


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
                nn.Conv2d(channels, outputs, 3, padding=1),
                nn.MaxPool2d(3, stride=2, padding=1),
                _Residual(outputs),
                _Residual(outputs),
            ]
            channels = outputs
        self.layers = nn.Sequential(*layers, nn.ReLU(), nn.Flatten())
        with torch.no_grad():
            self.feature_dim = self.layers(torch.zeros(1, *obs_shape)).shape[1]

    def embed(self, pixels: Tensor) -> Tensor:
        """See `FeedForwardEncoder.embed`."""
        return self.layers(pixels)
