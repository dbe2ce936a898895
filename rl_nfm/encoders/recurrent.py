"""What encoders with a state share: a trunk by name, and inputs besides the image.

Source: rltime's `atari_iqn_lstm` (Recurrent IQN), which concatenates the one-hot last action, the
sign of the last reward and episode_step / 100000 to the flattened CNN output before the LSTM.

Shapes: T steps, B batch, C stacked frames, H x W pixels, I inputs and K outputs of the core, D
features, E features of the trunk, c channels of h x w feature maps.
"""

import dataclasses
from typing import Annotated, Any

import torch
from annotated_types import Gt
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor, nn

from rl_nfm.encoders.base import (
    Encoder,
    Extras,
    State,
    check_observations,
)
from rl_nfm.encoders.registry import encoder_entry, make_encoder
from rl_nfm.support.bounds import Bounded

STEPS_SCALE = 100_000
"""The step within the episode is given in units of this many."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentConfig(Bounded):
    """Options of every recurrent encoder."""

    trunk: str = "nature"
    """Encoder of a single observation, whose options are those of its own group."""
    trunk_norm: bool = False
    """Layer norm of the trunk's features before the core reads them. An untrained trunk's hardly
    vary from one observation to the next, which RIMs, whose first weights are small, barely see
    (published on trunks with larger ones, and without a norm)."""
    hidden_size: Annotated[int, Gt(0)] = 512
    """Size of the hidden state, and without `skip` that of the features."""
    skip: bool = False
    """The features are what the core gives and, behind it, what it reads, so that the head need not
    see everything through the core (as skip connections in Guez et al. 2019, arXiv 1901.03559)."""
    last_action: bool = True
    """Also feed the last action, one-hot (all zero for a negative one)."""
    last_reward: bool = True
    """Also feed the sign of the last reward."""
    episode_step: bool = True
    """Also feed the step within the episode / 100000."""


class RecurrentEncoder(Encoder):
    """A trunk that sees single observations, run once over all of them, and a core with a state.

    Subclasses make the core for `input_size` and implement `initial_state` and `unroll`. The core
    computes in float32, also under autocast.
    """

    def __init__(
        self,
        config: RecurrentConfig,
        *,
        obs_shape: tuple[int, int, int],
        num_actions: int,
        trunk_config: Any,
    ):
        super().__init__()
        entry = encoder_entry(config.trunk)
        if trunk_config is not None and not isinstance(trunk_config, entry.config):
            raise ValueError(
                f"trunk_config: trunk {config.trunk!r} takes {entry.config.__name__}, "
                f"got {type(trunk_config).__name__}"
            )
        if entry.takes_trunk:
            raise ValueError(f"trunk: {config.trunk!r} is not allowed, it has a trunk of its own")
        self.config, self.num_actions = config, num_actions
        self.trunk = make_encoder(
            config.trunk, obs_shape=obs_shape, num_actions=num_actions, config=trunk_config
        )
        if self.trunk.recurrent:
            raise ValueError(f"trunk: {config.trunk!r} is not allowed, it has a state of its own")
        self.trunk_norm = nn.LayerNorm(self.trunk.feature_dim) if config.trunk_norm else None
        extra = num_actions * config.last_action + config.last_reward + config.episode_step
        self.input_size = self.trunk.feature_dim + extra
        self.feature_dim = config.hidden_size + (self.input_size if config.skip else 0)

    def unroll(
        self, x: Float[Tensor, "T B I"], state: State, reset: Bool[Tensor, "T B"] | None
    ) -> tuple[Float[Tensor, "T B K"], State]:
        """What the core gives for its inputs, and its state after the last step."""
        raise NotImplementedError

    def forward(
        self,
        obs: UInt8[Tensor, "T B C H W"],
        state: State = (),
        reset: Bool[Tensor, "T B"] | None = None,
        extras: Extras | None = None,
    ) -> tuple[Float[Tensor, "T B D"], State]:
        """See `Encoder.forward`.

        Raises:
            ValueError: if an input that the config asks for is not among the extras, or `obs` is
                not [T, B, C, H, W].
        """
        check_observations(obs)
        state = state or self.initial_state(obs.shape[1])
        return self._unrolled(self.core_inputs(obs, extras), state, reset)

    def forward_with_maps(
        self,
        obs: UInt8[Tensor, "T B C H W"],
        state: State = (),
        reset: Bool[Tensor, "T B"] | None = None,
        extras: Extras | None = None,
    ) -> tuple[Float[Tensor, "T B D"], State, Float[Tensor, "T B c h w"]]:
        """See `Encoder.forward_with_maps`: the maps are the trunk's."""
        check_observations(obs)
        state = state or self.initial_state(obs.shape[1])
        trunk_features, _, maps = self.trunk.forward_with_maps(obs, (), None, extras)
        x = self._with_extras(trunk_features, extras)
        features, state = self._unrolled(x, state, reset)
        return features, state, maps

    def _unrolled(
        self, x: Float[Tensor, "T B I"], state: State, reset: Bool[Tensor, "T B"] | None
    ) -> tuple[Float[Tensor, "T B D"], State]:
        output, state = self.unroll(x, tuple(part.to(x.dtype) for part in state), reset)
        return torch.cat([output, x], -1) if self.config.skip else output, state

    def core_inputs(
        self, obs: UInt8[Tensor, "T B C H W"], extras: Extras | None
    ) -> Float[Tensor, "T B I"]:
        """What the core reads: the trunk's features and the extras that the config asks for."""
        return self._with_extras(self.trunk(obs, (), None, extras)[0], extras)

    def _with_extras(
        self, trunk_features: Float[Tensor, "T B E"], extras: Extras | None
    ) -> Float[Tensor, "T B I"]:
        """The trunk's features beside the extras that the config asks for; no half of autocast."""
        casts = torch.is_autocast_enabled(trunk_features.device.type)
        parts = [trunk_features.float() if casts else trunk_features]
        if self.trunk_norm is not None:
            parts = [self.trunk_norm(parts[0])]
        if self.config.last_action:
            actions = torch.arange(self.num_actions, device=trunk_features.device)
            parts.append(
                (_extra(extras, "last_action").unsqueeze(-1) == actions).to(parts[0].dtype)
            )
        if self.config.last_reward:
            parts.append(_extra(extras, "last_reward").sign().unsqueeze(-1).to(parts[0].dtype))
        if self.config.episode_step:
            steps = _extra(extras, "episode_step").unsqueeze(-1).float() / STEPS_SCALE
            parts.append(steps.to(parts[0].dtype))
        return torch.cat(parts, -1)


def _extra(extras: Extras | None, name: str) -> Shaped[Tensor, "T B"]:
    if extras is None or name not in extras:
        raise ValueError(f"{name}: is not given, but the encoder is configured to read it")
    return extras[name]
