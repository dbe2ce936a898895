"""Hard selection with a gradient: straight-through top-k and one-hot, with Gumbel noise.

The estimators of the published modular networks: forward selects the units of largest logit,
backward goes through the sigmoid (several inputs of a module) or softmax (module of a slot, or a
single input, such as of an output) of all logits.
Deviation: units are ranked by logit, not by its sigmoid, which ties at 1 for large logits.

Shapes: ... leading axes, N units to choose from (next-to-last axis), M choosers (last axis).
"""

import torch
from torch import Tensor


def gumbel_noise(shape: torch.Size | tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Samples of Gumbel(0, 1), on the CPU."""
    return -torch.empty(shape).exponential_(generator=generator).log()


def perturb(logits: Tensor, noise: Tensor | None, tau: float) -> Tensor:
    """(logits + noise) / tau; a small tau sharpens the surrogate gradient."""
    return (logits if noise is None else logits + noise) / tau


def ranked(logits: Tensor, k: int) -> Tensor:
    """One-hot vectors of the k largest logits, largest first, float [k, ..., N, M]."""
    chosen = logits.topk(k, dim=-2).indices  # [..., k, M]
    units = torch.arange(logits.shape[-2], device=logits.device)
    hot = chosen.movedim(-2, 0).unsqueeze(-2) == units[:, None]  # [k, ..., N, M]
    return hot.to(logits.dtype)


def straight_through_top_k(logits: Tensor, k: int) -> Tensor:
    """`ranked`, with the gradient of sigmoid(logits) in each of the k vectors.

    Args:
        logits: [..., N, M].
        k: units each chooser takes, at most N.

    Returns:
        [k, ..., N, M].
    """
    soft = logits.sigmoid()
    return ranked(logits, k) + (soft - soft.detach())


def straight_through_one_hot(logits: Tensor) -> Tensor:
    """One-hot vector of the largest logit with the gradient of the softmax over N, [..., N, M]."""
    soft = logits.softmax(dim=-2)
    return ranked(logits, 1)[0] + (soft - soft.detach())
