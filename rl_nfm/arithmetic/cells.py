"""NAC and NALU, Trask et al. 2018 (arXiv 1808.00508), as modules.

Names and calls are those of a widely copied public implementation; its semantics are not:
  * weights are formed in `forward` from the trained parameters (there, once, from uninitialised
    memory: an unconstrained linear layer);
  * the log-space path of a NALU has its own weights by default, as that project describes it, but
    they too are NAC weights (there: an unconstrained matrix). `share_weights=True` is the paper's
    form, one matrix for both paths;
  * log space is guarded at zero and against overflow (`functional.log_space_product`);
  * w_hat and m_hat start uniform with Glorot's variance for their NAC weight (Madsen & Johansen
    2020, appendix C), the gate Glorot-uniform.
"""

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor, nn

from rl_nfm.arithmetic.functional import (
    accumulator_init_bound,
    accumulator_weight,
    log_space_product,
)


class ArithmeticLayer(nn.Module):
    """What every arithmetic layer offers besides `forward`: [..., in] to [..., out]."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        check_sizes(type(self).__name__, (in_features, out_features))
        self.in_features = in_features
        self.out_features = out_features

    def effective_weights(self) -> list[Tensor]:
        """The weights in effect, each [out, in]; -1, 0 or 1 in an exact solution."""
        raise NotImplementedError

    def regularizer(self) -> Tensor:
        """Scalar that is zero where the weights are discrete; here: none."""
        return self.effective_weights()[0].new_zeros(())

    def extra_repr(self) -> str:
        """Sizes, for `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def check_sizes(name: str, dims: Sequence[int]) -> None:
    """Refuse sizes that are no stack of layers.

    Raises:
        ValueError: fewer than two, or not positive.
    """
    if len(dims) < 2 or any(not isinstance(size, Integral) or size < 1 for size in dims):
        raise ValueError(f"{name}: sizes must be at least two positive integers, got {dims}")


class NeuralAccumulatorCell(ArithmeticLayer):
    """NAC: y = W x with W = tanh(w_hat) * sigmoid(m_hat): sums and differences, no scaling.

    Args:
        in_features: I.
        out_features: O.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.w_hat = nn.Parameter(torch.empty(out_features, in_features))
        self.m_hat = nn.Parameter(torch.empty(out_features, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw w_hat and m_hat anew."""
        bound = accumulator_init_bound(self.in_features, self.out_features)
        nn.init.uniform_(self.w_hat, -bound, bound)
        nn.init.uniform_(self.m_hat, -bound, bound)

    @property
    def weight(self) -> Tensor:
        """W [O, I], in (-1, 1)."""
        return accumulator_weight(self.w_hat, self.m_hat)

    def effective_weights(self) -> list[Tensor]:
        """See `ArithmeticLayer.effective_weights`."""
        return [self.weight]

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return nn.functional.linear(x, self.weight)


class MultiplicativeAccumulatorCell(NeuralAccumulatorCell):
    """NAC in log space: products, quotients and powers of |x|, without sign.

    Args:
        in_features: I.
        out_features: O.
        eps: added to |x| before the logarithm.
    """

    def __init__(self, in_features: int, out_features: int, *, eps: float = 1e-10):
        super().__init__(in_features, out_features)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return log_space_product(x, self.weight, eps=self.eps)


class NeuralArithmeticLogicUnit(ArithmeticLayer):
    """NALU: y = g a + (1 - g) m, a NAC and a log-space NAC mixed by the gate g = sigmoid(G x).

    Args:
        in_features: I.
        out_features: O.
        share_weights: one NAC weight for both paths (the paper) instead of one each.
        eps: added to |x| before the logarithm.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        share_weights: bool = False,
        eps: float = 1e-10,
    ):
        super().__init__(in_features, out_features)
        self.eps = eps
        self.add = NeuralAccumulatorCell(in_features, out_features)
        self.mul = None if share_weights else NeuralAccumulatorCell(in_features, out_features)
        self.gate = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.xavier_uniform_(self.gate)

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for cell in (self.add, self.mul):
            if cell is not None:
                cell.reset_parameters()
        nn.init.xavier_uniform_(self.gate)

    def effective_weights(self) -> list[Tensor]:
        """See `ArithmeticLayer.effective_weights`."""
        return [cell.weight for cell in (self.add, self.mul) if cell is not None]

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        weights = self.effective_weights()
        gate = torch.sigmoid(nn.functional.linear(x, self.gate))  # [..., O]
        total = nn.functional.linear(x, weights[0])
        return gate * total + (1 - gate) * log_space_product(x, weights[-1], eps=self.eps)


class NAC(nn.Sequential):
    """A stack of NACs: `NAC(3, 4, 2)` maps [..., 3] to [..., 2] through 4.

    Raises:
        ValueError: fewer than two sizes, or not positive.
    """

    def __init__(self, *dims: int):
        check_sizes("NAC", dims)
        super().__init__(*(NeuralAccumulatorCell(i, o) for i, o in pairwise(dims)))


class NALU(nn.Sequential):
    """A stack of NALUs: `NALU(3, 4, 2)` maps [..., 3] to [..., 2] through 4.

    Args:
        dims: sizes from input to output.
        share_weights: as in `NeuralArithmeticLogicUnit`.

    Raises:
        ValueError: fewer than two sizes, or not positive.
    """

    def __init__(self, *dims: int, share_weights: bool = False):
        check_sizes("NALU", dims)
        super().__init__(
            *(
                NeuralArithmeticLogicUnit(i, o, share_weights=share_weights)
                for i, o in pairwise(dims)
            )
        )
