"""The loop of `unroll` on the CPU, with all between the matrix products in C++.

A step has about a hundred small operations beside its seven products; PyTorch goes over memory for
each, and two threads meet after each. The C++ beside this file does them in four functions of the
forward and three of the backward. What a step leaves is written where the products of several steps
read it, so that nothing is put together later. `step` is the definition.

Without a compiler, or with RL_NFM_KERNELS=0 in the environment, the steps run in plain PyTorch.

Shapes as in `step`, and T time steps; what is kept of them is [n, T, B, ...].
"""

import ctypes
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl_nfm.rims.products import LayerCall, Products, StepBlock, Unrolled
from rl_nfm.rims.step import not_none
from rl_nfm.support.cpp import library, runs_eagerly

SOURCE = Path(__file__).with_name("kernels.cpp")
_SUFFIX = {torch.float32: "float32", torch.float64: "float64"}
_GATES = {None: 0, "null": 1, "across": 2}


class Tape(NamedTuple):
    """What the forward leaves for the backward; without one, of the last step only (T = 1).

    None where the form has no such part.
    """

    hidden: Tensor
    """[n, T + 1, B, s], with all steps: before each, and after the last."""
    cell: Tensor | None
    """As `hidden`."""
    active: Tensor
    """bool [n, T, B, 1], with all steps."""
    input_gate: Tensor | None
    """[n, T, B, 1]."""
    acts: Tensor
    """[n, T, B, G]: gates after their nonlinearity."""
    extra: Tensor
    """[n, T, B, s]: the block's own."""
    shown: Tensor
    """[n, T, B, s]: what RIMs show each other; T = 1 where they do not."""
    projected: Tensor | None
    """[n, T, B, h (2 d + e)]: what is shown, times its weights."""
    probs: Tensor | None
    """[n, T, B, h n]: of each RIM, how much its heads read from every other."""
    read: Tensor | None
    """[n, T, B, h e]."""
    update: Tensor | None
    """[n, T, B, s or 2 s], after its nonlinearity; undefined where inactive."""


def supports(*tensors: Tensor | None) -> bool:
    """Whether these can be used here, of one type on the CPU; builds them at the first call."""
    present = [x for x in tensors if x is not None]
    floats = [x for x in present if x.dtype != torch.bool]
    return (
        runs_eagerly(*present)
        and all(x.device.type == "cpu" for x in present)
        and floats[0].dtype in _SUFFIX
        and all(x.dtype == floats[0].dtype for x in floats)
        and library(SOURCE) is not None
    )


def forward(
    layer: LayerCall,
    hidden: Tensor,
    cell: Tensor | None,
    *,
    keep: bool,
) -> tuple[Unrolled, list[Tensor | None]]:
    """All steps; and, to `keep`, what `backward` needs.

    Raises:
        ValueError: shapes or types that do not fit each other.
    """
    _check(layer, hidden, cell)
    spec, weights, sequence, drive = layer
    n, steps, batch, _ = drive.shape
    tape = _new_tape(layer, keep)
    tape.hidden[:, 0] = sequence.reset_state(hidden, 0)
    if tape.cell is not None:
        tape.cell[:, 0] = sequence.reset_state(not_none(cell), 0)
    output = drive.new_empty(steps, batch, n, hidden.shape[-1])
    product = None if spec.cell == "lstm" else drive.new_empty(n, 1, batch, drive.shape[-1])
    call = _Call(layer, tape, output=output.permute(2, 0, 1, 3), product=product)
    read_weight = None if weights.output is None else weights.output.expand(n, -1, -1)
    for t in range(steps):
        at = t if keep else 0
        call("weigh_input", t)
        if product is None:
            acts = tape.acts[:, at]
            torch.baddbmm(acts, tape.hidden[:, t], weights.hidden, out=acts)
        else:
            torch.bmm(tape.hidden[:, t], weights.hidden, out=product[:, 0])
        call("run_blocks", t)
        if spec.heads:
            projected, update = not_none(tape.projected)[:, at], not_none(tape.update)[:, at]
            torch.bmm(tape.shown[:, at], not_none(weights.project), out=projected)
            call("communicate", t)
            torch.bmm(not_none(tape.read)[:, at], not_none(read_weight), out=update)
        call("finish", t)
    last_cell = None if tape.cell is None else tape.cell[:, -1].clone()
    active = tape.active.squeeze(-1).permute(1, 2, 0).clone(memory_format=torch.contiguous_format)
    return Unrolled(output, tape.hidden[:, -1].clone(), last_cell, active), list(tape)


