"""n-step returns: clipping, sums and gamma are applied at sampling, in this order.

Shapes: T positions, B batch, n steps of the return.
"""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReturnConfig:
    """How rewards become n-step returns."""

    n_steps: int
    discount: float
    reward_clip: float | None
    terminal_on_life_loss: bool


def n_step_returns(
    config: ReturnConfig,
    reward: Float[Tensor, "n T B"],
    alive: Bool[Tensor, "n T B"],
    crosses: Bool[Tensor, "n T B"],
) -> tuple[Float[Tensor, "T B"], Float[Tensor, "T B"], Int64[Tensor, "T B"]]:
    """The n-step return that begins at each position, over the n rows from there on.

    Args:
        config: how rewards become returns.
        reward: raw reward of each row.
        alive: false where the row ends the return.
        crosses: whether an episode begins right after the row. The row's observation is then the
            last of its episode, and what follows belongs to another one.

    Returns:
        The sum of discounted rewards, the discount of the bootstrap, and the number of steps to the
        observation to bootstrap from.
    """
    if config.reward_clip is not None:
        reward = reward.clamp(-config.reward_clip, config.reward_clip)
    total = torch.zeros_like(reward[0])
    discount = torch.ones_like(total)
    inside = torch.ones_like(alive[0])
    steps = torch.zeros(total.shape, dtype=torch.int64, device=total.device)
    for k in range(config.n_steps):
        if k > 0:
            inside = inside & ~crosses[k]
        total = total + torch.where(inside, discount * reward[k], 0.0)
        discount = torch.where(inside, discount * config.discount * alive[k], discount)
        steps = steps + inside
    return total, discount, steps
