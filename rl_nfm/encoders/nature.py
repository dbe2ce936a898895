"""The Nature CNN (Mnih et al. 2015, Methods, "Model architecture"), up to the last convolution.

Shapes: as in `base`.
"""

import dataclasses
from typing import Annotated

from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from rl_nfm.backbones.pixels import PixelConv
from rl_nfm.encoders.base import FeedForwardEncoder, output_shape
from rl_nfm.encoders.registry import register_encoder
from rl_nfm.support.bounds import Bounded


@dataclasses.dataclass(frozen=True, kw_only=True)
class NatureConfig(Bounded):
    """Options of the Nature CNN."""

    width: Annotated[int, Gt(0)] = 32
    """Channels of the first convolution (published: 32); the other two have twice as many."""


@register_encoder("nature", NatureConfig)
class NatureEncoder(FeedForwardEncoder):
    """Nature CNN: 3 convolutions (8x8/4, 4x4/2, 3x3/1), ReLU, flattened."""

    def __init__(self, config: NatureConfig, *, obs_shape: tuple[int, int, int], num_actions: int):
        super().__init__()
        del num_actions
        channels, height, width = obs_shape
        if min(height, width) < 36:
            raise ValueError(f"nature: images of {height}x{width} are too small, at least 36x36")
        w = config.width
        self.convs = nn.Sequential(
            PixelConv(channels, w, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(w, 2 * w, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(2 * w, 2 * w, 3, stride=1),
            nn.ReLU(),
        )
        self.feature_dim = output_shape(self.convs, obs_shape).numel()

    def feature_maps(self, pixels: Float[Tensor, "N C H W"]) -> Float[Tensor, "N c h w"]:
        """See `FeedForwardEncoder.feature_maps`."""
        return self.convs(pixels)
