"""What `triton_launch` launches for a backward, in plain PyTorch: for when a launch fails there.

The check at first use takes a small input. What a kernel needs may grow with the sizes, so a launch
may still fail later, when other readers have already left their gradients in the kernels' form.
These functions take and make that form. They may differ from run to run on a GPU, by rounding.

Shapes: B samples, P positions of the reader, R rows of memory, H heads, k kept slots.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rl_nfm.nfm.call import Options, slot_rows, split_sizes
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
        sample, position, head, kept = torch.nonzero(rows >= 0, as_tuple=True)
        place = sample, rows[sample, position, head, kept], head
        pairs = reader.pairs.unsqueeze(-1).view(torch.float32)[sample, position, head, kept]
        for total, source, factor in zip(
            sums, (reader.query, reader.grad), pairs.flip(-1).unbind(-1), strict=True
        ):
            rows_read = source.float().unflatten(-1, (heads, -1))[sample, position, head]
            total.index_put_(place, factor[:, None] * rows_read, accumulate=True)
    grad_keys.copy_(sums[0].flatten(2))
    grad_values.copy_(sums[1].flatten(2))


def _chosen(slots: Tensor, options: Options, layers: int, layer: int) -> Tensor:
    """int64 [B, P, H, k]: the row of one layer that each kept slot is, or -1."""
    target, *sources = split_sizes(options.sizes, layers)
    tables = [slot_rows(source, target, options.mode) for source in sources]
    first = sum(table.shape[1] for table in tables[:layer])
    table = torch.from_numpy(tables[layer]).to(slots.device, torch.int64)  # [P, slots]
    slot = slots.long() - first
    inside = (slot >= 0) & (slot < table.shape[1])
    position = torch.arange(len(table), device=slots.device)[:, None, None]
    return table[position, slot.clamp(0, table.shape[1] - 1)].where(inside, -1)


def _gathered(layers: Sequence[Tensor], chosen: Sequence[Tensor]) -> Tensor:
    """float32 [B, P, H, k, size]: of each kept slot its row; zeros where it has none."""
    found = 0.0
    for rows, index in zip(layers, chosen, strict=True):
        heads = index.shape[2]
        sample = torch.arange(len(rows), device=rows.device)[:, None, None, None]
        head = torch.arange(heads, device=rows.device)[:, None]
        by_head = rows.float().unflatten(-1, (heads, -1))  # [B, R, H, size]
        one = by_head[sample, index.clamp(min=0), head]
        found = found + one.where(index[..., None] >= 0, 0.0)
    assert isinstance(found, Tensor)
    return found
