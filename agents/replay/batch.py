"""What the replay gives to the learner."""

import dataclasses

from torch import Tensor

from rl_nfm.encoders import State


@dataclasses.dataclass(kw_only=True)
class Batch:
    """A sample. S is burn-in + T + n, or without a state 2: the first and the bootstrap's."""

    obs: Tensor
    """uint8 [S, B, C, H, W]."""
    state: State
    """Recurrent state before the first observation, each [B, ...]."""
    reset: Tensor
    """bool [S, B]: the state is zeroed before this observation."""
    extras: dict[str, Tensor]
    """`last_action`, `last_reward`, `episode_step`, all [S, B]."""
    a_tm1: Tensor
    """int64 [T, B]."""
    r_t: Tensor
    """Clipped and discounted n-step return without the bootstrap, float [T, B]."""
    discount_t: Tensor
    """gamma^m times the stored discounts, float [T, B]."""
    bootstrap: Tensor
    """int64 [T, B]: position in S of the observation to bootstrap from."""
    mask: Tensor
    """bool [T, B]: false where the position is an episode's last frame, which is no transition."""
    index: Tensor
    """int64 [B], for `update_priorities`."""
    probability: Tensor
    """float64 [B], of drawing this sequence."""
    weight: Tensor
    """Importance weights, float [B]."""
    burn_in_steps: int
    """Observations before the first of the T positions."""
