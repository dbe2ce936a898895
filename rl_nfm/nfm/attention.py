"""Sparse attention over slots, as pure functions: the plain path, and the oracle of `kernels`.

Source: paper, section 3 and algorithm 1; sparsifier of Ke et al. 2018 (Sparse Attentive
Backtracking). Every position of the reading layer attends for itself to its own slots; positions
never see one another. Scores, softmax and weights are float32 at least, whatever the inputs are.

Shapes: B batch, P positions of the reading layer, H heads, L slots of all written layers in turn
and the null slot, if any, last; HK and HV size of keys and values of all heads together, K and V of
one head; `*D` any leading dimensions.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rl_nfm.nfm.config import TopKMode
from rl_nfm.nfm.rescale import Grid, gather_slots

SAB_EPSILON = 1e-7


def masked_top_k(scores: Float[Tensor, "*D L"], k: int) -> Float[Tensor, "*D L"]:
    """Weights of slots: the softmax over the k highest scores; the others get 0.

    The k are chosen by index: of ties at the border the first are kept, as the kernels do. Scores
    of minus infinity get 0 even among the k.
    """
    if scores.shape[-1] <= k:
        return scores.softmax(-1)
    chosen = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    dropped = torch.ones_like(scores, dtype=torch.bool).scatter(
        -1, chosen, 0
    )  # no False: jit.trace
    return scores.masked_fill(dropped, float("-inf")).softmax(-1)


def sab_top_k(
    probabilities: Float[Tensor, "*D L"], k: int, *, dense_up_to: int
) -> Float[Tensor, "*D L"]:
    """Probabilities less the (k+1)-th highest one, cut at 0 and normalised.

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


def sparse_weights(
    scores: Float[Tensor, "*D L"], k: int, mode: TopKMode, dropout: float = 0.0
) -> Float[Tensor, "*D L"]:
    """Attention weights of slots with these scores.

    Dropout falls on the probabilities, in the `sab` modes before the cut, as published.

    Args:
        scores: minus infinity for padding.
        k: highest number of weights that are not 0, except in `dense`.
        mode: see `NFMConfig.top_k_mode`.
        dropout: rate; 0 outside training.
    """
    if mode in ("masked", "dense"):
        weights = masked_top_k(scores, k) if mode == "masked" else scores.softmax(-1)
        return F.dropout(weights, dropout) if dropout else weights
    probabilities = scores.softmax(-1)
    if dropout:
        probabilities = F.dropout(probabilities, dropout)
    return sab_top_k(probabilities, k, dense_up_to=k if mode == "sab" else k + 1)


def slot_scores(
    query: Float[Tensor, "B P HK"],
    keys: Sequence[Float[Tensor, "B _ HK"]],
    grid: Grid,
    heads: int,
    scale: float,
    null_slot: bool,
) -> Float[Tensor, "B P H L"]:
    """Scores of each position's slots.

    Args:
        query: of each position of the reading layer.
        keys: of each written layer, at all of its own positions.
        grid: the sizes behind the positions.
        heads: H.
        scale: factor of the scores.
        null_slot: whether a slot of score 0 comes last.

    Returns:
        float32 at least; minus infinity where a slot is padding.
    """
    q = _by_head(query, heads) * scale
    scores: list[Tensor] = []
    for key, source in zip(keys, grid.sources, strict=True):
        slots, valid = gather_slots(key.unflatten(1, source), grid.target, grid.mode)
        k = _by_head(slots, heads).flatten(1, -4)
        with torch.autocast(q.device.type, enabled=False):  # it would round to half precision
            score = torch.einsum("bphk,bplhk->bphl", q, k)
        if valid is not None:
            padding = ~valid.flatten(0, -2)[:, None]
            score = score.masked_fill(padding, float("-inf"))
        scores.append(score)
    if null_slot:
        scores.append(torch.zeros_like(scores[0][..., :1]))
    return torch.cat(scores, dim=-1)


def mix_values(
    weights: Float[Tensor, "B P H L"], values: Sequence[Float[Tensor, "B _ HV"]], grid: Grid
) -> Float[Tensor, "B P HV"]:
    """Values of each position's slots, weighted.

    Args:
        weights: of the slots, for each position and head.
        values: of each written layer, at all of its own positions.
        grid: the sizes behind the positions.

    Returns:
        What each position reads, in the precision of the first layer's values.
    """
    heads, first = weights.shape[2], 0
    parts: list[Tensor] = []
    for value, source in zip(values, grid.sources, strict=True):
        slots, _ = gather_slots(value.unflatten(1, source), grid.target, grid.mode)
        v = _by_head(slots, heads).flatten(1, -4)
        w = weights[..., first : first + v.shape[2]]
        with torch.autocast(v.device.type, enabled=False):
            parts.append(torch.einsum("bphl,bplhv->bphv", w, v))
        first += v.shape[2]
    return sum(parts[1:], parts[0]).to(values[0].dtype).flatten(2)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[.., H * K] as [.., H, K], half precision as float32."""
    x = x.unflatten(-1, (heads, -1))
    return x.to(wide_type(x.dtype))


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """The type in which scores and sums of such tensors are computed: half precision in float32."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
