"""What `triton_launch` launches for a backward, in plain PyTorch: for when a launch fails there.

The check at first use takes a small input. What a kernel needs may grow with the sizes, so a launch
may still fail later, when other readers have already left their gradients in the kernels' form.
These functions take and make that form.

Shapes: B samples, P positions of the reader, R rows of memory, H heads, k kept slots.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rl_nfm.nfm import triton_launch as launch
from rl_nfm.nfm.call import Options
from rl_nfm.nfm.triton_launch import ReaderGradients


def query_gradient(
    grad: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    weights: Tensor,
    slots: Tensor,
    grad_query: Tensor,
    options: Options,
) -> Tensor:
    """As `triton_launch.query_gradient`."""
    chosen = [_chosen(slots, options, len(keys), layer) for layer in range(len(keys))]
    grad_read = grad.float().unflatten(-1, (options.heads, 1, -1))  # [B, P, H, 1, V]
    grad_weights = (grad_read * _gathered(values, chosen)).sum(-1)
    mean = (weights * grad_weights).sum(-1, keepdim=True)
    grad_scores = weights * (grad_weights - mean) * options.scale
    grad_query.copy_((grad_scores[..., None] * _gathered(keys, chosen)).sum(-2).flatten(2))
    pairs = torch.stack([weights, grad_scores], dim=-1)  # the first in the lower half of its pair
    return pairs.view(torch.int64).squeeze(-1)


def memory_gradient(
    readers: Sequence[ReaderGradients],
    layer: int,
    grad_keys: Tensor,
    grad_values: Tensor,
    heads: int,
) -> None:
    """As `triton_launch.memory_gradient`."""
    sums = [
        torch.zeros(x.shape, dtype=torch.float32, device=x.device).unflatten(-1, (heads, -1))
        for x in (grad_keys, grad_values)
    ]
    for reader in readers:
        rows = _chosen(reader.slots, reader.options, reader.layers, layer)
        place = _places(rows)
        weights, grad_scores = reader.pairs.unsqueeze(-1).view(torch.float32).unbind(-1)
        for total, source, factor in zip(
            sums, (reader.query, reader.grad), (grad_scores, weights), strict=True
        ):
            of_heads = source.float().unflatten(-1, (heads, 1, -1))  # [B, P, H, 1, size]
            share = (factor[..., None] * of_heads).where(rows[..., None] >= 0, 0.0)
            total.index_put_(place, share, accumulate=True)
    grad_keys.copy_(sums[0].flatten(2))
    grad_values.copy_(sums[1].flatten(2))


def _chosen(slots: Tensor, options: Options, layers: int, layer: int) -> Tensor:
    """int64 [B, P, H, k]: the row of one layer that each kept slot is, or -1."""
    firsts, count = launch.first_slots(options, layers)
    begin, end = (*firsts, count)[layer : layer + 2]
    table = launch.slot_table(
        tuple(options.sizes), layers, options.mode, slots.device
    )  # [slots, P]
    position = torch.arange(table.shape[1], device=slots.device)[:, None, None]
    rows = table[slots.long().clamp(min=0), position].long()
    return rows.where((slots >= begin) & (slots < end), -1)


def _places(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of these rows [B, P, H, k] in a layer [B, R, H, size]; for none, of the first."""
    sample = torch.arange(rows.shape[0], device=rows.device)[:, None, None, None]
    head = torch.arange(rows.shape[2], device=rows.device)[:, None]
    return sample, rows.clamp(min=0), head


def _gathered(layers: Sequence[Tensor], chosen: Sequence[Tensor]) -> Tensor:
    """float32 [B, P, H, k, size]: of each kept slot its row; zeros where it has none."""
    found = torch.zeros((), device=layers[0].device)
    for x, rows in zip(layers, chosen, strict=True):
        of_heads = x.float().unflatten(-1, (rows.shape[2], -1))  # [B, R, H, size]
        found = found + of_heads[_places(rows)].where(rows[..., None] >= 0, 0.0)
    return found
