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

from rl_nfm.cpp import library
from rl_nfm.rims.products import Products, Sequence, StepBlock, Unrolled
from rl_nfm.rims.step import StepSpec, StepWeights, given

SOURCE = Path(__file__).with_name("kernels.cpp")
_SUFFIX = {torch.float32: "float32", torch.float64: "float64"}
_GATES = {None: 0, "null": 1, "across": 2}


class Tape(NamedTuple):
    """What the forward leaves for the backward; None where the form has no such part."""

    hidden: Tensor
    """[n, T + 1, B, s]: before each step, and after the last."""
    cell: Tensor | None
    active: Tensor
    """bool [n, T, B, 1]."""
    input_gate: Tensor | None
    acts: Tensor
    extra: Tensor
    shown: Tensor
    projected: Tensor | None
    """[n, T, B, h (2 d + e)]: what is shown, times its weights."""
    probs: Tensor | None
    """[n, T, B, h n]: of each RIM, how much its heads read from every other."""
    read: Tensor | None
    update: Tensor | None
    """[n, T, B, s or 2 s], after its nonlinearity; undefined where inactive."""


def supports(*tensors: Tensor | None) -> bool:
    """Whether these can be used here: on the CPU, of one type; builds them at the first call."""
    floats = [x for x in tensors if x is not None and x.dtype != torch.bool]
    return (
        not torch.compiler.is_compiling()
        and floats[0].dtype in _SUFFIX
        and all(type(x) in (Tensor, torch.nn.Parameter) for x in floats)  # not a fake one
        and all(x.device.type == "cpu" and x.dtype == floats[0].dtype for x in floats)
        and library(SOURCE) is not None
    )


