"""n-step returns: clipping, sums and gamma are applied at sampling, in this order.

Letters: T positions, B batch, n steps of the return.
"""

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReturnConfig:
    """How rewards become n-step returns."""

    n_steps: int
    discount: float
    reward_clip: float | None
    terminal_on_life_loss: bool


def n_step_returns(
    config: ReturnConfig, reward: Tensor, alive: Tensor, crosses: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns of n rows from each position on.

    Args:
        config: how.
        reward: raw, of each row, float [n, T, B].
        alive: false where the row ends the return, bool [n, T, B].
        crosses: whether an episode begins right after the row, bool [n, T, B]: its observation is
            the last of its episode, and what follows belongs to another one.

    Returns:
        The sum of discounted rewards, the discount of the bootstrap, and the steps to its
        observation, each [T, B].
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
