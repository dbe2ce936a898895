"""Launches the kernels of `triton_kernels`: static tables, sizes of programs, arguments.

Tensors are [B, P, ..]. The numbers of one row must lie side by side in memory (`even`); the strides
of rows and samples may be any.
"""

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl_nfm.nfm.call import Options, slot_rows, split_sizes
from rl_nfm.nfm.config import Rescale

WARPS = 4
ELEMENTS = 4096
"""How many numbers of keys or values a program of four warps holds at a time: 32 in each thread."""
UNROLL = 4
"""How many slots or visits a lane fetches together."""
MOST_TURNS = 24
"""Slots or visits that one lane works through, as long as more lanes can share the work."""
MOST_LANES = 16
"""Lanes that may share one row's slots or visits."""


class ReaderGradients(NamedTuple):
    """What the backward of one reader leaves for the gradient of the memory that it read."""

    query: Tensor
    grad: Tensor
    """Gradient of what was read."""
    weights: Tensor
    scores: Tensor
    """Gradient of the scores, times the scale of the scores."""
    slots: Tensor
    options: Options
    layers: int


def power(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


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
    firsts, count = _firsts(options, len(keys))
    top = power(options.top_k)
    split = _split(count) if top <= 16 else 1
    threads = max(1, min(32, sizes["KP"] * query.element_size() // 16))
    block = min(
        max(1, 32 * WARPS // threads // (sizes["HP"] * split)),
        _block(sizes, top),
        power(positions),
    )
    _launch(
        "read_memory", batch * -(-positions // block), *_strided(query), _layers(keys, values),
        firsts, _table(tuple(options.sizes), len(keys), options.mode, query.device), read, weights,
        slots, options.scale, positions, count, **sizes, TOP=options.top_k, TOPP=top,
        NULL=options.null_slot, BLOCK=block, SPLIT=split, UNROLL=_unroll(count, split),
        num_warps=_warps(block * sizes["HP"] * top * max(sizes["KP"], sizes["VP"])),
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
    """Write the query's gradient; return that of the scores times their scale, [B, P, H, k]."""
    batch, positions, width = grad_query.shape
    scores = torch.empty_like(weights)
    sizes = _sizes(options.heads, width, grad.shape[-1])
    top = power(options.top_k)
    block = min(_block(sizes, top), power(positions))
    _launch(
        "query_gradient", batch * -(-positions // block), *_strided(grad), _layers(keys, values),
        _firsts(options, len(keys))[0],
        _table(tuple(options.sizes), len(keys), options.mode, grad_query.device), weights, slots,
        scores, *_strided(grad_query), options.scale, positions, **sizes, TOP=options.top_k,
        TOPP=top, BLOCK=block,
        num_warps=_warps(block * sizes["HP"] * top * max(sizes["KP"], sizes["VP"])),
    )  # fmt: skip
    return scores


def memory_gradient(
    readers: Sequence[ReaderGradients],
    layer: int,
    grad_keys: Tensor,
    grad_values: Tensor,
    heads: int,
) -> None:
    """Write the gradients of one layer's keys and values, summed over all readers of the layer."""
    batch, rows, width = grad_keys.shape
    sizes = _sizes(heads, width, grad_values.shape[-1])
    calls = tuple((tuple(x.options.sizes), x.layers, x.options.mode) for x in readers)
    visits = _visits(calls, layer, grad_keys.device)
    count = visits.shape[1]
    split = _split(count)
    threads = max(1, min(32, max(sizes["KP"], sizes["VP"]) * grad_keys.element_size() // 16))
    block = min(max(1, 32 * WARPS // threads // (sizes["HP"] * split)), power(rows))
    arguments = tuple(
        (*_strided(x.query), *_strided(x.grad), x.weights, x.scores, x.slots, x.query.shape[1],
         x.options.top_k) for x in readers
    )  # fmt: skip
    _launch(
        "memory_gradient", batch * -(-rows // block), arguments, visits, *_strided(grad_keys),
        *_strided(grad_values), count, rows, **sizes, TOP=max(x.options.top_k for x in readers),
        BLOCK=block, SPLIT=split, UNROLL=_unroll(count, split), num_warps=WARPS,
    )  # fmt: skip


def _launch(name: str, programs: int, *args: Any, **constants: Any) -> None:
    from rl_nfm.nfm import triton_kernels

    if programs:
        with torch.cuda.device_of(_first_tensor(args)):
            getattr(triton_kernels, name)[(programs,)](*args, **constants, enable_fp_fusion=True)


def _first_tensor(args: Any) -> Tensor:
    while not isinstance(args, Tensor):
        args = args[0]
    return args


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


def _block(sizes: dict[str, int], top: int) -> int:
    return max(1, ELEMENTS // (sizes["HP"] * top * max(sizes["KP"], sizes["VP"])))


def _warps(elements: int) -> int:
    return WARPS if elements <= 2 * ELEMENTS else 2 * WARPS


def _split(count: int) -> int:
    """Lanes that share `count` turns."""
    return min(MOST_LANES, power(-(-count // MOST_TURNS)))


def _unroll(count: int, split: int) -> int:
    return min(UNROLL, power(-(-count // split)))


def _firsts(options: Options, layers: int) -> tuple[tuple[int, ...], int]:
    """The number of each layer's first slot, and how many slots there are in all layers."""
    ends = list(itertools.accumulate(lengths(options, layers)))
    return (0, *ends[:-1]), ends[-1]


# Captured graphs hold these tables' addresses, so none may ever be dropped.


@cache
def _table(sizes: tuple[int, ...], layers: int, mode: Rescale, device: torch.device) -> Tensor:
    """int32 [slots of all layers, P]: the slot's row in its layer; -1 is padding."""
    target, *sources = split_sizes(list(sizes), layers)
    columns = [slot_rows(source, target, mode).T for source in sources]
    return torch.from_numpy(np.ascontiguousarray(np.concatenate(columns))).to(device)


@cache
def _visits(
    calls: tuple[tuple[tuple[int, ...], int, Rescale], ...], layer: int, device: torch.device
) -> Tensor:
    """int32 [2, visits, rows of the layer]: see `triton_kernels.memory_gradient`.

    Args:
        calls: for each reader, `Options.sizes`, the number of layers it reads and how it rescales.
        layer: index of the written layer in the memory.
        device: of the table.
    """
    found: list[list[tuple[int, int]]] = []
    for reader, (sizes, layers, mode) in enumerate(calls):
        target, *sources = split_sizes(list(sizes), layers)
        first = sum(slot_rows(source, target, mode).shape[1] for source in sources[:layer])
        rows = slot_rows(sources[layer], target, mode)
        found = found or [[] for _ in range(int(np.prod(sources[layer])))]
        for position, slot in itertools.product(*map(range, rows.shape)):
            if rows[position, slot] >= 0:
                found[rows[position, slot]].append((position, (reader << 16) + first + slot))
    table = np.full((2, max(map(len, found)), len(found)), -1, np.int32)
    for row, visits in enumerate(found):
        if visits:
            table[:, : len(visits), row] = np.array(visits).T
    return torch.from_numpy(table).to(device)
