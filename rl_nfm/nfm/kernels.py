"""The functions of `attention`, fused for the CPU: `slot_scores`, `masked_top_k`, `mix_values`.

In plain PyTorch the cost of NFM on a CPU is memory traffic: keys and values copied into slots,
products written out before they are summed. The C++ beside this file (`kernels.cpp`) reads every
row where it lies. It is built with the system's compiler when first needed, in about two seconds,
and kept in the user's cache. They are PyTorch operators, so `torch.compile` takes them as they are.

Without a compiler, or with RL_NFM_KERNELS=0 in the environment, the plain path is used.
"""

import ctypes
import hashlib
import logging
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_nfm.nfm.config import Rescale
from rl_nfm.nfm.rescale import gather_slots, window_offsets

_SOURCE = Path(__file__).with_suffix(".cpp")
_SUM_FREELY = ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math")
_FLAGS = ("-O3", "-march=native", *_SUM_FREELY, "-std=c++17", "-fopenmp", "-fPIC", "-shared")
_SUFFIX = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
_log = logging.getLogger(__name__)


class _Entry(ctypes.Structure):
    """`Entry` of the C++ file."""

    _fields_ = [
        ("rows", ctypes.c_void_p),
        ("ld", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("table", ctypes.c_void_p),
        ("length", ctypes.c_int64),
    ]


@cache
def _library() -> ctypes.CDLL | None:
    """The built kernels; None where they are switched off or cannot be built."""
    if os.environ.get("RL_NFM_KERNELS", "1") == "0":
        return None
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        _log.warning("no C++ compiler: NFM runs without its CPU kernels, slower")
        return None
    try:
        return ctypes.CDLL(str(_build(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        _log.warning("NFM runs without its CPU kernels, slower: %s", reason)
        return None


def _build(compiler: str) -> Path:
    """Path of the shared library, built unless the cache has it."""
    # What -march=native stands for here: another machine on the same home needs its own build.
    target = subprocess.run(
        [compiler, *_FLAGS, "-E", "-v", "-x", "c++", os.devnull],
        check=True, capture_output=True, text=True,
    ).stderr  # fmt: skip
    key = hashlib.sha256(_SOURCE.read_bytes() + target.encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rl_nfm"
    library = folder / f"kernels-{key}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / library.name
            subprocess.run(
                [compiler, *_FLAGS, str(_SOURCE), "-o", str(built)],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            built.replace(library)
    return library


def available() -> bool:
    """Whether the kernels can be used here; builds them at the first call."""
    return _library() is not None


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
    """[B, S.., C] as rows [B * S.., C] that lie evenly apart; a view where it can be."""
    rows = tensor.flatten(0, -2)
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def _entries(tensors: Sequence[Tensor], sizes: Sequence[int], mode: str) -> tuple[Any, list[Any]]:
    """C array of entries, and what must outlive the call."""
    keep: list[Any] = []
    entries = (_Entry * len(tensors))()
    for entry, tensor in zip(entries, tensors, strict=True):
        rows = _rows(tensor)
        table = _table(tuple(tensor.shape[1:-1]), tuple(sizes), mode)  # pyright: ignore
        entry.rows, entry.ld = rows.data_ptr(), rows.stride(0)
        entry.count, entry.length = rows.shape[0] // max(1, tensor.shape[0]), table.shape[1]
        entry.table = table.ctypes.data
        keep += [rows, table]
    return entries, keep


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _call(name: str, dtype: torch.dtype, *args: Any) -> None:
    library = _library()
    assert library is not None
    wrapped = [
        ctypes.c_bool(a) if isinstance(a, bool) else ctypes.c_int64(a) if isinstance(a, int) else a
        for a in args
    ]
    getattr(library, f"{name}_{_SUFFIX[dtype]}")(*wrapped)


def _sums(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _num_slots(tensors: Sequence[Tensor], sizes: Sequence[int], mode: Any, null: bool) -> int:
    return null + sum(len(window_offsets(t.shape[1:-1], sizes, mode)) for t in tensors)


@torch.library.custom_op("rl_nfm::slot_scores", mutates_args=(), device_types="cpu")
def slot_scores(
    query: Tensor, keys: list[Tensor], heads: int, scale: float, mode: str, null_slot: bool
) -> Tensor:
    """See `attention.slot_scores`."""
    scores = _new_scores(query, keys, heads, scale, mode, null_slot)
    rows = _rows(query)
    entries, keep = _entries(keys, query.shape[1:-1], mode)
    batch, positions, _, _ = scores.shape
    _call(
        "scores_forward", query.dtype, _pointer(rows), rows.stride(0), entries, len(keys), batch,
        positions, heads, rows.shape[1] // heads, null_slot, ctypes.c_double(scale),
        _pointer(scores),
    )  # fmt: skip
    del keep
    return scores


@slot_scores.register_fake
def _new_scores(
    query: Tensor, keys: list[Tensor], heads: int, scale: float, mode: str, null_slot: bool
) -> Tensor:
    del scale
    sizes = query.shape[1:-1]
    slots = _num_slots(keys, sizes, mode, null_slot)
    shape = (query.shape[0], math.prod(sizes), heads, slots)
    return query.new_empty(shape, dtype=_sums(query.dtype))


@torch.library.custom_op("rl_nfm::slot_scores_backward", mutates_args=(), device_types="cpu")
def _scores_backward(
    grad: Tensor, query: Tensor, keys: list[Tensor], scale: float, mode: str, null_slot: bool
) -> list[Tensor]:
    grads = _new_grads(grad, query, keys, scale, mode, null_slot)
    grad, rows = grad.contiguous(), _rows(query)
    entries, keep = _entries(keys, query.shape[1:-1], mode)
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
    grad: Tensor, query: Tensor, keys: list[Tensor], scale: float, mode: str, null_slot: bool
) -> list[Tensor]:
    del grad, scale, mode, null_slot
    return [t.new_empty(t.shape) for t in (query, *keys)]


def _save_scores(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    query, keys, _, *ctx.options = inputs
    ctx.save_for_backward(query, *keys)


def _differentiate_scores(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    query, *keys = ctx.saved_tensors
    grad_query, *grad_keys = _scores_backward(grad, query, keys, *ctx.options)
    return grad_query, grad_keys, None, None, None, None


slot_scores.register_autograd(_differentiate_scores, setup_context=_save_scores)


@torch.library.custom_op("rl_nfm::mix_values", mutates_args=(), device_types="cpu")
def _mix_values(weights: Tensor, values: list[Tensor], sizes: list[int], mode: str) -> Tensor:
    read = _new_read(weights, values, sizes, mode)
    weights = weights.contiguous()
    entries, keep = _entries(values, sizes, mode)
    batch, positions, heads, slots = weights.shape
    null_slot = slots > _num_slots(values, sizes, mode, False)
    _call(
        "mix_forward", read.dtype, _pointer(weights), entries, len(values), batch, positions,
        heads, read.shape[-1] // heads, null_slot, _pointer(read),
    )  # fmt: skip
    del keep
    return read


@_mix_values.register_fake
def _new_read(weights: Tensor, values: list[Tensor], sizes: list[int], mode: str) -> Tensor:
    del mode
    return values[0].new_empty((weights.shape[0], *sizes, values[0].shape[-1]))


@torch.library.custom_op("rl_nfm::mix_values_backward", mutates_args=(), device_types="cpu")
def _mix_backward(
    grad: Tensor, weights: Tensor, values: list[Tensor], sizes: list[int], mode: str
) -> list[Tensor]:
    grads = _new_mix_grads(grad, weights, values, sizes, mode)
    rows, weights = _rows(grad), weights.contiguous()
    entries, keep = _entries(values, sizes, mode)
    batch, positions, heads, slots = weights.shape
    null_slot = slots > _num_slots(values, sizes, mode, False)
    pointers = (ctypes.c_void_p * len(values))(*(g.data_ptr() for g in grads[1:]))
    _call(
        "mix_backward", grad.dtype, _pointer(rows), rows.stride(0), _pointer(weights), entries,
        len(values), batch, positions, heads, rows.shape[1] // heads, null_slot,
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


def mix_values(
    weights: Tensor, values: Sequence[Tensor], sizes: Sequence[int], mode: Rescale
) -> Tensor:
    """See `attention.mix_values`; the gradient of a weight of 0 is given as 0.

    No sparsifier passes that gradient on: a slot has the weight 0 because it was cut.
    """
    return _mix_values(weights, list(values), list(sizes), mode)


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
