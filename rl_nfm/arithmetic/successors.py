"""The units that repair NAC and NALU: iNALU, NAU and NMU, with their regularisers and starts.

iNALU: Schlör, Ring & Hotho 2020 (arXiv 2003.07629). NAU, NMU: Madsen & Johansen 2020
(arXiv 2001.05016). Deviations: NAU and NMU also clamp their weight in `forward`, so that it is in
range without `project_` too; on a projected weight that changes neither value nor gradient.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rl_nfm.arithmetic.cells import ArithmeticLayer
from rl_nfm.arithmetic.functional import (
    accumulator_weight,
    distance_from_discrete,
    log_space_product,
    multiplication_unit,
    product_sign,
)

INALU_EPS = 1e-7
INALU_MAX_LOG = 20.0
INALU_SATURATION = 20.0
"""|parameter| from which tanh and sigmoid are discrete enough: the regulariser ends there."""


class ImprovedNeuralArithmeticLogicUnit(ArithmeticLayer):
    """iNALU: separate weights, a gate that does not see the input, clipped log space, signs.

    y = g a + (1 - g) m s with g = sigmoid(gate), a = W_a x, m = exp(min(W_m log max(|x|, 1e-7),
    20)) and s the sign of the product (`functional.product_sign`).

    Args:
        in_features: I.
        out_features: O.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        shape = (2, out_features, in_features)  # 0: sum, 1: product
        self.w_hat = nn.Parameter(torch.empty(shape))
        self.m_hat = nn.Parameter(torch.empty(shape))
        self.gate = nn.Parameter(torch.empty(out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, normal with the published means and deviations."""
        nn.init.normal_(self.w_hat, 0.88, 0.2)
        nn.init.normal_(self.m_hat, 0.5, 0.2)
        nn.init.normal_(self.gate, 0.0, 0.2)

    def effective_weights(self) -> list[Tensor]:
        """See `ArithmeticLayer.effective_weights`."""
        return list(accumulator_weight(self.w_hat, self.m_hat).unbind(0))

    def regularizer(self) -> Tensor:
        """Mean of max(20 - |p|, 0) / 20 of each parameter, summed: drives p to +-20.

        Published: counted only once the loss is below 1, together with gradients cut at +-0.1 and
        new starts of runs that do not improve. What counts when is left to the training loop.
        """
        kinds = (*self.w_hat, *self.m_hat, self.gate)
        terms = [(1 - p.abs() / INALU_SATURATION).clamp(min=0).mean() for p in kinds]
        return torch.stack(terms).sum()

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        w_sum, w_product = self.effective_weights()
        gate = torch.sigmoid(self.gate)
        total = nn.functional.linear(x, w_sum)
        # log max(|x|, eps): the paper's guard, exact for |x| >= eps, unlike log(|x| + eps)
        product = log_space_product(
            x.abs().clamp(min=INALU_EPS), w_product, eps=0.0, max_log=INALU_MAX_LOG
        )
        return gate * total + (1 - gate) * product * product_sign(x, w_product)


class _ClampedLayer(ArithmeticLayer):
    """A layer whose weight is its parameter, kept within `bounds`."""

    bounds: tuple[float, float]

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.raw_weight = nn.Parameter(torch.empty(out_features, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight anew."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """W [O, I], within `bounds`."""
        return self.raw_weight.clamp(*self.bounds)

    def effective_weights(self) -> list[Tensor]:
        """See `ArithmeticLayer.effective_weights`."""
        return [self.weight]

    def regularizer(self) -> Tensor:
        """Mean distance of a weight from the nearest of {-1, 0, 1}."""
        return distance_from_discrete(self.weight).mean()


class NeuralAdditionUnit(_ClampedLayer):
    """NAU: y = W x with W in [-1, 1].

    Args:
        in_features: I.
        out_features: O.
    """

    bounds = (-1.0, 1.0)

    def reset_parameters(self) -> None:
        """U(-r, r), r = min(1/2, sqrt(3) sqrt(2 / (I + O)))."""
        deviation = math.sqrt(2 / (self.in_features + self.out_features))
        bound = min(0.5, math.sqrt(3) * deviation)
        nn.init.uniform_(self.raw_weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return nn.functional.linear(x, self.weight)


class NeuralMultiplicationUnit(_ClampedLayer):
    """NMU: y = prod_i(w_i x_i + 1 - w_i) with W in [0, 1].

    Args:
        in_features: I.
        out_features: O.
    """

    bounds = (0.0, 1.0)

    def reset_parameters(self) -> None:
        """U(1/4, 3/4)."""
        nn.init.uniform_(self.raw_weight, 0.25, 0.75)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return multiplication_unit(x, self.weight)


@torch.no_grad()
def project_(model: nn.Module, parameters: Mapping[str, Tensor] | None = None) -> None:
    """Put the weights of bounded layers back into their range; call it after each update.

    Args:
        model: holds the layers.
        parameters: name to tensor, where they are kept outside the model (stacked over seeds,
            say); by default the model's own.
    """
    tensors = dict(model.named_parameters()) if parameters is None else parameters
    for name, layer in model.named_modules():
        if isinstance(layer, _ClampedLayer):
            tensors[f"{name}.raw_weight" if name else "raw_weight"].clamp_(*layer.bounds)
