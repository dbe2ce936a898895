"""The whole network of the agent: an encoder by name, a value head, and auxiliary losses.

Shapes: T steps, B batch, D features, N quantiles, A actions; C, H, W of one observation of stacked
frames; `*L` any leading dimensions.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from agents.learning.auxiliary import AuxiliaryLoss
from rl_nfm.encoders import Encoder, Extras, State
from rl_nfm.values.heads import HeadConfig, Noise, ValueHead


class QNetwork(nn.Module):
    """Encoder, head and auxiliary losses."""

    def __init__(
        self,
        encoder: Encoder,
        num_actions: int,
        head: HeadConfig,
        auxiliary: Mapping[str, AuxiliaryLoss] = MappingProxyType({}),
    ):
        super().__init__()
        self.encoder = encoder
        self.head = ValueHead(encoder.feature_dim, num_actions, head)
        self.quantiles = head.distribution == "iqn"
        self.auxiliary = nn.ModuleDict(dict(auxiliary))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def initial_state(self, batch_size: int) -> State:
        """The encoder's state before the first step, on the parameters' device."""
        device = next(self.parameters()).device
        return tuple(s.to(device) for s in self.encoder.initial_state(batch_size))

    def features(
        self,
        obs: UInt8[Tensor, "T B C H W"],
        state: State,
        reset: Bool[Tensor, "T B"] | None,
        extras: Extras | None,
    ) -> tuple[Float[Tensor, "T B D"], State]:
        """Features and the next state; see `Encoder.forward`."""
        return self.encoder(obs, state, reset, extras)

    def values(
        self,
        features: Float[Tensor, "*L D"],
        num_quantiles: int,
        *,
        noise: Noise,
        fixed_fractions: bool = False,
    ) -> tuple[Float[Tensor, "*L N A"], Float[Tensor, "*L N"] | None]:
        """Values of features, and their quantile fractions.

        Args:
            features: of the encoder.
            num_quantiles: N; where the head has no quantiles, N is 1 and there are no fractions.
            noise: of noisy layers.
            fixed_fractions: the midpoints (i + 0.5) / N instead of a draw, so that the same
                observation always gives the same values.
        """
        leading = features.shape[:-1]
        flat = features.reshape(-1, features.shape[-1])
        tau = None
        if self.quantiles:
            shape = (flat.shape[0], num_quantiles)
            if fixed_fractions:
                middle = torch.arange(num_quantiles, device=flat.device) + 0.5
                tau = (middle / num_quantiles).expand(shape)
            else:
                tau = torch.rand(shape, device=flat.device)
        values = self.head(flat, tau, noise)
        values = values.view(*leading, *values.shape[1:])
        return values, None if tau is None else tau.view(*leading, -1)
