"""Acting: from batches of observations to actions, carrying what a recurrent encoder needs.

Training, evaluation and SB3's `predict` all act through this file.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.learning.network import QNetwork


class Actor:
    """Chooses actions for E environments with one network.

    Holds, per environment, the recurrent state and the extras of the encoder contract.
    """

    def __init__(
        self,
        network: QNetwork,
        *,
        num_envs: int,
        num_quantiles: int,
        dtype: torch.dtype | None,
        terminal_on_life_loss: bool,
    ):
        self.network, self.num_quantiles, self.dtype = network, num_quantiles, dtype
        self.device = next(network.parameters()).device
        self.resets_on_life_loss = terminal_on_life_loss
        self.state = network.initial_state(num_envs)
        self.last_action = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self.last_reward = torch.zeros(num_envs, device=self.device)
        self.episode_step = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self.life_loss = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self.values: Tensor | None = None
        """Of all actions upon the last observations, the mean over quantiles [E, A]."""

    @torch.no_grad()
    def act(
        self,
        obs: Tensor,
        episode_start: Tensor,
        *,
        epsilon: Tensor | float,
        noise: bool,
        fixed_fractions: bool = False,
    ) -> Tensor:
        """Epsilon-greedy actions.

        Args:
            obs: uint8 [E, C, H, W].
            episode_start: bool [E].
            epsilon: probability of a random action, a number or [E].
            noise: explore by noisy layers, with a draw of noise for each environment: with one
                for all of them, all would do the same wherever observations are alike.
            fixed_fractions: see `QNetwork.values`.

        Returns:
            int64 [E] on the device.
        """
        inside = ~episode_start
        # not in place: callers hold these tensors, and arrays that share their memory
        self.last_action = self.last_action * inside
        self.last_reward = self.last_reward * inside
        self.episode_step = (self.episode_step + 1) * inside
        reset = episode_start | (self.life_loss & self.resets_on_life_loss)
        extras = {
            "last_action": self.last_action[None],
            "last_reward": self.last_reward[None],
            "episode_step": self.episode_step[None],
        }
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)
        with autocast, frozen_statistics(self.network):
            features, self.state = self.network.features(obs[None], self.state, reset[None], extras)
            values, _ = self.network.values(
                features[0],
                self.num_quantiles,
                noise="rows" if noise else "off",
                fixed_fractions=fixed_fractions,
            )
        self.values = values.mean(-2)
        greedy = self.values.argmax(-1)
        explore = torch.rand(greedy.shape, device=self.device) < epsilon
        anything = torch.randint(values.shape[-1], greedy.shape, device=self.device)
        self.last_action = torch.where(explore, anything, greedy)
        return self.last_action

    def observe(self, reward: Tensor, life_loss: Tensor) -> None:
        """Tell what followed the actions, [E] each; the next `act` uses it."""
        self.last_reward, self.life_loss = reward, life_loss


@contextlib.contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Inside, acting neither updates batch statistics nor drops out."""
    if not network.training:
        yield
        return
    network.eval()
    try:
        yield
    finally:
        network.train()


def to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """One copy to the device; none on the CPU."""
    return torch.from_numpy(array).to(device, non_blocking=True)
