"""The C++ of `kernels` as Python sees it: what it is called with, and what it keeps.

Shapes as in `kernels`.
"""

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rl_nfm.rims.products import LayerCall
from rl_nfm.rims.step import not_none
from rl_nfm.support.cpp import library

SOURCE = Path(__file__).with_name("kernels.cpp")
SUFFIX = {torch.float32: "float32", torch.float64: "float64"}
_GATES = {None: 0, "null": 1, "across": 2}


class Tape(NamedTuple):
    """What the forward keeps for the backward, or of one step only (T = 1) where none will come.

    Parts that the form of RIMs does not have are None.
    """

    hidden: Tensor
    """[n, T + 1, B, s], always of all steps: the state before each, and after the last."""
    cell: Tensor | None
    """As `hidden`."""
    active: Tensor
    """bool [n, T, B, 1], always of all steps."""
    input_gate: Tensor | None
    """[n, T, B, 1]."""
    acts: Tensor
    """[n, T, B, G]: gates after their nonlinearity."""
    extra: Tensor
    """[n, T, B, s]: see `StepSaved`."""
    shown: Tensor
    """[n, T, B, s]: what RIMs show each other; T = 1 where they do not."""
    projected: Tensor | None
    """[n, T, B, h (2 d + e)]: what is shown, times its weights."""
    probs: Tensor | None
    """[n, T, B, h n]: how much each head of a RIM attends to every RIM."""
    read: Tensor | None
    """[n, T, B, h e]."""
    update: Tensor | None
    """[n, T, B, s or 2 s]: the communication, after its nonlinearity; undefined where inactive."""


class _View(ctypes.Structure):
    """`View` of the C++ file."""

    _fields_ = [(name, ctypes.c_int64) for name in ("at", "rim", "step", "row")]


_SIZES = (
    "steps", "rims", "batch", "size", "heads", "key", "value", "num_active", "threads", "lstm",
    "gate", "mask_input", "show_previous", "gated",
)  # fmt: skip
_VIEWS = (
    "drive", "base", "hidden_bias", "key_query", "rank_query", "output_bias", "dropout", "valid",
    "reset", *Tape._fields, "output", "product", "of_output", "of_hidden", "of_cell", "of_update",
    "of_read", "of_projected", "of_shown", "of_gates", "of_product", "of_key_query",
)  # fmt: skip


class _Layer(ctypes.Structure):
    """`Layer` of the C++ file."""

    _fields_ = [(name, ctypes.c_int64) for name in _SIZES] + [(name, _View) for name in _VIEWS]


class Call:
    """Calls the functions of the C++ file on one set of tensors, which it keeps alive."""

    def __init__(self, layer: LayerCall, tape: Tape, **more: Tensor | None):
        """`more` are other tensors, [n, T, B, ...], with 1 where they are broadcast."""
        spec, weights, sequence, drive = layer
        self.library, self.suffix = library(SOURCE), SUFFIX[drive.dtype]
        n, steps, batch, _ = drive.shape
        size = weights.hidden.shape[1]
        value = gated = 0
        if spec.heads:
            value = not_none(weights.output).shape[1] // spec.heads
            gated = not_none(weights.output).shape[2] > size
        self.struct = _Layer(
            steps, n, batch, size, spec.heads, spec.key_size, value, spec.num_active,
            torch.get_num_threads(), spec.cell == "lstm", _GATES[spec.gate], spec.mask_input,
            spec.source == "previous", gated,
        )  # fmt: skip
        views = {
            "drive": drive,
            "base": _constant(weights.base),
            "hidden_bias": _constant(weights.hidden_bias),
            "key_query": sequence.key_query,
            "rank_query": _constant(weights.rank_query),
            "output_bias": _constant(weights.output_bias),
            "dropout": sequence.dropout,
            "valid": None if sequence.valid is None else sequence.valid[None, ..., None],
            "reset": None if sequence.reset is None else sequence.reset[None, ..., None],
            **tape._asdict(),
            **more,
        }
        self.views = {name: dense(view) for name, view in views.items() if view is not None}
        for name, view in self.views.items():
            strides = [0 if view.shape[i] == 1 else view.stride(i) for i in range(3)]
            setattr(self.struct, name, _View(view.data_ptr(), *strides))

    def __call__(self, name: str, *index: int) -> None:
        """Call a function of the C++ on a step and, in the backward, its place in the chunk."""
        function = getattr(self.library, f"{name}_{self.suffix}")
        function(ctypes.byref(self.struct), *(ctypes.c_int64(step) for step in index))


def _constant(tensor: Tensor | None) -> Tensor | None:
    """[n, 1, width] to [n, 1, 1, width]."""
    return None if tensor is None else tensor.unsqueeze(1)


def dense(view: Tensor) -> Tensor:
    """A tensor to be read, copied if its last dimension is not dense.

    The tensors that are written to are made dense.
    """
    view = view.resolve_neg()
    return view if view.stride(-1) == 1 or view.shape[-1] == 1 else view.contiguous()
