"""Auxiliary losses: further terms of what an update minimises, chosen by name.

One file each in this folder, which registers itself; `learner.auxiliary` names those of a run and
their weights. A loss has its own parameters, which are part of the agent's network: the optimiser
trains them, checkpoints hold them, and the target network has a copy.

Shapes: T positions, B batch, D features, A actions; c maps of h x w.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from agents.replay.batch import Batch
from rl_nfm.encoders import Encoder
from rl_nfm.support.errors import foreign_errors
from rl_nfm.support.named import Named


class Latents(NamedTuple):
    """What the online encoder makes of the T positions of a batch; gradients flow through both."""

    features: Float[Tensor, "T B D"]
    """What the value head reads."""
    maps: Float[Tensor, "T B c h w"] | None
    """Feature maps from before pooling; None where no loss reads them."""


class AuxiliaryLoss(nn.Module, ABC):
    """One term; subclasses make their parameters in `__init__` and implement `forward`."""

    reads_maps: bool = False
    """Whether `forward` needs `Latents.maps`."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        obs_shape: tuple[int, int, int],
        num_actions: int,
        frame_channels: int = 1,
    ):
        """Make it for an encoder, which is not kept.

        Args:
            encoder: of the online network.
            obs_shape: (C, H, W) of one observation.
            num_actions: A.
            frame_channels: of C, how many are one frame; the newest frame is the last.
        """
        super().__init__()

    @abstractmethod
    def forward(self, batch: Batch, latents: Latents, target: Encoder) -> Float[Tensor, "T B"]:
        """The loss of each position, without host synchronisation.

        Args:
            batch: from the replay.
            latents: of the positions in it.
            target: the target network's encoder, for losses that compare with it.
        """


auxiliaries = Named(
    "auxiliary loss", AuxiliaryLoss, option="learner.auxiliary", plugins="rl_nfm.auxiliaries"
)
"""Subclasses of `AuxiliaryLoss` by name."""
register_auxiliary = auxiliaries.register


def make_auxiliaries(
    weights: Mapping[str, float],
    encoder: Encoder,
    *,
    obs_shape: tuple[int, int, int],
    num_actions: int,
    frame_channels: int = 1,
) -> dict[str, AuxiliaryLoss]:
    """The losses of a run, by name.

    Raises:
        ValueError: an unknown name, or a loss that does not fit the encoder.
    """
    losses = {}
    for name in weights:
        kind = auxiliaries[name]
        with foreign_errors(f"learner.auxiliary: {name}", kind):
            losses[name] = kind(
                encoder,
                obs_shape=obs_shape,
                num_actions=num_actions,
                frame_channels=frame_channels,
            )
    return losses
