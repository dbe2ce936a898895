"""What the replay gives to the learner.

Shapes: S observations, T positions, B batch; C, H, W of one observation of stacked frames.
"""

import dataclasses

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped, UInt8
from torch import Tensor

from rl_nfm.encoders import State


@dataclasses.dataclass(kw_only=True)
class Batch:
    """A sample of sequences.

    S is burn-in + T + n. For an encoder without state it is 2: the first observation and the one to
    bootstrap from.
    """

    obs: UInt8[Tensor, "S B C H W"]
    """Observations of stacked frames."""
    state: State
    """Recurrent state before the first observation, each [B, ...]."""
    reset: Bool[Tensor, "S B"]
    """Whether the state is set to zero before this observation."""
    extras: dict[str, Shaped[Tensor, "S B"]]
    """`last_action`, `last_reward` and `episode_step`, which some encoders read."""
    a_tm1: Int64[Tensor, "T B"]
    """The action taken at each position."""
    r_t: Float[Tensor, "T B"]
    """Clipped and discounted n-step return without the bootstrap."""
    discount_t: Float[Tensor, "T B"]
    """What the bootstrap is multiplied by: gamma^m times the stored discounts."""
    bootstrap: Int64[Tensor, "T B"]
    """Position in S of the observation to bootstrap from."""
    mask: Bool[Tensor, "T B"]
    """False where the position is the last frame of an episode: no transition begins there."""
    index: Int64[Tensor, " B"]
    """Where the sequences are stored, for `update_priorities`."""
    probability: Float64[Tensor, " B"]
    """The probability with which each sequence was drawn."""
    weight: Float[Tensor, " B"]
    """Importance weights."""
    burn_in_steps: int
    """Observations before the first of the T positions."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch with all tensors on a device."""
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        state = tuple(x.to(device) for x in self.state)
        extras = {name: x.to(device) for name, x in self.extras.items()}
        return dataclasses.replace(self, **tensors, state=state, extras=extras)
