"""Calls of the C++ kernels for NFM's attention: tensors to addresses and sizes.

Shapes: as in `attention`; k slots that a head may attend to.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl_nfm.nfm import operators
from rl_nfm.nfm.call import Options, slot_rows, split_sizes
from rl_nfm.support.cpp import library

SOURCE = Path(__file__).with_name("kernels.cpp")
SUFFIX = {torch.float32: "float32", torch.float64: "float64"}


class _Layer(ctypes.Structure):
    """`Layer` of the C++ file."""

    _fields_ = [
        ("keys", ctypes.c_void_p),
        ("keys_ld", ctypes.c_int64),
        ("values", ctypes.c_void_p),
        ("values_ld", ctypes.c_int64),
        ("grad_keys", ctypes.c_void_p),
        ("grad_values", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("table", ctypes.c_void_p),
        ("length", ctypes.c_int64),
    ]


def run_forward(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """What is read, and of each head the weights and rows [B, P, H, k] that it attended to."""
    read, weights, rows = operators.empty_results(query, keys, values, *options)
    queries = _rows(query)
    layers, keep = _layers(keys, values, options)
    _call(
        "forward", query.dtype, _pointer(queries), _int(queries.stride(0)), layers,
        _sizes(query, read, len(keys), options), ctypes.c_bool(options.null_slot),
        ctypes.c_double(options.scale), _pointer(read), _pointer(weights), _pointer(rows),
    )  # fmt: skip
    del keep
    return read, weights, rows


def run_backward(
    grad: Tensor,
    query: Tensor,
    memory: Sequence[Tensor],
    weights: Tensor,
    rows: Tensor,
    sums: Sequence[Tensor],
    options: Options,
) -> Tensor:
    """The query's gradient; those of keys and values are added to `sums`."""
    half = len(memory) // 2
    grad_query = query.new_empty(query.shape)
    reads, queries = _rows(grad), _rows(query)
    layers, keep = _layers(memory[:half], memory[half:], options)
    for layer, grad_keys, grad_values in zip(layers, sums[:half], sums[half:], strict=True):
        layer.grad_keys, layer.grad_values = grad_keys.data_ptr(), grad_values.data_ptr()
    _call(
        "backward", query.dtype, _pointer(reads), _int(reads.stride(0)), _pointer(queries),
        _int(queries.stride(0)), layers, _sizes(query, grad, half, options),
        ctypes.c_double(options.scale), _pointer(weights), _pointer(rows), _pointer(grad_query),
    )  # fmt: skip
    del keep
    return grad_query


def _layers(
    keys: Sequence[Tensor], values: Sequence[Tensor], options: Options
) -> tuple[Any, list[Any]]:
    """C array of the memory's layers, and what must outlive the call."""
    target, *sources = split_sizes(options.sizes, len(keys))
    keep: list[Any] = []
    layers = (_Layer * len(keys))()
    for layer, key, value, source in zip(layers, keys, values, sources, strict=True):
        key_rows, value_rows, table = (
            _rows(key),
            _rows(value),
            slot_rows(source, target, options.mode),
        )
        layer.keys, layer.keys_ld = key_rows.data_ptr(), key_rows.stride(0)
        layer.values, layer.values_ld = value_rows.data_ptr(), value_rows.stride(0)
        layer.count, layer.table, layer.length = key.shape[1], table.ctypes.data, table.shape[1]
        keep += [key_rows, value_rows, table]
    return layers, keep


def _rows(tensor: Tensor) -> Tensor:
    """[B, P, C] as rows [B * P, C] that lie evenly apart; a view where it can be."""
    rows = tensor.flatten(0, 1)
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def _sizes(query: Tensor, read: Tensor, layers: int, options: Options) -> Any:
    """`Sizes` of the C++ file."""
    batch, positions, keys = query.shape
    heads, values = options.heads, read.shape[-1]
    sizes = (layers, batch, positions, heads, keys // heads, values // heads, options.top_k)
    return (ctypes.c_int64 * 7)(*sizes)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _int(number: int) -> ctypes.c_int64:
    return ctypes.c_int64(number)


def _call(name: str, dtype: torch.dtype, *args: Any) -> None:
    built = library(SOURCE)
    assert built is not None
    getattr(built, f"{name}_{SUFFIX[dtype]}")(*args)
