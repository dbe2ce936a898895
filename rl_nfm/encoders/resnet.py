"""A pre-activation ResNet as encoder: the backbone of the NFM paper's Atari table.

The paper names "ResNet18" and nothing more. Chosen here: the ImageNet stem on 84x84 (stages of
21, 11, 6 and 3 pixels), group norm, a last norm and ReLU (pre-activation networks have none after
their last block), and flattened features, because a position on the screen matters to a policy.
"""

import dataclasses

import torch
from torch import Tensor, nn

from rl_nfm.encoders.base import FeedForwardEncoder, register_encoder
from rl_nfm.resnet import Norm, PreActResNet, ResNetConfig, make_norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetEncoderConfig(ResNetConfig):
    """Options of the ResNet encoder."""

    norm: Norm = "group"
    """Before each convolution: group norm of 16 channels, none, or batch norm."""


def make_tail(norm: Norm, channels: int) -> nn.Module:
    """From the last stage [N, C, H, W] to features [N, C * H * W]."""
    return nn.Sequential(make_norm(norm, channels), nn.ReLU(), nn.Flatten())


@register_encoder("resnet", ResNetEncoderConfig)
class ResNetEncoder(FeedForwardEncoder):
    """ResNet: pre-activation ResNet18 (or 10, 34, 50) of any width, flattened."""

    def __init__(
        self, config: ResNetEncoderConfig, *, obs_shape: tuple[int, int, int], num_actions: int
    ):
        super().__init__()
        del num_actions
        self.backbone = PreActResNet(config, in_channels=obs_shape[0])
        self.tail = make_tail(config.norm, self.backbone.stage_channels[-1])
        with torch.no_grad():
            shape = self.backbone.eval()(torch.zeros(1, *obs_shape)).shape
        self.backbone.train()
        self.feature_dim = shape[1:].numel()

    def embed(self, pixels: Tensor) -> Tensor:
        """See `FeedForwardEncoder.embed`."""
        return self.tail(self.backbone(pixels))
