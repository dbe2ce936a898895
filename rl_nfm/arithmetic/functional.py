"""Arithmetic units as pure functions of inputs and effective weights.

Sources: NAC and NALU, Trask et al. 2018 (arXiv 1808.00508); iNALU, Schlör et al. 2020
(arXiv 2003.07629); NAU and NMU, Madsen & Johansen 2020 (arXiv 2001.05016).

Shapes: ... any leading axes, I inputs, O outputs. Weights are [O, I] as in `torch.nn.Linear`.
"""

import math

import torch
from torch import Tensor

MAX_LOG = 80.0
"""Largest exponent of the log-space path: exp(80) is 5.5e34, still a float32."""


def accumulator_weight(w_hat: Tensor, m_hat: Tensor) -> Tensor:
    """NAC weight tanh(w_hat) * sigmoid(m_hat), in (-1, 1) and biased towards -1, 0 and 1."""
    return torch.tanh(w_hat) * torch.sigmoid(m_hat)


def log_space_product(
    x: Tensor, weight: Tensor, *, eps: float = 1e-10, max_log: float = MAX_LOG
) -> Tensor:
    """The product of |x_i| ** w_i over the inputs, as exp(weight @ log(|x| + eps)).

    Deviation from Trask et al.: the exponent is cut at `max_log`, since large inputs
    otherwise overflow to inf and then to nan gradients. It is never in half precision, whose
    rounding of it would be a relative error of the result.

    Args:
        x: [..., I].
        weight: [O, I].
        eps: keeps the logarithm finite at zero.
        max_log: largest exponent, less where the type cannot hold so much; its gradient is zero
            beyond.

    Returns:
        [..., O], never negative.
    """
    dtype = torch.promote_types(x.dtype, weight.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    limit = min(max_log, math.log(torch.finfo(dtype).max))
    with torch.autocast(
        x.device.type, enabled=False
    ):  # half of an exponent's digits are the result's
        exponent = torch.log(x.to(wide).abs() + eps) @ weight.to(wide).transpose(-1, -2)
        return exponent.clamp(max=limit).exp().to(dtype)


def product_sign(x: Tensor, weight: Tensor) -> Tensor:
    """The sign iNALU gives its product: prod_i(sign(x_i) |w_i| + 1 - |w_i|).

    Exact for |w| in {0, 1}; in between it fades. Each factor is in [-1, 1], so that the published
    clipping of the result changes nothing and is left out.

    Args:
        x: [..., I].
        weight: [O, I], in [-1, 1].

    Returns:
        [..., O].

    Raises:
        ValueError: another number of inputs than the weight has.
    """
    _check_inputs(x, weight)
    magnitude = weight.abs()
    return (x.sign().unsqueeze(-2) * magnitude + 1 - magnitude).prod(-1)


def multiplication_unit(x: Tensor, weight: Tensor) -> Tensor:
    """NMU: prod_i(w_i x_i + 1 - w_i) (Madsen & Johansen); exact for any sign of x.

    Args:
        x: [..., I].
        weight: [O, I], in [0, 1].

    Returns:
        [..., O].

    Raises:
        ValueError: another number of inputs than the weight has.
    """
    _check_inputs(x, weight)
    return (x.unsqueeze(-2) * weight + 1 - weight).prod(-1)


def _check_inputs(x: Tensor, weight: Tensor) -> None:
    """Refuse what a product element by element would stretch to the width of the weight."""
    if x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"x: {x.shape[-1]} inputs, but the weight has {weight.shape[-1]}")


def sparsity_error(weight: Tensor) -> Tensor:
    """Largest distance of a weight from {-1, 0, 1}: max of min(|w|, |1 - |w||), a scalar."""
    return distance_from_discrete(weight).max()


def distance_from_discrete(weight: Tensor) -> Tensor:
    """min(|w|, |1 - |w||) of each weight: what the NAU and NMU regularisers average."""
    magnitude = weight.abs()
    return torch.minimum(magnitude, (1 - magnitude).abs())


def accumulator_init_bound(fan_in: int, fan_out: int) -> float:
    """Bound r of U(-r, r) for w_hat and m_hat that gives their NAC weight Glorot's variance.

    Var[tanh(w) sigmoid(m)] = (1 - tanh(r)/r) (r - tanh(r/2)) / (2 r), which grows to 1/2 with r,
    so that 2 / (fan_in + fan_out) can be reached from 5 units on; below, 5 is taken.
    """
    target = 2 / max(fan_in + fan_out, 5)

    def variance(r: float) -> float:
        return (1 - math.tanh(r) / r) * (r - math.tanh(r / 2)) / (2 * r)

    low, high = 1e-3, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if variance(middle) < target else (low, middle)
    return low
