"""The functions of `attention`, fused for the CPU: `slot_scores`, `masked_top_k`, `mix_values`.

In plain PyTorch the cost of NFM on a CPU is memory traffic: keys and values copied into slots,
products written out before they are summed. The C++ beside this file (`kernels.cpp`) reads every
row where it lies. It is built with the system's compiler when first needed, in about two seconds,
and kept in the user's cache. They are PyTorch operators, so `torch.compile` takes them as they are.

Without a compiler, or with RL_NFM_KERNELS=0 in the environment, the plain path is used.
"""

import ctypes
import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_nfm.nfm.build import library
from rl_nfm.nfm.config import Rescale
from rl_nfm.nfm.rescale import Grid, gather_slots

_SUFFIX = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


class _Entry(ctypes.Structure):
    """`Entry` of the C++ file."""

    _fields_ = [
        ("rows", ctypes.c_void_p),
        ("ld", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("table", ctypes.c_void_p),
        ("length", ctypes.c_int64),
    ]


def available() -> bool:
    """Whether the kernels can be used here; builds them at the first call."""
    return library() is not None


def supports(query: Tensor) -> bool:
    """Whether the kernels take such a tensor."""
    return query.device.type == "cpu" and query.dtype in _SUFFIX


@lru_cache(maxsize=256)
def _table(source: tuple[int, ...], target: tuple[int, ...], mode: Rescale) -> np.ndarray:
    """int32 [P, L]: the row of the source that each slot of each position is; -1 for padding."""
    rows = torch.arange(math.prod(source), dtype=torch.float64).view(1, *source, 1)
    slots, valid = gather_slots(rows, target, mode)
    table = slots[0, ..., 0] if valid is None else slots[0, ..., 0].where(valid, -1.0)
    return np.ascontiguousarray(table.flatten(0, -2).numpy().astype(np.int32))


def _rows(tensor: Tensor) -> Tensor:
    """[B, P, C] as rows [B * P, C] that lie evenly apart; a view where it can be."""
    rows = tensor.flatten(0, 1)
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def _entries(tensors: Sequence[Tensor], grid: Grid) -> tuple[Any, list[Any]]:
    """C array of entries, and what must outlive the call."""
    keep: list[Any] = []
    entries = (_Entry * len(tensors))()
    for entry, tensor, source in zip(entries, tensors, grid.sources, strict=True):
        rows, table = _rows(tensor), _table(source, grid.target, grid.mode)
        entry.rows, entry.ld, entry.count = rows.data_ptr(), rows.stride(0), tensor.shape[1]
        entry.table, entry.length = table.ctypes.data, table.shape[1]
        keep += [rows, table]
    return entries, keep


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _call(name: str, dtype: torch.dtype, *args: Any) -> None:
    built = library()
    assert built is not None
    wrapped = [
        ctypes.c_bool(a) if isinstance(a, bool) else ctypes.c_int64(a) if isinstance(a, int) else a
        for a in args
    ]
    getattr(built, f"{name}_{_SUFFIX[dtype]}")(*wrapped)


def _flat(grid: Grid) -> list[int]:
    """The sizes of a grid as an operator takes them: of the target, then of each source."""
    return list(itertools.chain(grid.target, *grid.sources))


def _grid(sizes: list[int], num_sources: int, mode: str) -> Grid:
    rank = len(sizes) // (num_sources + 1)
    target, *sources = (tuple(sizes[i : i + rank]) for i in range(0, len(sizes), rank))
    return Grid(target, tuple(sources), mode)  # pyright: ignore[reportArgumentType]


def slot_scores(
    query: Tensor, keys: Sequence[Tensor], grid: Grid, heads: int, scale: float, null_slot: bool
) -> Tensor:
    """See `attention.slot_scores`."""
    return _slot_scores(query, list(keys), _flat(grid), grid.mode, heads, scale, null_slot)


@torch.library.custom_op("rl_nfm::slot_scores", mutates_args=(), device_types="cpu")
def _slot_scores(
    query: Tensor,
    keys: list[Tensor],
    sizes: list[int],
    mode: str,
    heads: int,
    scale: float,
    null_slot: bool,
) -> Tensor:
    scores = _new_scores(query, keys, sizes, mode, heads, scale, null_slot)
    rows = _rows(query)
    entries, keep = _entries(keys, _grid(sizes, len(keys), mode))
    batch, positions, _, _ = scores.shape
    _call(
        "scores_forward", query.dtype, _pointer(rows), rows.stride(0), entries, len(keys), batch,
        positions, heads, rows.shape[1] // heads, null_slot, ctypes.c_double(scale),
        _pointer(scores),
    )  # fmt: skip
    del keep
    return scores


@_slot_scores.register_fake
def _new_scores(
    query: Tensor,
    keys: list[Tensor],
    sizes: list[int],
    mode: str,
    heads: int,
    scale: float,
    null_slot: bool,
) -> Tensor:
    del scale
    slots = _grid(sizes, len(keys), mode).num_slots + null_slot
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty((*query.shape[:2], heads, slots), dtype=dtype)


@torch.library.custom_op("rl_nfm::slot_scores_backward", mutates_args=(), device_types="cpu")
def _scores_backward(
    grad: Tensor,
    query: Tensor,
    keys: list[Tensor],
    sizes: list[int],
    mode: str,
    scale: float,
    null_slot: bool,
) -> list[Tensor]:
    grads = _new_grads(grad, query, keys, sizes, mode, scale, null_slot)
    grad, rows = grad.contiguous(), _rows(query)
    entries, keep = _entries(keys, _grid(sizes, len(keys), mode))
    batch, positions, heads, _ = grad.shape
    pointers = (ctypes.c_void_p * len(keys))(*(g.data_ptr() for g in grads[1:]))
    _call(
        "scores_backward", query.dtype, _pointer(grad), _pointer(rows), rows.stride(0), entries,
        len(keys), batch, positions, heads, rows.shape[1] // heads, null_slot,
        ctypes.c_double(scale), _pointer(grads[0]), pointers,
    )  # fmt: skip
    del keep
    return grads


@_scores_backward.register_fake
def _new_grads(
    grad: Tensor,
    query: Tensor,
    keys: list[Tensor],
    sizes: list[int],
    mode: str,
    scale: float,
    null_slot: bool,
) -> list[Tensor]:
    del grad, sizes, mode, scale, null_slot
    return [t.new_empty(t.shape) for t in (query, *keys)]


def _save_scores(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    query, keys, sizes, mode, _, scale, null_slot = inputs
    ctx.save_for_backward(query, *keys)
    ctx.options = sizes, mode, scale, null_slot


def _differentiate_scores(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    query, *keys = ctx.saved_tensors
    grad_query, *grad_keys = _scores_backward(grad, query, keys, *ctx.options)
    return grad_query, grad_keys, None, None, None, None, None


_slot_scores.register_autograd(_differentiate_scores, setup_context=_save_scores)


def mix_values(weights: Tensor, values: Sequence[Tensor], grid: Grid) -> Tensor:
    """See `attention.mix_values`; the gradient of a weight of 0 is given as 0.

    No sparsifier passes that gradient on: a slot has the weight 0 because it was cut.
    """
    return _mix_values(weights, list(values), _flat(grid), grid.mode)


@torch.library.custom_op("rl_nfm::mix_values", mutates_args=(), device_types="cpu")
def _mix_values(weights: Tensor, values: list[Tensor], sizes: list[int], mode: str) -> Tensor:
    read = _new_read(weights, values, sizes, mode)
    weights, grid = weights.contiguous(), _grid(sizes, len(values), mode)
    entries, keep = _entries(values, grid)
    batch, positions, heads, slots = weights.shape
    _call(
        "mix_forward", read.dtype, _pointer(weights), entries, len(values), batch, positions,
        heads, read.shape[-1] // heads, slots > grid.num_slots, _pointer(read),
    )  # fmt: skip
    del keep
    return read


@_mix_values.register_fake
def _new_read(weights: Tensor, values: list[Tensor], sizes: list[int], mode: str) -> Tensor:
    del sizes, mode
    return values[0].new_empty((*weights.shape[:2], values[0].shape[-1]))


@torch.library.custom_op("rl_nfm::mix_values_backward", mutates_args=(), device_types="cpu")
def _mix_backward(
    grad: Tensor, weights: Tensor, values: list[Tensor], sizes: list[int], mode: str
) -> list[Tensor]:
    grads = _new_mix_grads(grad, weights, values, sizes, mode)
    rows, weights, grid = _rows(grad), weights.contiguous(), _grid(sizes, len(values), mode)
    entries, keep = _entries(values, grid)
    batch, positions, heads, slots = weights.shape
    pointers = (ctypes.c_void_p * len(values))(*(g.data_ptr() for g in grads[1:]))
    _call(
        "mix_backward", grad.dtype, _pointer(rows), rows.stride(0), _pointer(weights), entries,
        len(values), batch, positions, heads, rows.shape[1] // heads, slots > grid.num_slots,
        _pointer(grads[0]), pointers,
    )  # fmt: skip
    del keep
    return grads


@_mix_backward.register_fake
def _new_mix_grads(
    grad: Tensor, weights: Tensor, values: list[Tensor], sizes: list[int], mode: str
) -> list[Tensor]:
    del grad, sizes, mode
    return [t.new_empty(t.shape) for t in (weights, *values)]


def _save_mix(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    weights, values, *ctx.options = inputs
    ctx.save_for_backward(weights, *values)


def _differentiate_mix(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weights, *values = ctx.saved_tensors
    grad_weights, *grad_values = _mix_backward(grad, weights, values, *ctx.options)
    return grad_weights, grad_values, None, None


_mix_values.register_autograd(_differentiate_mix, setup_context=_save_mix)


@torch.library.custom_op("rl_nfm::masked_top_k", mutates_args=(), device_types="cpu")
def masked_top_k(scores: Tensor, k: int) -> Tensor:
    """See `attention.masked_top_k`; of equal scores the first are kept."""
    scores = scores.contiguous()
    weights = torch.empty_like(scores)
    slots = scores.shape[-1]
    rows = scores.numel() // slots
    _call("top_k_forward", scores.dtype, _pointer(scores), rows, slots, k, _pointer(weights))
    return weights


@masked_top_k.register_fake
def _new_weights(scores: Tensor, k: int) -> Tensor:
    del k
    return scores.new_empty(scores.shape)


def _save_top_k(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del inputs
    ctx.save_for_backward(output)


def _differentiate_top_k(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (weights,) = ctx.saved_tensors
    # Softmax's own backward: a weight of 0 gets none.
    return torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype), None


masked_top_k.register_autograd(_differentiate_top_k, setup_context=_save_top_k)
