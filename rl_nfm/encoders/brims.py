"""Bidirectional RIMs on any trunk; the module itself is `rl_nfm.rims.bidirectional`.

The features are the topmost layer's hidden state, as in the authors' code. No published agent that
learns values has them; the sizes are those of the authors' classification of MNIST.

Shapes: as in `recurrent`.
"""

import dataclasses
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from jaxtyping import Bool, Float
from torch import Tensor

from rl_nfm.encoders.base import State
from rl_nfm.encoders.recurrent import RecurrentConfig, RecurrentEncoder
from rl_nfm.encoders.registry import register_encoder
from rl_nfm.rims import BRIM_GRU, BRIM_LSTM


@dataclasses.dataclass(frozen=True, kw_only=True)
class BRIMsConfig(RecurrentConfig):
    """Options of the encoder of bidirectional RIMs."""

    hidden_size: Annotated[int, Gt(0)] = 300
    """Size of the hidden state of each layer, and without `skip` that of the features."""
    num_rims: tuple[int, ...] = (6, 3)
    """RIMs of each layer, lowest first; each number divides hidden_size."""
    num_active: tuple[int, ...] = (4, 2)
    """How many of each layer are updated at a step."""
    cell: Literal["lstm", "gru"] = "lstm"
    """Blocks of the RIMs."""
    variant: Literal["mnist", "cifar10"] = "mnist"
    """Heads and sizes of the attention; see `rl_nfm.rims.BRIM_VARIANTS`."""
    rim_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Of what RIMs read and of what they write to each other (in the published tasks 0.1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.num_rims or len(self.num_rims) != len(self.num_active):
            raise ValueError(
                f"num_rims: {self.num_rims} is not allowed, must have as many numbers as "
                f"num_active ({self.num_active}), one for each layer"
            )
        for rims, active in zip(self.num_rims, self.num_active, strict=True):
            if rims < 1 or self.hidden_size % rims:
                raise ValueError(
                    f"num_rims: {rims} is not allowed, must divide hidden_size ({self.hidden_size})"
                )
            if not 1 <= active <= rims:
                raise ValueError(
                    f"num_active: {active} is not allowed, must be in 1..{rims} (num_rims)"
                )


@register_encoder("brims", BRIMsConfig)
class BRIMsEncoder(RecurrentEncoder):
    """Bidirectional RIMs on a trunk by name: layers that read the one below, above, or nothing."""

    has_activity = True

    def __init__(
        self,
        config: BRIMsConfig,
        *,
        obs_shape: tuple[int, int, int],
        num_actions: int,
        trunk_config: Any = None,
    ):
        super().__init__(
            config, obs_shape=obs_shape, num_actions=num_actions, trunk_config=trunk_config
        )
        layers = BRIM_LSTM if config.cell == "lstm" else BRIM_GRU
        self.layers = layers(
            self.input_size,
            config.hidden_size,
            config.num_rims,
            config.num_active,
            len(config.num_rims),
            variant=config.variant,
            rim_dropout=config.rim_dropout,
        )

    def initial_state(self, batch_size: int) -> State:
        """Hidden state and, with LSTM blocks, cell state: zeros [B, layers, hidden_size]."""
        shape = (batch_size, self.layers.num_layers, self.layers.hidden_size)
        zeros = next(self.layers.parameters()).new_zeros(shape)
        return (zeros, zeros.clone()) if self.layers.kind == "lstm" else (zeros,)

    def unroll(
        self, x: Float[Tensor, "T B I"], state: State, reset: Bool[Tensor, "T B"] | None
    ) -> tuple[Float[Tensor, "T B K"], State]:
        """See `RecurrentEncoder.unroll`."""
        by_layer = tuple(part.transpose(0, 1) for part in state)
        output, after, active = self.layers.run_layers(x, by_layer, reset)
        assert isinstance(output, Tensor)
        if self.recording is not None:
            self.recording.activity = torch.cat(active, -1)  # lowest layer first
        return output, tuple(part.transpose(0, 1).contiguous() for part in after)
