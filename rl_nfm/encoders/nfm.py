"""The `resnet` encoder with Neural Function Modules behind its stages.

Source: the Atari row of the NFM paper (Lamb et al. 2021, section 4.5): a ResNet18, two passes,
"four places", d_k = d_v = 32, 4 heads, top-k 4. The paper does not say which four: here each stage,
as in its classification; in each pass with the preset `paper` (8 reads), in the last one alone by
default, as in the published code. Every pass has its own stem and stages.

Shapes: as in `base`.
"""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from rl_nfm.backbones.resnet import make_pass_networks
from rl_nfm.encoders.base import FeedForwardEncoder, output_shape
from rl_nfm.encoders.registry import register_encoder
from rl_nfm.encoders.resnet import FrameResNetConfig, make_tail
from rl_nfm.nfm import NFM_PRESETS, NeuralFunctionModule, NFMConfig, NFMPreset
from rl_nfm.nfm.record import record_attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class NFMEncoderConfig(FrameResNetConfig):
    """Options of the NFM encoder."""

    preset: NFMPreset = "none"
    """Take the options of `nfm` from a preset; they must then be left at their defaults."""
    nfm: NFMConfig = dataclasses.field(default_factory=NFMConfig)
    """Options of the Neural Function Modules."""
    share_convolutions: bool = False
    """The passes share the convolutions of their blocks, with stems, norms and shortcuts of their
    own (a variant in the authors' ResNet); `nfm.share_passes` shares all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share_convolutions and self.chosen_nfm.share_passes:
            raise ValueError("share_convolutions: has no effect beside nfm.share_passes")
        if self.preset != "none" and self.nfm != NFMConfig():
            raise ValueError("preset and options of nfm exclude each other: choose one of the two")

    @property
    def chosen_nfm(self) -> NFMConfig:
        """Options of the preset, or `nfm` without one."""
        return self.nfm if self.preset == "none" else NFM_PRESETS[self.preset]


@register_encoder("nfm", NFMEncoderConfig)
class NFMEncoder(FeedForwardEncoder):
    """NFM: the ResNet run in passes, each stage reading what all stages before wrote."""

    def __init__(
        self, config: NFMEncoderConfig, *, obs_shape: tuple[int, int, int], num_actions: int
    ):
        super().__init__()
        del num_actions
        nfm = config.chosen_nfm
        networks = make_pass_networks(
            config,
            in_channels=obs_shape[0],
            passes=nfm.copies,
            share_convolutions=config.share_convolutions,
        )
        channels = networks[0].stage_channels
        shape = output_shape(networks[0], obs_shape)
        self.network = NeuralFunctionModule(
            [list(network.stages) for network in networks], channels=channels, config=nfm
        )
        _check_top_k(self.network, nfm, obs_shape)
        self.tail = make_tail(config.norm, channels[-1])
        self.feature_dim = shape.numel()

    def feature_maps(self, pixels: Float[Tensor, "N C H W"]) -> Float[Tensor, "N c h w"]:
        """See `FeedForwardEncoder.feature_maps`."""
        return self.tail(self.network(pixels))


def _check_top_k(
    network: NeuralFunctionModule, config: NFMConfig, obs_shape: tuple[int, int, int]
) -> None:
    """Refuse a top-k above the number of slots that any layer has to read."""
    writes = sum(visit.writes for visit in network.places.schedule)
    if config.top_k_mode == "dense" or config.top_k <= writes:  # a written layer is a slot or more
        return
    with record_attention(network) as recorder, torch.random.fork_rng(devices=[]):
        output_shape(network, obs_shape)
    most_slots = max((len(reader.slots) for reader in recorder.readers.values()), default=0)
    if config.top_k > most_slots:
        raise ValueError(
            f"nfm.nfm.top_k: {config.top_k} is not allowed: no layer has more than "
            f"{most_slots} slots to read"
        )
