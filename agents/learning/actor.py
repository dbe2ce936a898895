"""Acting: from batches of observations to actions, carrying what a recurrent encoder needs.

Training, evaluation and SB3's `predict` all act through this file.

Shapes: E environments, A actions; C, H, W of one observation of stacked frames.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
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
        self.values: Float[Tensor, "E A"] | None = None
        """Values of all actions at the last observations: the means over quantiles."""

    @torch.no_grad()
    def act(
        self,
        obs: UInt8[Tensor, "E C H W"],
        episode_start: Bool[Tensor, " E"],
        *,
        epsilon: Float[Tensor, " E"] | float,
        noise: bool,
        fixed_fractions: bool = False,
    ) -> Int64[Tensor, " E"]:
        """Epsilon-greedy actions, on the device.

        Args:
            obs: of each environment.
            episode_start: whether the observation is the first of an episode.
            epsilon: probability of a random action, one for all environments or one for each.
            noise: explore by noisy layers. Each environment gets a draw of its own: with one draw
                for all, they would do the same wherever their observations are alike.
            fixed_fractions: see `QNetwork.values`.
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

    def observe(self, reward: Float[Tensor, " E"], life_loss: Bool[Tensor, " E"]) -> None:
        """Take in what followed the actions; the next `act` uses it."""
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


def to_device(array: NDArray[np.generic], device: torch.device) -> Shaped[Tensor, "..."]:
    """The array as a tensor: one copy to the device, none on the CPU."""
    return torch.from_numpy(array).to(device, non_blocking=True)
