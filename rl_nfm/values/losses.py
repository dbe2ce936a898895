"""Value-learning losses and targets as pure functions of tensors.

Sources: IQN (Dabney et al. 2018, eq. 3 and 4), double Q-learning (van Hasselt et al. 2016),
Munchausen (Vieillard et al. 2020, eq. 1), value rescaling (Pohlen et al. 2018, proposition A.2;
R2D2, Kapturowski et al. 2019, section 2.3). Reductions are named in each docstring; none averages
over the batch.

Shapes: leading dimensions `*D` are batch (and time); N online and M target quantiles, A actions.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def huber(x: Tensor, kappa: float) -> Tensor:
    """Huber function: x^2 / 2 where |x| <= kappa, else kappa (|x| - kappa / 2)."""
    magnitude = x.abs()
    quadratic = magnitude.clamp(max=kappa)
    return quadratic * (magnitude - 0.5 * quadratic)


def quantile_huber_loss(
    quantile_tm1: Float[Tensor, "*D N"],
    tau_tm1: Float[Tensor, "*D N"],
    target_t: Float[Tensor, "*D M"],
    kappa: float = 1.0,
) -> tuple[Float[Tensor, "*D"], Float[Tensor, "*D"]]:
    """Quantile regression loss with Huber's function over kappa (IQN eq. 3).

    Args:
        quantile_tm1: values of the action taken at the sampled fractions.
        tau_tm1: the fractions in [0, 1].
        target_t: samples of the target distribution; no gradient passes through them.
        kappa: where the Huber function turns linear; 0 gives the plain quantile loss.

    Returns:
        The loss, summed over online and averaged over target quantiles, and the mean absolute
        TD error over all pairs (without gradient), which serves as priority.
    """
    td = target_t.detach().unsqueeze(-2) - quantile_tm1.unsqueeze(-1)  # [*D, N, M]
    asymmetry = (tau_tm1.unsqueeze(-1) - (td.detach() < 0).to(td.dtype)).abs()
    error = huber(td, kappa) / kappa if kappa > 0 else td.abs()
    loss = (asymmetry * error).mean(-1).sum(-1)
    return loss, td.detach().abs().mean((-1, -2))


def td_loss(
    q_tm1: Float[Tensor, "*D"], target_t: Float[Tensor, "*D"], kappa: float = 1.0
) -> tuple[Float[Tensor, "*D"], Float[Tensor, "*D"]]:
    """DQN's loss: Huber of the TD error (squared error where kappa is 0), and |TD error|."""
    td = target_t.detach() - q_tm1
    loss = huber(td, kappa) if kappa > 0 else 0.5 * td.square()
    return loss, td.detach().abs()


def take_action(
    values: Float[Tensor, "*D N A"], action: Int[Tensor, "*D"]
) -> Float[Tensor, "*D N"]:
    """The values of one action for every quantile."""
    index = action.unsqueeze(-1).unsqueeze(-1).expand(*values.shape[:-1], 1)
    return values.gather(-1, index).squeeze(-1)


def bootstrap_target(
    r_t: Float[Tensor, "*D"],
    discount_t: Float[Tensor, "*D"],
    value_t: Float[Tensor, "*D M"],
) -> Float[Tensor, "*D M"]:
    """`r_t + discount_t * value_t`, for n-step returns and their gamma^m already multiplied in."""
    return r_t.unsqueeze(-1) + discount_t.unsqueeze(-1) * value_t


def signed_hyperbolic(x: Float[Tensor, "*D"], eps: float = 1e-3) -> Float[Tensor, "*D"]:
    """Value rescaling `h(x) = sign(x) (sqrt(|x| + 1) - 1) + eps x` (R2D2, section 2.3).

    It compresses raw rewards of any size as clipping would not: their order is kept. Written as
    `x / (sqrt(|x| + 1) + 1) + eps x`, which is the same and loses no digits near 0.
    """
    return x / ((x.abs() + 1).sqrt() + 1) + eps * x


def signed_parabolic(x: Float[Tensor, "*D"], eps: float = 1e-3) -> Float[Tensor, "*D"]:
    """The inverse of `signed_hyperbolic`.

    R2D2 gives `sign(x) (z^2 - 1)` with `z = (sqrt(1 + 4 eps (|x| + 1 + eps)) - 1) / (2 eps)`. In
    float32 this takes 500 from 501 and is off by 1e-4; with `w = z - 1 = |x| scale` it is
    `x scale (w + 2)`, exact to rounding, defined for `eps = 0` too, and with its gradient at 0.
    """
    magnitude = x.abs()
    root = (1 + 4 * eps * (magnitude + 1 + eps)).sqrt()
    scale = 2 / (root + 1 + 2 * eps)
    return x * scale * (magnitude * scale + 2)


def rescaled_bootstrap_target(
    r_t: Float[Tensor, "*D"],
    discount_t: Float[Tensor, "*D"],
    value_t: Float[Tensor, "*D M"],
    eps: float,
) -> Float[Tensor, "*D M"]:
    """`h(r_t + discount_t * h^-1(value_t))`: targets for values that are learned rescaled by h.

    R2D2, section 2.3; `value_t`, the result and so the TD error are in units of h, `r_t` is raw.
    h is monotone, so that rescaled quantiles are the quantiles of rescaled returns.
    """
    raw = bootstrap_target(r_t, discount_t, signed_parabolic(value_t, eps))
    return signed_hyperbolic(raw, eps)


def munchausen_bonus(
    q_tm1: Float[Tensor, "*D A"],
    a_tm1: Int[Tensor, "*D"],
    alpha: float,
    temperature: float,
    clip: float,
) -> Float[Tensor, "*D"]:
    """`alpha * clip(temperature * log pi(a | s), clip, 0)` with pi = softmax(q / temperature).

    Munchausen RL, eq. 1; `q_tm1` comes from the target network.
    """
    log_pi = scaled_log_policy(q_tm1, temperature)
    taken = log_pi.gather(-1, a_tm1.unsqueeze(-1)).squeeze(-1)
    return alpha * taken.clamp(min=clip, max=0.0)


def munchausen_value(
    quantile_t: Float[Tensor, "*D M A"], temperature: float
) -> Float[Tensor, "*D M"]:
    """Soft value `sum_a pi(a) (z(a) - temperature log pi(a))`, pi from the mean over quantiles."""
    q_t = quantile_t.mean(-2)
    log_pi = scaled_log_policy(q_t, temperature)
    pi = torch.softmax(q_t / temperature, -1)
    return (pi.unsqueeze(-2) * (quantile_t - log_pi.unsqueeze(-2))).sum(-1)


def scaled_log_policy(q: Float[Tensor, "*D A"], temperature: float) -> Float[Tensor, "*D A"]:
    """`temperature * log softmax(q / temperature)`, in the stable form of the paper's appendix."""
    return temperature * torch.log_softmax(q / temperature, -1)