def forward(
    spec: StepSpec,
    weights: StepWeights,
    sequence: Sequence,
    drive: Tensor,
    hidden: Tensor,
    cell: Tensor | None,
    *,
    keep: bool,
) -> tuple[Unrolled, list[Tensor | None]]:
    """All steps; and, to `keep`, what `backward` needs.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check(spec, weights, sequence, drive, hidden, cell)
    n, steps, batch, _ = drive.shape
    tape = _new_tape(spec, weights, drive, keep)
    tape.hidden[:, 0] = sequence.clear(hidden, 0)
    if tape.cell is not None:
        tape.cell[:, 0] = sequence.clear(given(cell), 0)
    output = drive.new_empty(steps, batch, n, hidden.shape[-1])
    product = None if spec.cell == "lstm" else drive.new_empty(n, 1, batch, drive.shape[-1])
    call = _Call(
        spec, weights, sequence, drive, tape, output=output.permute(2, 0, 1, 3), product=product
    )
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
            projected, update = given(tape.projected)[:, at], given(tape.update)[:, at]
            torch.bmm(tape.shown[:, at], given(weights.project), out=projected)
            call("communicate", t)
            torch.bmm(given(tape.read)[:, at], given(read_weight), out=update)
        call("finish", t)
    last_cell = None if tape.cell is None else tape.cell[:, -1].clone()
    active = tape.active.squeeze(-1).permute(1, 2, 0).contiguous()
    return Unrolled(output, tape.hidden[:, -1].clone(), last_cell, active), list(tape)


def backward(
    spec: StepSpec,
    weights: StepWeights,
    sequence: Sequence,
    drive: Tensor,
    saved: list[Any],
    grads: tuple[Tensor | None, ...],
) -> tuple[Products, Tensor, Tensor | None]:
    """See `unroll`: of the products, and of the states before the first step."""
    tape, (of_output, *of_states) = Tape(*saved), grads
    n, steps, batch, width = drive.shape
    products = Products(weights, sequence)
    some = min(products.limit, steps)
    buffers = {
        "of_gates": drive.new_empty(n, some, batch, width),
        "of_product": None if spec.cell == "lstm" else drive.new_empty(n, some, batch, width),
        "of_hidden": tape.hidden.new_zeros(n, 1, batch, tape.hidden.shape[-1]),
        "of_cell": None if tape.cell is None else torch.zeros_like(tape.cell[:, :1]),
    }
    of_hidden, of_cell = given(buffers["of_hidden"]), buffers["of_cell"]
    for buffer, grad in zip((of_hidden, of_cell), of_states, strict=True):
        if buffer is not None and grad is not None:
            buffer[:, 0] = grad
    if spec.heads:
        project, (_, read, update) = given(weights.project).shape[-1], given(weights.output).shape
        buffers["of_update"] = drive.new_empty(n, some, batch, update)
        buffers["of_projected"] = drive.new_empty(n, some, batch, project)
        buffers["of_read"] = drive.new_empty(n, 1, batch, read)
        buffers["of_shown"] = torch.empty_like(of_hidden)
    if of_output is not None:
        buffers["of_output"] = of_output.contiguous().permute(2, 0, 1, 3)
    of_gates = given(buffers["of_gates"])
    of_product = of_gates if spec.cell == "lstm" else given(buffers["of_product"])
    call = _Call(
        spec, weights, sequence, drive, tape, of_key_query=products.sequence.key_query, **buffers
    )
    hidden_weight = weights.hidden.transpose(1, 2)
    for t in reversed(range(steps)):
        at = t % some
        call("finish_backward", t, at)
        if spec.heads:
            project, output = given(weights.project), given(weights.output).expand(n, -1, -1)
            of_update, of_read = given(buffers["of_update"]), given(buffers["of_read"])
            torch.bmm(of_update[:, at], output.transpose(1, 2), out=of_read[:, 0])
            call("communicate_backward", t, at)
            of_projected, of_shown = given(buffers["of_projected"]), given(buffers["of_shown"])
            torch.bmm(of_projected[:, at], project.transpose(1, 2), out=of_shown[:, 0])
        call("blocks_backward", t, at)
        before = of_hidden[:, 0]
        torch.baddbmm(before, of_product[:, at], hidden_weight, out=before)
        if at == 0:
            span = slice(t, min(t + some, steps))
            products.multiply(span, _block(spec, tape, sequence, buffers, span))
    first_cell = None if of_cell is None else sequence.clear(of_cell[:, 0], 0)
    return products, sequence.clear(of_hidden[:, 0], 0), first_cell


def _block(
    spec: StepSpec,
    tape: Tape,
    sequence: Sequence,
    buffers: dict[str, Tensor | None],
    span: slice,
) -> StepBlock:
    """The steps of `span` side by side; no copies."""
    first = slice(0, span.stop - span.start)

    def take(kept: Tensor | None, steps: slice) -> Tensor | None:
        return None if kept is None else kept[:, steps].flatten(1, 2)

    gates = given(take(buffers["of_gates"], first))
    all_active = spec.gate is None and sequence.valid is None
    return StepBlock(
        hidden=given(take(tape.hidden, span)),
        gates=gates,
        product=gates if spec.cell == "lstm" else given(take(buffers["of_product"], first)),
        active=None if all_active else take(tape.active, span),
        gate=take(tape.input_gate, span),
        shown=take(tape.shown, span),
        project=take(buffers.get("of_projected"), first),
        read=take(tape.read, span),
        output=take(buffers.get("of_update"), first),
    )


def _new_tape(spec: StepSpec, weights: StepWeights, drive: Tensor, keep: bool) -> Tape:
    n, steps, batch, gates = drive.shape
    size = weights.hidden.shape[1]
    kept = steps if keep else 1  # of what only the step itself reads

    def new(width: int, steps: int = kept, dtype: torch.dtype = drive.dtype) -> Tensor:
        return torch.empty(n, steps, batch, width, dtype=dtype)

    def product(width: int) -> Tensor:
        """PyTorch has fast batched products only where all of the result lies densely."""
        return drive.new_empty(kept, n, batch, width).transpose(0, 1)

    project = probs = read = update = None
    if spec.heads:
        of_output = given(weights.output).shape
        project, update = product(given(weights.project).shape[-1]), product(of_output[2])
        probs, read = new(spec.heads * n), new(of_output[1])
    return Tape(
        hidden=new(size, steps + 1),
        cell=new(size, steps + 1) if spec.cell == "lstm" else None,
        active=new(1, steps, torch.bool),
        input_gate=None if spec.gate is None else new(1),
        acts=product(gates),
        extra=new(size),
        shown=new(size),
        projected=project,
        probs=probs,
        read=read,
        update=update,
    )


def _check(
    spec: StepSpec,
    weights: StepWeights,
    sequence: Sequence,
    drive: Tensor,
    hidden: Tensor,
    cell: Tensor | None,
) -> None:
    """The C++ follows these sizes without looking."""
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
        project, output = given(weights.project), given(weights.output)
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
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)} is not allowed, must be {shape}")
    missing = cell is None if spec.cell == "lstm" else False
    if missing or (spec.gate is not None and sequence.key_query is None):
        raise ValueError("a cell state and a key query are needed by this form of step")


class _View(ctypes.Structure):
    """`View` of the C++ file."""

    _fields_ = [(name, ctypes.c_int64) for name in ("at", "rim", "step", "row")]


_SIZES = (
    "steps", "rims", "batch", "size", "heads", "key", "value", "num_active", "lstm", "gate",
    "mask_input", "show_previous", "gated",
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

    def __init__(
        self,
        spec: StepSpec,
        weights: StepWeights,
        sequence: Sequence,
        drive: Tensor,
        tape: Tape,
        **more: Tensor | None,
    ):
        """`more`: other views, as [n, T, B, ...] with 1 where broadcast."""
        self.library, self.suffix = library(SOURCE), _SUFFIX[drive.dtype]
        n, steps, batch, _ = drive.shape
        size = weights.hidden.shape[1]
        value = gated = 0
        if spec.heads:
            value = given(weights.output).shape[1] // spec.heads
            gated = given(weights.output).shape[2] > size
        self.layer = _Layer(
            steps, n, batch, size, spec.heads, spec.key_size, value, spec.num_active,
            spec.cell == "lstm", _GATES[spec.gate], spec.mask_input, spec.source == "previous",
            gated,
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
            steps_apart = [0 if view.shape[i] == 1 else view.stride(i) for i in range(3)]
            setattr(self.layer, name, _View(view.data_ptr(), *steps_apart))

    def __call__(self, name: str, *steps: int) -> None:
        function = getattr(self.library, f"{name}_{self.suffix}")
        function(ctypes.byref(self.layer), *(ctypes.c_int64(step) for step in steps))


def _constant(tensor: Tensor | None) -> Tensor | None:
    """[n, 1, width] to [n, 1, 1, width]."""
    return None if tensor is None else tensor.unsqueeze(1)


def _dense(view: Tensor) -> Tensor:
    return view if view.stride(-1) == 1 or view.shape[-1] == 1 else view.contiguous()
