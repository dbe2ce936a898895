"""Auxiliary losses: further terms of what an update minimises, chosen by name.

One file each in this folder, which registers itself; `learner.auxiliary` names those of a run and
their weights. A loss has its own parameters, which are part of the agent's network: the optimiser
trains them, checkpoints hold them, and the target network has a copy.

Shapes: T positions, B batch, D features, A actions; c maps of h x w.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from agents.replay.batch import Batch
from rl_nfm.encoders import Encoder
from rl_nfm.support.configuration import nearest


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

    def __init__(self, encoder: Encoder, *, obs_shape: tuple[int, int, int], num_actions: int):
        """Make it for an encoder, which is not kept.

        Args:
            encoder: of the online network.
            obs_shape: (C, H, W) of one observation.
            num_actions: A.
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


_LOSSES: dict[str, type[AuxiliaryLoss]] = {}


def register_auxiliary(name: str) -> Callable[[type[Any]], type[Any]]:
    """Class decorator: register an auxiliary loss under a name.

    Raises:
        ValueError: the name is taken or no identifier.
    """
    if not name.isidentifier() or name in _LOSSES:
        raise ValueError(f"auxiliary loss {name!r} must be a free Python identifier")

    def register(loss: type[AuxiliaryLoss]) -> type[AuxiliaryLoss]:
        _LOSSES[name] = loss
        return loss

    return register


def auxiliary_names() -> list[str]:
    """All registered names."""
    return list(_LOSSES)


def make_auxiliaries(
    weights: Mapping[str, float],
    encoder: Encoder,
    *,
    obs_shape: tuple[int, int, int],
    num_actions: int,
) -> dict[str, AuxiliaryLoss]:
    """The losses of a run, by name.

    Raises:
        ValueError: an unknown name, or a loss that does not fit the encoder.
    """
    for name in weights:
        if name not in _LOSSES:
            raise ValueError(nearest("learner.auxiliary", name, auxiliary_names()))
    return {
        name: _LOSSES[name](encoder, obs_shape=obs_shape, num_actions=num_actions)
        for name in weights
    }