def backward(
    layer: LayerCall, saved: list[Any], grads: tuple[Tensor | None, ...]
) -> tuple[Products, Tensor, Tensor | None]:
    """See `unroll`: of the products, and of the states before the first step."""
    spec, weights, sequence, drive = layer
    tape, (of_output, *of_states) = Tape(*saved), grads
    n, steps = drive.shape[:2]
    products = Products(weights, sequence)
    some = min(products.limit, steps)
    own = _new_gradients(layer, some)
    for buffer, grad in zip((own.of_hidden, own.of_cell), of_states, strict=True):
        if buffer is not None:
            buffer[:, 0] = 0 if grad is None else grad
    call = _Call(
        layer,
        tape,
        of_output=None if of_output is None else _dense(of_output).permute(2, 0, 1, 3),
        of_key_query=products.sequence.key_query,
        **own._asdict(),
    )
    of_product = own.of_gates if own.of_product is None else own.of_product
    of_hidden, hidden_weight = own.of_hidden[:, 0], weights.hidden.transpose(1, 2)
    for t in reversed(range(steps)):
        at = t % some
        call("finish_backward", t, at)
        if spec.heads:
            project, output = not_none(weights.project), not_none(weights.output).expand(n, -1, -1)
            of_update, of_projected = (
                not_none(own.of_update)[:, at],
                not_none(own.of_projected)[:, at],
            )
            torch.bmm(of_update, output.transpose(1, 2), out=not_none(own.of_read)[:, 0])
            call("communicate_backward", t, at)
            torch.bmm(of_projected, project.transpose(1, 2), out=not_none(own.of_shown)[:, 0])
        call("blocks_backward", t, at)
        torch.baddbmm(of_hidden, of_product[:, at], hidden_weight, out=of_hidden)
        if at == 0:
            span = slice(t, min(t + some, steps))
            all_active = spec.gate is None and sequence.valid is None
            products.multiply(span, _block(tape, own, span, all_active))
    of_cell = None if own.of_cell is None else sequence.reset_state(own.of_cell[:, 0], 0)
    return products, sequence.reset_state(of_hidden, 0), of_cell


class _Gradients(NamedTuple):
    """Of what the backward goes through; [n, some steps, B, ...], or of one step at a time."""

    of_hidden: Tensor
    """[n, 1, B, s]: of the state after the step, then of that before it; also the next."""
    of_cell: Tensor | None
    of_gates: Tensor
    of_product: Tensor | None
    """As `of_gates`; None where it is the same."""
    of_update: Tensor | None
    of_read: Tensor | None
    """[n, 1, B, h e]."""
    of_projected: Tensor | None
    of_shown: Tensor | None
    """[n, 1, B, s]."""


def _new_gradients(layer: LayerCall, some: int) -> _Gradients:
    spec, weights, _, drive = layer
    n, _, batch, gates = drive.shape
    size = weights.hidden.shape[1]

    def new(width: int, steps: int = some) -> Tensor:
        return drive.new_empty(n, steps, batch, width)

    lstm = spec.cell == "lstm"
    states = new(size, 1), new(size, 1) if lstm else None, new(gates), None if lstm else new(gates)
    if not spec.heads:
        return _Gradients(*states, None, None, None, None)
    _, read, update = not_none(weights.output).shape
    return _Gradients(
        *states, new(update), new(read, 1), new(not_none(weights.project).shape[-1]), new(size, 1)
    )


def _block(tape: Tape, own: _Gradients, span: slice, all_active: bool) -> StepBlock:
    """The steps of `span` side by side; no copies."""
    first = slice(0, span.stop - span.start)

    def flat(kept: Tensor, steps: slice) -> Tensor:
        return kept[:, steps].flatten(1, 2)

    def maybe(kept: Tensor | None, steps: slice) -> Tensor | None:
        return None if kept is None else flat(kept, steps)

    gates = flat(own.of_gates, first)
    return StepBlock(
        hidden=flat(tape.hidden, span),
        gates=gates,
        product=gates if own.of_product is None else flat(own.of_product, first),
        active=None if all_active else flat(tape.active, span),
        gate=maybe(tape.input_gate, span),
        shown=None if tape.read is None else flat(tape.shown, span),
        project=maybe(own.of_projected, first),
        read=maybe(tape.read, span),
        output=maybe(own.of_update, first),
    )


