"""Toy encoders: small enough to be written out again as formulas."""

import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.learning.network import QNetwork
from rl_nfm.encoders import Encoder, Extras, FeedForwardEncoder, State
from rl_nfm.values.heads import HeadConfig

OBS_SHAPE, ACTIONS, FEATURES = (2, 3, 2), 3, 5  # 12 pixels


class LinearEncoder(FeedForwardEncoder):
    """One layer and a ReLU, with batch norm in between on demand."""

    def __init__(self, batch_norm: bool = False):
        super().__init__()
        self.feature_dim = FEATURES
        self.layer = nn.Linear(12, FEATURES)
        self.norm = nn.BatchNorm1d(FEATURES) if batch_norm else nn.Identity()

    def embed(self, pixels: Tensor) -> Tensor:
        return torch.relu(self.norm(self.layer(pixels.flatten(1))))


class CellEncoder(Encoder):
    """The simplest recurrent network that uses everything of the contract.

    `h = tanh(W [pixels, one-hot action, reward, step / 10] + U h)`, h zeroed before a reset.
    """

    def __init__(self) -> None:
        super().__init__()
        self.feature_dim = FEATURES
        self.inputs = nn.Linear(12 + ACTIONS + 2, FEATURES)
        self.hidden = nn.Linear(FEATURES, FEATURES, bias=False)

    def initial_state(self, batch_size: int) -> State:
        return (torch.zeros(batch_size, FEATURES),)

    def forward(
        self,
        obs: Tensor,
        state: State = (),
        reset: Tensor | None = None,
        extras: Extras | None = None,
    ) -> tuple[Tensor, State]:
        assert reset is not None
        assert extras is not None
        action = nn.functional.one_hot(extras["last_action"], ACTIONS).float()
        more = torch.stack([extras["last_reward"], extras["episode_step"] / 10], -1)
        x = self.inputs(torch.cat([obs.flatten(2) / 255, action, more], -1))  # [T, B, D]
        h, outputs = state[0], []
        for t in range(len(obs)):
            h = h * ~reset[t].unsqueeze(-1)
            h = torch.tanh(x[t] + self.hidden(h)).float()
            outputs.append(h)
        return torch.stack(outputs), (h,)


def make_network(encoder: Encoder, seed: int = 0, **head: Any) -> QNetwork:
    """A network whose weights depend on the seed alone."""
    network = QNetwork(encoder, ACTIONS, HeadConfig(**{"hidden_size": 4, "num_cosines": 3, **head}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return network


@pytest.fixture
def toys() -> types.SimpleNamespace:
    return types.SimpleNamespace(
        LinearEncoder=LinearEncoder,
        CellEncoder=CellEncoder,
        make_network=make_network,
        obs_shape=OBS_SHAPE,
        actions=ACTIONS,
        features=FEATURES,
    )
