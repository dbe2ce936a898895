"""From features to action values: plain, dueling, noisy, and as quantiles (IQN).

Sources: dueling (Wang et al. 2016, eq. 9), factorised noisy layers (Fortunato et al. 2018, eq.
10 and 11), IQN's quantile embedding (Dabney et al. 2018, eq. 4; cosines i = 1..n as Dopamine and
rltime have them: i = 0 would only repeat the bias).

Shapes: B batch, N quantiles, D features, A actions.
"""

import dataclasses
import math
from typing import Annotated, ClassVar, Literal, get_args

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.support.bounds import Bounded


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig(Bounded):
    """Options of the value head."""

    distribution: Literal["iqn", "none"] = "iqn"
    """iqn: implicit quantiles; none: expected values only, as in DQN."""

    FORMER_NAMES: ClassVar = {"hidden": "hidden_size"}

    hidden_size: Annotated[int, Gt(0)] = 512
    """Units of each hidden layer."""

    dueling: bool = True
    """Separate hidden layers for state value and advantages."""

    noisy: bool = True
    """Factorised Gaussian noise on the weights, in acting and learning but not in evaluation."""

    noisy_sigma: Annotated[float, Gt(0)] = 0.5
    """Initial noise scale sigma_0 of noisy layers."""

    num_cosines: Annotated[int, Gt(0)] = 64
    """Cosines that embed a quantile fraction."""

    quantile_layer: Literal["features", "hidden"] = "features"
    """features: the embedding multiplies the encoder's features (as published); hidden: it
    multiplies a first hidden layer (512 units instead of Nature's 3136, so about 6 times cheaper),
    as in rltime."""


Noise = Literal["off", "batch", "rows"]
NOISES = get_args(Noise)
"""off: the means of noisy layers alone; batch: one draw for the whole batch, for learning; rows:
one draw for each row of the first dimension, for acting, where a row is an environment."""


class NoisyLinear(nn.Module):
    """Linear layer with factorised Gaussian noise; its means alone where no noise is asked for."""

    def __init__(self, in_features: int, out_features: int, sigma: float):
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full((out_features, in_features), sigma * bound))
        self.bias_sigma = nn.Parameter(torch.full((out_features,), sigma * bound))

    def forward(self, x: Float[Tensor, "B *N I"], noise: Noise) -> Float[Tensor, "B *N O"]:
        """See `Noise`. A draw for each row costs a second matrix product, but no weights a row.

        Acting so takes 1.55 times as long as with one draw in `rainbow_iqn` (16 environments, 32
        fractions, Nature CNN), 1.2 times in `atari_100k`, 1.07 times in `btr` (process time, one
        core of an AMD EPYC, fp32, PyTorch 2.13).
        """
        if noise == "off":
            return F.linear(x, self.weight, self.bias)
        if noise == "rows":
            # (sigma * outer(out, in)) x = out * (sigma (in * x))
            noise_in, noise_out = self._draw(len(x), *[1] * (x.dim() - 2), device=x.device)
            scale = F.linear(x * noise_in, self.weight_sigma, self.bias_sigma)
            return F.linear(x, self.weight, self.bias) + noise_out * scale
        noise_in, noise_out = self._draw(device=x.device)
        weight = torch.addcmul(self.weight, self.weight_sigma, torch.outer(noise_out, noise_in))
        return F.linear(x, weight, torch.addcmul(self.bias, self.bias_sigma, noise_out))

    def _draw(self, *rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """`sign(e) sqrt(|e|)` of Gaussian e, for inputs [*rows, I] and outputs [*rows, O]."""
        out_features, in_features = self.weight.shape
        raw = torch.randn(*rows, in_features + out_features, device=device)
        noise_in, noise_out = (raw.sign() * raw.abs().sqrt()).split([in_features, out_features], -1)
        return noise_in, noise_out


class PlainLinear(nn.Linear):
    """nn.Linear with NoisyLinear's call."""

    def forward(self, x: Tensor, noise: Noise) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Ignores `noise`."""
        return super().forward(x)


class Stream(nn.Module):
    """Hidden layer, ReLU, output layer."""

    def __init__(self, in_features: int, out_features: int, config: HeadConfig):
        super().__init__()

        def linear(i: int, o: int) -> nn.Module:
            return NoisyLinear(i, o, config.noisy_sigma) if config.noisy else PlainLinear(i, o)

        self.hidden = linear(in_features, config.hidden_size)
        self.out = linear(config.hidden_size, out_features)

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Outputs [*B, O], in fp32 (or wider parameters' type)."""
        hidden = F.relu(self.hidden(x, noise))
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):  # bf16 would round values of 10 to 1/16
            return self.out(hidden, noise)


class ValueHead(nn.Module):
    """Action values from features: `forward(features, tau, noise)`.

    Deviation from Rainbow: the first hidden layer of `quantile_layer="hidden"` carries no noise.
    """

    frequencies: Tensor

    def __init__(self, feature_dim: int, num_actions: int, config: HeadConfig):
        super().__init__()
        self.config, self.num_actions = config, num_actions
        width = feature_dim
        self.torso = None
        if config.distribution == "iqn":
            if config.quantile_layer == "hidden":
                self.torso = nn.Linear(feature_dim, config.hidden_size)
                width = config.hidden_size
            self.embedding = nn.Linear(config.num_cosines, width)
            frequencies = math.pi * torch.arange(1, config.num_cosines + 1)
            self.register_buffer("frequencies", frequencies, persistent=False)
        self.advantage = Stream(width, num_actions, config)
        self.value = Stream(width, 1, config) if config.dueling else None

    def forward(
        self,
        features: Float[Tensor, "B D"],
        tau: Float[Tensor, "B N"] | None,
        noise: Noise = "off",
    ) -> Float[Tensor, "B N A"]:
        """Values in fp32.

        Args:
            features: of the encoder.
            tau: quantile fractions in [0, 1]; None for `distribution="none"`, where N is 1.
            noise: of noisy layers, drawn afresh at every call.

        Raises:
            ValueError: fractions without quantiles, quantiles without fractions, or another noise.
        """
        if (tau is None) != (self.config.distribution == "none"):
            need = "no tau" if tau is not None else "tau [B, N]"
            raise ValueError(f"tau: distribution {self.config.distribution!r} takes {need}")
        if noise not in NOISES:
            raise ValueError(f"noise: {noise!r} is not allowed: one of {', '.join(NOISES)}")
        if self.torso is not None:
            features = F.relu(self.torso(features))
        x = features.unsqueeze(1)  # [B, 1, D]
        if tau is not None:
            cosines = torch.cos(tau.unsqueeze(-1) * self.frequencies)  # [B, N, cosines]
            x = x * F.relu(self.embedding(cosines))  # [B, N, D]
        advantage = self.advantage(x, noise)
        if self.value is None:
            return advantage
        return self.value(x, noise) + advantage - advantage.mean(-1, keepdim=True)
