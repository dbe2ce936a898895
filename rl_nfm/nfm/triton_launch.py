"""Launches `triton_kernels` and `triton_gradients`: static tables, sizes of programs, arguments.

Tensors are [B, P, ..]. The numbers of one row must lie side by side in memory (`even`); the strides
of rows and samples may be any.
"""

import itertools
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl_nfm.nfm.call import Options, slot_rows, split_sizes
from rl_nfm.nfm.config import Rescale
from rl_nfm.support.triton_launch import launch_from, power

WARPS = 4
UNROLL = 5
"""How many slots a lane fetches together."""
MOST_TURNS = 24
"""Slots or visits that one lane works through, as long as more lanes can share the work."""
MOST_LANES = 16
"""Lanes that may share one row's slots or visits."""
MOST_TOGETHER = 4
"""Visits of a lane by one reader, above which it fetches those two by two, which may waste one."""
MOST_READERS = 8
"""Readers whose gradients one launch gathers: compiling takes time by their square."""


class ReaderGradients(NamedTuple):
    """What the backward of one reader leaves for the gradient of the memory that it read."""

    query: Tensor
    grad: Tensor
    """Gradient of what was read."""
    pairs: Tensor
    """Weights with the gradients of their scores, times the scores' scale, see the kernel."""
    slots: Tensor
    options: Options
    layers: int


