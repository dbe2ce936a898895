"""Recurrent Independent Mechanisms on any trunk; the module itself is `rl_nfm.rims`.

Shapes: as in `recurrent`.
"""

import dataclasses
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt
from jaxtyping import Bool, Float
from torch import Tensor

from rl_nfm.encoders.base import State
from rl_nfm.encoders.recurrent import RecurrentConfig, RecurrentEncoder
from rl_nfm.encoders.registry import register_encoder
from rl_nfm.rims import RIMGRUCell, RIMLSTMCell


@dataclasses.dataclass(frozen=True, kw_only=True)
class RIMConfig(RecurrentConfig):
    """Options of the RIM encoder."""

    hidden_size: Annotated[int, Gt(0)] = 600
    """Size of the hidden state of all RIMs, and without `skip` that of the features."""
    num_rims: Annotated[int, Gt(0)] = 6
    """Number of RIMs; divides hidden_size."""
    num_active: Annotated[int, Gt(0)] = 4
    """How many are updated at a step."""
    cell: Literal["lstm", "gru"] = "lstm"
    """Blocks of the RIMs."""
    variant: Literal["official", "paper", "previous", "across", "dido1998"] = "official"
    """Published form; see `rl_nfm.rims.VARIANTS`."""
    rim_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Of what RIMs read from the input and from each other (in the published tasks 0.1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.num_rims:
            raise ValueError(
                f"hidden_size: {self.hidden_size} is not a multiple of num_rims ({self.num_rims})"
            )
        if self.num_active > self.num_rims:
            raise ValueError(
                f"num_active: {self.num_active} is more than there are (num_rims: {self.num_rims})"
            )


@register_encoder("rim", RIMConfig)
class RIMEncoder(RecurrentEncoder):
    """RIMs on a trunk chosen by name: k of n small LSTMs (or GRUs) are updated at each step."""

    has_activity = True

    def __init__(
        self,
        config: RIMConfig,
        *,
        obs_shape: tuple[int, int, int],
        num_actions: int,
        trunk_config: Any = None,
    ):
        super().__init__(
            config, obs_shape=obs_shape, num_actions=num_actions, trunk_config=trunk_config
        )
        cell = RIMLSTMCell if config.cell == "lstm" else RIMGRUCell
        self.cell = cell(
            self.input_size,
            config.hidden_size,
            config.num_rims,
            config.num_active,
            variant=config.variant,
            rim_dropout=config.rim_dropout,
        )

    def initial_state(self, batch_size: int) -> State:
        """Hidden state and, with LSTM blocks, cell state: zeros [B, hidden_size]."""
        zeros = self.cell.weight_hh.new_zeros(batch_size, self.cell.hidden_size)
        return (zeros, zeros.clone()) if self.cell.kind == "lstm" else (zeros,)

    def unroll(
        self, x: Float[Tensor, "T B I"], state: State, reset: Bool[Tensor, "T B"] | None
    ) -> tuple[Float[Tensor, "T B K"], State]:
        """See `RecurrentEncoder.unroll`."""
        output, *after, active = self.cell.run(x, *state, reset=reset)
        if self.recording is not None:
            self.recording.activity = active
        return output, tuple(part for part in after if part is not None)
