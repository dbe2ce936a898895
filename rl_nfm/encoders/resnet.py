"""A pre-activation ResNet as encoder: the backbone of the NFM paper's Atari table.

The paper names "ResNet18" and nothing more. Chosen here: the ImageNet stem on 84x84 (stages of
21, 11, 6 and 3 pixels), group norm, a last norm and ReLU (pre-activation networks have none after
their last block), and flattened features, because a position on the screen matters to a policy.

Shapes: as in `base`.
"""

import dataclasses
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rl_nfm.backbones.matching import count_parameters, same_params_as
from rl_nfm.backbones.norms import FusedSequential, Norm, make_norm
from rl_nfm.backbones.resnet import PreActResNet, ResNetConfig
from rl_nfm.encoders.base import FeedForwardEncoder, output_shape
from rl_nfm.encoders.registry import make_encoder, register_encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameResNetConfig(ResNetConfig):
    """Options of a ResNet that reads frames."""

    norm: Norm = "group"
    """Before each convolution: group norm of 16 channels, none, or batch norm."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetEncoderConfig(FrameResNetConfig):
    """Options of the ResNet encoder."""

    same_params_as: Literal["none", "nfm"] = "none"
    """`nfm`: widen until it has about as many parameters as that encoder, given this width, depth,
    stem and norm, has with its default options. The paper's NFM networks are about twice their
    baselines."""


def make_tail(norm: Norm, channels: int) -> nn.Module:
    """What follows the last stage [N, C, H, W], of which the shape stays."""
    return FusedSequential(make_norm(norm, channels), nn.ReLU())


@register_encoder("resnet", ResNetEncoderConfig)
class ResNetEncoder(FeedForwardEncoder):
    """ResNet: pre-activation ResNet18 (or 10, 34, 50) of any width, flattened."""

    def __init__(
        self, config: ResNetEncoderConfig, *, obs_shape: tuple[int, int, int], num_actions: int
    ):
        super().__init__()
        if config.same_params_as == "nfm":
            config = _as_wide_as_nfm(config, obs_shape=obs_shape, num_actions=num_actions)
        self.width = config.width
        self.backbone = PreActResNet(config, in_channels=obs_shape[0])
        self.tail = make_tail(config.norm, self.backbone.stage_channels[-1])
        self.feature_dim = output_shape(self.backbone, obs_shape).numel()

    def feature_maps(self, pixels: Float[Tensor, "N C H W"]) -> Float[Tensor, "N c h w"]:
        """See `FeedForwardEncoder.feature_maps`."""
        return self.tail(self.backbone(pixels))


def _as_wide_as_nfm(
    config: ResNetEncoderConfig, *, obs_shape: tuple[int, int, int], num_actions: int
) -> ResNetEncoderConfig:
    """The config of the width at which the parameters match; without `same_params_as`."""
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(ResNetConfig)}
    shape = {"obs_shape": obs_shape, "num_actions": num_actions}
    with torch.device("meta"):
        reference = count_parameters(make_encoder("nfm", **shape, **shared))

    def build(width: int) -> ResNetEncoder:
        return ResNetEncoder(dataclasses.replace(plain, width=width), **shape)

    plain = dataclasses.replace(config, same_params_as="none")
    return dataclasses.replace(plain, width=same_params_as(reference, build))
