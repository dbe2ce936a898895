"""Choosing few of many: active RIMs, and the sparse attention of the authors' code.

Shapes: n RIMs, B batch; in the sparse softmax A alternatives that share a weight of 1 (RIMs or
slots), and two other dimensions B and C.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SPARSE_EPSILON = 1e-7
"""Of the authors' code: see `sparse_softmax`."""


def select_active(
    logits: Float[Tensor, "n B 1"], num_active: int, earlier: Bool[Tensor, "n n 1"]
) -> Bool[Tensor, "n B 1"]:
    """Which RIMs have the `num_active` largest logits; ties go to the lower index.

    By counting and not by `topk`, whose choice among equals is arbitrary: at a zero state all
    logits are equal. `earlier` is true where the second index is the lower.
    """
    theirs = logits.squeeze(-1).unsqueeze(0)
    ahead = torch.where(earlier, theirs >= logits.transpose(1, 2), theirs > logits.transpose(1, 2))
    return (ahead.sum(1) < num_active).unsqueeze(-1)


def sparse_softmax(logits: Float[Tensor, "A B C"], k: int) -> Float[Tensor, "A B C"]:
    """The softmax over the first dimension, cut to k where there are more than k + 1.

    So RIMs share one input, [n, B, 1], or one RIM weighs the slots that it finds.

    As in the authors' code (after Ke et al. 2018) the (k + 1)-th highest probability is subtracted
    from all, what is negative becomes 0, and the rest is normalised. Where all are equal, as at a
    zero state, nothing is left and no RIM reads the input.
    """
    probs = logits.softmax(0)
    if len(probs) <= k + 1:
        return probs
    kept = (probs - probs.topk(k + 1, dim=0).values[k:] - SPARSE_EPSILON).relu()
    return kept / (kept.sum(0, keepdim=True) + SPARSE_EPSILON)


def sparse_softmax_backward(
    logits: Float[Tensor, "A B C"], k: int, grad: Float[Tensor, "A B C"]
) -> Float[Tensor, "A B C"]:
    """The gradient of `sparse_softmax` by its logits, also through the probability subtracted.

    With p = softmax(l), t the (k + 1)-th highest of p, w = relu(p - t - eps), N = sum w + eps and
    the result y = w / N: dw = (dy - sum(y dy)) / N where w > 0, else 0; dp = dw, and at t minus the
    sum of dw; dl = p (dp - sum(p dp)).
    """
    probs = logits.softmax(0)
    if len(probs) > k + 1:
        values, index = probs.topk(k + 1, dim=0)
        kept = (probs - values[k:] - SPARSE_EPSILON).relu()
        total = kept.sum(0, keepdim=True) + SPARSE_EPSILON
        grad = (grad - (kept / total * grad).sum(0, keepdim=True)) / total * (kept > 0)
        grad = grad.scatter_add(0, index[k:], -grad.sum(0, keepdim=True))
    weighted = probs * grad
    return weighted - probs * weighted.sum(0, keepdim=True)
