"""An LSTM on any trunk; sizes and inputs of rltime's Recurrent IQN (nature CNN, LSTM of 512).

`nn.LSTM` cannot zero its state inside a sequence, so the steps are those of the RIM layers, with
one block that is always active and reads nothing else. Parameters are those of `nn.LSTMCell`.

Shapes: as in `recurrent`.
"""

import dataclasses
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rl_nfm.encoders.base import State
from rl_nfm.encoders.recurrent import RecurrentConfig, RecurrentEncoder
from rl_nfm.encoders.registry import register_encoder
from rl_nfm.rims.products import SequenceInputs
from rl_nfm.rims.step import StepSpec, StepWeights
from rl_nfm.rims.unroll import unroll


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSTMConfig(RecurrentConfig):
    """Options of the LSTM encoder."""


@register_encoder("lstm", LSTMConfig)
class LSTMEncoder(RecurrentEncoder):
    """LSTM on a trunk chosen by name, with last action, reward sign and time as further inputs."""

    def __init__(
        self,
        config: LSTMConfig,
        *,
        obs_shape: tuple[int, int, int],
        num_actions: int,
        trunk_config: Any = None,
    ):
        super().__init__(
            config, obs_shape=obs_shape, num_actions=num_actions, trunk_config=trunk_config
        )
        self.cell = nn.LSTMCell(self.input_size, config.hidden_size)

    def initial_state(self, batch_size: int) -> State:
        """Hidden and cell state, zeros [B, hidden_size]."""
        zeros = self.cell.weight_hh.new_zeros(batch_size, self.cell.hidden_size)
        return zeros, zeros.clone()

    def unroll(
        self, x: Float[Tensor, "T B I"], state: State, reset: Bool[Tensor, "T B"] | None
    ) -> tuple[Float[Tensor, "T B K"], State]:
        """See `RecurrentEncoder.unroll`."""
        hidden, cell = state
        with torch.autocast(x.device.type, enabled=False):
            weights = StepWeights(
                input=self.cell.weight_ih.t().unsqueeze(1),
                hidden=self.cell.weight_hh.t().unsqueeze(0),
                base=(self.cell.bias_ih + self.cell.bias_hh).view(1, 1, -1),
            )
            result = unroll(
                StepSpec(cell="lstm", num_active=1),
                weights,
                SequenceInputs(x, reset=reset),
                hidden.unsqueeze(0),
                cell.unsqueeze(0),
            )
        assert result.cell is not None
        return result.output.flatten(2), (result.hidden[0], result.cell[0])