def even(tensor: Tensor) -> Tensor:
    """The tensor [B, P, C], copied where the numbers of a row do not lie side by side."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def lengths(options: Options, layers: int) -> tuple[int, ...]:
    """Slots in each layer."""
    target, *sources = split_sizes(options.sizes, layers)
    return tuple(slot_rows(source, target, options.mode).shape[1] for source in sources)


def forward(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """What is read [B, P, H * V], and the weights and slots [B, P, H, k] that each head chose."""
    batch, positions, width = query.shape
    chosen = (batch, positions, options.heads, options.top_k)
    read = query.new_empty(batch, positions, values[0].shape[-1])
    weights = query.new_empty(chosen, dtype=torch.float32)
    slots = query.new_empty(chosen, dtype=torch.int16)
    sizes = _sizes(options.heads, width, read.shape[-1])
    firsts, count = first_slots(options, len(keys))
    top = power(options.top_k)
    split = _split(count) if top <= 16 else 1
    block = min(_rows(sizes["KP"], query, sizes["HP"] * split), power(positions))
    launch(
        "read_memory", (batch * -(-positions // block),), *_strided(query), _layers(keys, values),
        firsts, slot_table(tuple(options.sizes), len(keys), options.mode, query.device), read,
        weights, slots, options.scale, positions, count, **sizes, TOP=options.top_k, TOPP=top,
        NULL=options.null_slot, BLOCK=block, SPLIT=split, UNROLL=_unroll(count, split),
        num_warps=WARPS,
    )  # fmt: skip
    return read, weights, slots


def query_gradient(
    grad: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    weights: Tensor,
    slots: Tensor,
    grad_query: Tensor,
    options: Options,
) -> Tensor:
    """Write the query's gradient; return `ReaderGradients.pairs`, int64 [B, P, H, k]."""
    batch, positions, width = grad_query.shape
    pairs = torch.empty_like(weights, dtype=torch.int64)
    sizes = _sizes(options.heads, width, grad.shape[-1])
    top = power(options.top_k)
    widest = max(sizes["KP"], sizes["VP"])
    block = min(_rows(widest, grad, sizes["HP"]), power(positions))
    launch(
        "query_gradient", (batch * -(-positions // block),), *_strided(grad), _layers(keys, values),
        first_slots(options, len(keys))[0],
        slot_table(tuple(options.sizes), len(keys), options.mode, grad_query.device), weights,
        slots, pairs, *_strided(grad_query), options.scale, positions, **sizes, TOP=options.top_k,
        TOPP=top, BLOCK=block, num_warps=WARPS,
    )  # fmt: skip
    return pairs


def memory_gradient(
    readers: Sequence[ReaderGradients],
    layer: int,
    grad_keys: Tensor,
    grad_values: Tensor,
    heads: int,
) -> None:
    """Write the gradients of one layer's keys and values, summed over all readers of the layer."""
    gradients = grad_keys, grad_values
    if len(readers) > MOST_READERS and grad_keys.dtype != torch.float32:  # to round them once
        wide_keys, wide_values = (torch.empty_like(x, dtype=torch.float32) for x in gradients)
        memory_gradient(readers, layer, wide_keys, wide_values, heads)
        grad_keys.copy_(wide_keys)
        grad_values.copy_(wide_values)
        return
    for first in range(0, len(readers), MOST_READERS):
        some = readers[first : first + MOST_READERS]
        _gather(some, layer, grad_keys, grad_values, heads, add=first > 0)


def _gather(
    readers: Sequence[ReaderGradients],
    layer: int,
    grad_keys: Tensor,
    grad_values: Tensor,
    heads: int,
    *,
    add: bool,
) -> None:
    batch, rows, width = grad_keys.shape
    sizes = _sizes(heads, width, grad_values.shape[-1])
    calls = tuple((tuple(x.options.sizes), x.layers, x.options.mode) for x in readers)
    counts = _counts(calls, layer)
    split = _split(sum(counts))
    unroll = 1 if max(counts) <= MOST_TOGETHER * split else 2
    widest = max(sizes["KP"], sizes["VP"])
    block = min(_rows(widest, grad_keys, sizes["HP"] * split), power(rows))
    tables = _visits(calls, layer, block, split, unroll, grad_keys.device)
    arguments = tuple(
        (*_strided(x.query), *_strided(x.grad), x.pairs, _in_fours(x.slots), x.query.shape[1])
        for x in readers
    )
    launch(
        "memory_gradient", (batch * -(-rows // block),), arguments, *tables, *_strided(grad_keys),
        *_strided(grad_values), rows, **sizes, KEPT=tuple(x.options.top_k for x in readers),
        BLOCK=block, SPLIT=split, UNROLL=unroll, ADD=add, num_warps=WARPS,
    )  # fmt: skip


def _in_fours(slots: Tensor) -> Tensor:
    return slots if slots.shape[-1] % 4 else slots.view(torch.int64)


def launch(name: str, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Launch the kernel of this name, unless the grid is empty."""
    from rl_nfm.nfm import triton_gradients, triton_kernels, triton_linear

    modules = triton_kernels, triton_gradients, triton_linear
    launch_from(modules, name, grid, args, constants)


def _strided(tensor: Tensor) -> tuple[Tensor, int, int]:
    return tensor, tensor.stride(0), tensor.stride(1)


def _layers(keys: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[tuple[Any, ...], ...]:
    return tuple(
        (k, v, k.stride(0), v.stride(0), k.stride(1), v.stride(1))
        for k, v in zip(keys, values, strict=True)
    )


def _sizes(heads: int, keys: int, values: int) -> dict[str, int]:
    k, v = keys // heads, values // heads
    return {"H": heads, "HP": power(heads), "K": k, "KP": power(k), "V": v, "VP": power(v)}


def _split(count: int) -> int:
    """Lanes that share `count` turns."""
    return min(MOST_LANES, power(-(-count // MOST_TURNS)))


def _unroll(count: int, split: int) -> int:
    """Turns to take together: each round waits about as long as one more turn would take."""
    turns = -(-count // split)
    return min(range(min(UNROLL, turns), 0, -1), key=lambda n: -(-turns // n) * (n + 1))


def _rows(columns: int, tensor: Tensor, lanes: int) -> int:
    """Rows for a program of four warps whose threads each have 16 bytes of every half of a lane."""
    halves = 2 if columns >= 16 else 1
    threads = max(1, min(32, columns // halves * tensor.element_size() // 16))
    return max(1, 32 * WARPS // threads // lanes)


def first_slots(options: Options, layers: int) -> tuple[tuple[int, ...], int]:
    """The number of each layer's first slot, and how many slots there are in all layers."""
    ends = list(itertools.accumulate(lengths(options, layers)))
    return (0, *ends[:-1]), ends[-1]


# Captured graphs hold these tables' addresses, so none may ever be dropped.


@cache
def slot_table(sizes: tuple[int, ...], layers: int, mode: Rescale, device: torch.device) -> Tensor:
    """int32 [slots of all layers, P]: the slot's row in its layer; -1 is padding."""
    target, *sources = split_sizes(list(sizes), layers)
    columns = [slot_rows(source, target, mode).T for source in sources]
    return torch.from_numpy(np.ascontiguousarray(np.concatenate(columns))).to(device)


_Calls = tuple[tuple[tuple[int, ...], int, Rescale], ...]
"""Of each reader, `Options.sizes`, the number of layers that it reads and how it rescales."""


@cache
def _readings(calls: _Calls, layer: int) -> list[list[list[int]]]:
    """For each reader and each row of the layer: who can read it, as `_visits` writes it."""
    found = []
    for sizes, layers, mode in calls:
        target, *sources = split_sizes(list(sizes), layers)
        first = sum(slot_rows(source, target, mode).shape[1] for source in sources[:layer])
        rows = slot_rows(sources[layer], target, mode)
        of_rows: list[list[int]] = [[] for _ in range(math.prod(sources[layer]))]
        for position, slot in np.argwhere(rows >= 0).tolist():
            of_rows[rows[position, slot]].append(((first + slot) << 32) + position)
        found.append(of_rows)
    return found


def _counts(calls: _Calls, layer: int) -> list[int]:
    """Most visits of a row by each reader."""
    return [max(map(len, of_rows)) for of_rows in _readings(calls, layer)]


@cache
def _visits(
    calls: _Calls, layer: int, block: int, split: int, unroll: int, device: torch.device
) -> tuple[tuple[int, ...], Tensor, Tensor, Tensor]:
    """`firsts`, `visits`, `turns` and `order` of `triton_gradients.memory_gradient`.

    Each reader has room for as many visits as the kernel looks at, whole turns of all lanes.
    """
    found = _readings(calls, layer)
    counts = np.array([list(map(len, of_rows)) for of_rows in found])
    order = np.lexsort(counts[::-1])
    together = split * unroll
    rooms = [-(-max(1, most) // together) * together for most in counts.max(1).tolist()]
    firsts = [0, *itertools.accumulate(rooms)]
    table = np.full((firsts[-1], len(order)), -1, np.int64)
    for first, of_rows in zip(firsts, found, strict=False):
        for column, row in enumerate(order):
            table[first : first + len(of_rows[row]), column] = of_rows[row]
    turns = [counts[:, order[n : n + block]].max(1) for n in range(0, len(order), block)]
    tensors = (table, np.array(turns, np.int32), order.astype(np.int32))
    visits, most, rows = (torch.from_numpy(x).to(device) for x in tensors)
    return tuple(firsts[:-1]), visits, most, rows