def _new_tape(layer: LayerCall, keep: bool) -> Tape:
    spec, weights, _, drive = layer
    n, steps, batch, gates = drive.shape
    size = weights.hidden.shape[1]
    kept = steps if keep else 1  # of what only the step itself reads

    def new(width: int, steps: int = kept, dtype: torch.dtype = drive.dtype) -> Tensor:
        return drive.new_empty(n, steps, batch, width, dtype=dtype)

    def product(width: int) -> Tensor:
        """PyTorch has fast batched products only where all of the result lies densely."""
        return drive.new_empty(kept, n, batch, width).transpose(0, 1)

    project = probs = read = update = None
    if spec.heads:
        of_output = not_none(weights.output).shape
        project, update = product(not_none(weights.project).shape[-1]), product(of_output[2])
        probs, read = new(spec.heads * n), new(of_output[1])
    return Tape(
        hidden=new(size, steps + 1),
        cell=new(size, steps + 1) if spec.cell == "lstm" else None,
        active=new(1, steps, torch.bool),
        input_gate=None if spec.gate is None else new(1),
        acts=product(gates),
        extra=new(size),
        shown=new(size, kept if spec.heads else 1),
        projected=project,
        probs=probs,
        read=read,
        update=update,
    )


def _check(layer: LayerCall, hidden: Tensor, cell: Tensor | None) -> None:
    """The C++ follows these sizes and types without looking."""
    spec, weights, sequence, drive = layer
    n, steps, batch, gates = drive.shape
    size = weights.hidden.shape[1]
    state, each = (n, batch, size), (n, steps, batch, size)
    expected = [
        ("drive", drive, (n, steps, batch, (4 if spec.cell == "lstm" else 3) * size)),
        ("hidden", hidden, state),
        ("cell", cell, state),
        ("weights.hidden", weights.hidden, (n, size, gates)),
        ("weights.base", weights.base, (n, 1, gates)),
        ("weights.hidden_bias", weights.hidden_bias, (n, 1, gates)),
        ("weights.rank_query", weights.rank_query, (n, 1, size)),
        ("key_query", sequence.key_query, each),
        ("dropout", sequence.dropout, each),
        ("valid", sequence.valid, (steps, batch)),
        ("reset", sequence.reset, (steps, batch)),
    ]
    if spec.heads:
        project, output = not_none(weights.project), not_none(weights.output)
        read, update = output.shape[1:]
        queries = 2 * spec.heads * spec.key_size
        expected += [
            ("weights.project", project, (n, size, queries + read)),
            ("weights.output", output, (n if len(output) > 1 else 1, read, update)),
            ("weights.output_bias", weights.output_bias, (1, 1, update)),
        ]
        if read % spec.heads or update not in (size, 2 * size):
            raise ValueError(f"weights.output: shape {tuple(output.shape)} is not allowed")
    for name, tensor, shape in expected:
        if tensor is None:
            continue
        dtype = torch.bool if name in ("valid", "reset") else drive.dtype
        if tensor.shape != shape or tensor.dtype != dtype:
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise ValueError(f"{name}: {found} is not allowed, must be {dtype} {shape}")
    if spec.cell == "lstm" and cell is None:
        raise ValueError("cell: an LSTM needs one")
    if (spec.gate is None) != (sequence.key_query is None):
        raise ValueError(f"key_query: needed by an input gate, and by nothing else ({spec.gate})")


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


class _Call:
    """Calls the functions of the C++ file on one set of tensors, which it keeps alive."""

    def __init__(self, layer: LayerCall, tape: Tape, **more: Tensor | None):
        """`more`: other views, as [n, T, B, ...] with 1 where broadcast."""
        spec, weights, sequence, drive = layer
        self.library, self.suffix = library(SOURCE), _SUFFIX[drive.dtype]
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
        self.views = {name: _dense(view) for name, view in views.items() if view is not None}
        for name, view in self.views.items():
            strides = [0 if view.shape[i] == 1 else view.stride(i) for i in range(3)]
            setattr(self.struct, name, _View(view.data_ptr(), *strides))

    def __call__(self, name: str, *at: int) -> None:
        function = getattr(self.library, f"{name}_{self.suffix}")
        function(ctypes.byref(self.struct), *(ctypes.c_int64(step) for step in at))


def _constant(tensor: Tensor | None) -> Tensor | None:
    """[n, 1, width] to [n, 1, 1, width]."""
    return None if tensor is None else tensor.unsqueeze(1)


def _dense(view: Tensor) -> Tensor:
    """A tensor to be read, with its last dimension dense; those written to are dense already."""
    view = view.resolve_neg()
    return view if view.stride(-1) == 1 or view.shape[-1] == 1 else view.contiguous()
