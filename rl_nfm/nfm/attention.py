"""Sparse attention over slots, as pure functions: the plain path, and the oracle of faster ones.

Source: paper, section 3 and algorithm 1; sparsifier of Ke et al. 2018 (Sparse Attentive
Backtracking). Every position of the reading layer attends for itself to its own slots; positions
never see one another. Scores, softmax and weights are float32 at least, whatever the
inputs are.

Shapes: B batch, P positions of the reader, H heads, S slots, K and V size of keys and values.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rl_nfm.nfm.config import TopKMode

SAB_EPSILON = 1e-7


def full_precision(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def masked_top_k(scores: Tensor, k: int) -> Tensor:
    """Softmax over the k highest scores, [.., S] to weights [.., S]; the others get 0.

    The k are chosen by index: with ties at the border still only k are kept. Scores of minus
    infinity get 0 even among the k.
    """
    if scores.shape[-1] <= k:
        return scores.softmax(-1)
    chosen = scores.topk(k, dim=-1).indices
    dropped = torch.ones_like(scores, dtype=torch.bool).scatter(-1, chosen, False)
    return scores.masked_fill(dropped, float("-inf")).softmax(-1)


def sab_top_k(probabilities: Tensor, k: int, *, dense_up_to: int) -> Tensor:
    """Probabilities less the (k+1)-th highest one, cut at 0 and normalised, [.., S] to [.., S].

    Unlike in `masked_top_k` the k-th is weighted by its lead over the next. With ties at the border
    fewer than k remain, and none where all are equal: the published definition, kept as it is.

    Args:
        probabilities: of the softmax, after dropout.
        k: weights that may differ from 0.
        dense_up_to: up to so many slots the probabilities are returned unchanged.
    """
    if probabilities.shape[-1] <= dense_up_to:
        return probabilities
    border = probabilities.topk(k + 1, dim=-1).values[..., -1:] + SAB_EPSILON
    kept = F.relu(probabilities - border)
    return kept / (kept.sum(-1, keepdim=True) + SAB_EPSILON)


def sparse_weights(scores: Tensor, k: int, mode: TopKMode, dropout: float = 0.0) -> Tensor:
    """Attention weights [.., S] of scores [.., S].

    Dropout falls on the probabilities, in the `sab` modes before the cut, as published.
    """
    if mode in ("masked", "dense"):
        weights = masked_top_k(scores, k) if mode == "masked" else scores.softmax(-1)
        return F.dropout(weights, dropout) if dropout else weights
    probabilities = scores.softmax(-1)
    if dropout:
        probabilities = F.dropout(probabilities, dropout)
    return sab_top_k(probabilities, k, dense_up_to=k if mode == "sab" else k + 1)


def slot_scores(query: Tensor, keys: Tensor, valid: Tensor | None, scale: float) -> Tensor:
    """Scores [B, P, H, S] float32 of query [B, P, H, K] and keys [B, P, S, H, K].

    Args:
        query: of each position.
        keys: of each position's slots.
        valid: bool [P, S]; minus infinity where False.
        scale: factor of the scores.
    """
    scores = torch.einsum("bphk,bpshk->bphs", full_precision(query) * scale, full_precision(keys))
    return scores if valid is None else scores.masked_fill(~valid[:, None, :], float("-inf"))


def mix_values(weights: Tensor, values: Tensor) -> Tensor:
    """[B, P, H, V] float32: values [B, P, S, H, V] weighted by [B, P, H, S]."""
    return torch.einsum("bphs,bpshv->bphv", weights, full_precision(values))
