"""The Hadamax encoder: max-pooled products of two parallel layers (Kooi et al. 2025).

Source: arXiv 2505.15345, section 4 and appendix B: the Nature CNN with strides replaced by max
pooling, and each convolution by two in parallel, whose outputs are normalised (layer norm over the
channels of each pixel), activated (GELU in its tanh form) and multiplied. Published with PQN: +80 %
over the Nature CNN.

At 84x84 with 4 frames it has 156,608 parameters and 153.4 million multiply-accumulates an image, 2
and 20 times the Nature CNN's, and 7744 features; outputs equal those of the authors' network on its
weights. The paper gives neither number.

Deviation: as in `nature`, the linear layer of 512 after the flattening belongs to the agent's head,
where it has no layer norm, and ReLU instead of GELU.

Shapes: N images, C channels, H x W pixels before and h x w after a layer.
"""

import dataclasses
from typing import Annotated

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.backbones.pixels import PixelConv
from rl_nfm.encoders.base import FeedForwardEncoder, output_shape
from rl_nfm.encoders.registry import register_encoder
from rl_nfm.support.bounds import Bounded


@dataclasses.dataclass(frozen=True, kw_only=True)
class HadamaxConfig(Bounded):
    """Options of the Hadamax encoder."""

    width: Annotated[int, Gt(0)] = 32
    """Channels of the first block (published: 32); the other two have twice as many."""


def pad_same(
    x: Float[Tensor, "N C H W"], kernel: int, stride: int, value: float = 0.0
) -> Float[Tensor, "N C h w"]:
    """Padded such that a window of this size and stride gives ceil(size / stride) outputs.

    The odd pixel comes last, as in TensorFlow and JAX.
    """
    pads: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        missing = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        pads += [missing // 2, missing - missing // 2]
    return F.pad(x, pads, value=value) if any(pads) else x


class _Block(nn.Module):
    """Two convolutions as one, layer norm, GELU, their product, max pooling."""

    def __init__(self, inputs: int, outputs: int, kernel: int, pool: tuple[int, int]):
        super().__init__()
        self.outputs, self.kernel, self.pool = outputs, kernel, pool
        self.conv = PixelConv(inputs, 2 * outputs, kernel)
        self.norm_weight = nn.Parameter(torch.ones(2, outputs))
        self.norm_bias = nn.Parameter(torch.zeros(2, outputs))
        for half in self.conv.weight.detach().chunk(2):  # each as a layer of its own
            nn.init.xavier_normal_(half)
        nn.init.zeros_(self.conv.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, outputs, ceil(H / s), ceil(W / s)] for a pooling stride s."""
        h = self.conv(pad_same(x, self.kernel, 1))
        h = h.permute(0, 2, 3, 1).unflatten(-1, (2, self.outputs))  # [N, H, W, 2, outputs]
        h = F.layer_norm(h, (self.outputs,), eps=1e-6) * self.norm_weight + self.norm_bias
        first, second = F.gelu(h, approximate="tanh").unbind(-2)
        product = (first * second).permute(0, 3, 1, 2)
        size, stride = self.pool
        return F.max_pool2d(pad_same(product, size, stride, -torch.inf), size, stride)


@register_encoder("hadamax", HadamaxConfig)
class HadamaxEncoder(FeedForwardEncoder):
    """Hadamax: 3 blocks of two parallel convolutions, multiplied and max-pooled, flattened."""

    def __init__(self, config: HadamaxConfig, *, obs_shape: tuple[int, int, int], num_actions: int):
        super().__init__()
        del num_actions
        w = config.width
        self.blocks = nn.Sequential(
            _Block(obs_shape[0], w, 8, (4, 4)),
            _Block(w, 2 * w, 4, (2, 2)),
            _Block(2 * w, 2 * w, 3, (3, 1)),
        )
        self.feature_dim = output_shape(self.blocks, obs_shape).numel()

    def feature_maps(self, pixels: Float[Tensor, "N C H W"]) -> Float[Tensor, "N c h w"]:
        """See `FeedForwardEncoder.feature_maps`."""
        return self.blocks(pixels)
