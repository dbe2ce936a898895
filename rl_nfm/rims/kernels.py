"""The loop of `unroll` on the CPU, with all between the matrix products in C++.

A step has about a hundred small operations beside its seven matrix products. In PyTorch each of
them goes over memory, and threads wait for each other after each. The C++ beside this file does
them in four functions of the forward and three of the backward. They write the results of a step
where the matrix products of several steps will read them, so that nothing has to be copied
together. `step` defines what is computed.

Without a compiler, or with RL_NFM_KERNELS=0 in the environment, the steps run in plain PyTorch.

Shapes as in `step`, and T time steps; what is kept of them is [n, T, B, ...].
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl_nfm.rims.kernel_call import SOURCE, SUFFIX, Call, Tape, dense
from rl_nfm.rims.layer_check import check_layer
from rl_nfm.rims.products import LayerCall, Products, Unrolled
from rl_nfm.rims.products_at_once import StepBlock
from rl_nfm.rims.step import not_none
from rl_nfm.support.cpp import library, runs_eagerly


def supports(*tensors: Tensor | None) -> bool:
    """Whether the kernels take these tensors, all of one type and on the CPU.

    The first call builds the kernels.
    """
    present = [x for x in tensors if x is not None]
    floats = [x for x in present if x.dtype != torch.bool]
    return (
        runs_eagerly(*present)
        and all(x.device.type == "cpu" for x in present)
        and floats[0].dtype in SUFFIX
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
    """Run all steps and, if asked to `keep` it, return what `backward` needs.

    Raises:
        ValueError: shapes or types that do not fit each other.
    """
    check_layer(layer, hidden, cell)
    spec, weights, sequence, drive = layer
    n, steps, batch, _ = drive.shape
    tape = _new_tape(layer, keep)
    tape.hidden[:, 0] = sequence.reset_state(hidden, 0)
    if tape.cell is not None:
        tape.cell[:, 0] = sequence.reset_state(not_none(cell), 0)
    output = drive.new_empty(steps, batch, n, hidden.shape[-1])
    product = None if spec.cell == "lstm" else drive.new_empty(n, 1, batch, drive.shape[-1])
    call = Call(layer, tape, output=output.permute(2, 0, 1, 3), product=product)
    read_weight = None if weights.output is None else weights.output.expand(n, -1, -1)
    for t in range(steps):
        index = t if keep else 0
        call("weigh_input", t)
        if product is None:
            acts = tape.acts[:, index]
            torch.baddbmm(acts, tape.hidden[:, t], weights.hidden, out=acts)
        else:
            torch.bmm(tape.hidden[:, t], weights.hidden, out=product[:, 0])
        call("run_blocks", t)
        if spec.heads:
            projected, update = not_none(tape.projected)[:, index], not_none(tape.update)[:, index]
            torch.bmm(tape.shown[:, index], not_none(weights.project), out=projected)
            call("communicate", t)
            torch.bmm(not_none(tape.read)[:, index], not_none(read_weight), out=update)
        call("finish", t)
    last_cell = None if tape.cell is None else tape.cell[:, -1].clone()
    active = tape.active.squeeze(-1).permute(1, 2, 0).clone(memory_format=torch.contiguous_format)
    return Unrolled(output, tape.hidden[:, -1].clone(), last_cell, active), list(tape)


def backward(
    layer: LayerCall, saved: list[Any], grads: tuple[Tensor | None, ...]
) -> tuple[Products, Tensor, Tensor | None]:
    """Gradients of the products and of the states before the first step; see `unroll.Loop`."""
    spec, weights, sequence, drive = layer
    tape, (of_output, *of_states) = Tape(*saved), grads
    n, steps = drive.shape[:2]
    products = Products(weights, sequence)
    chunk_steps = min(products.limit, steps)
    gradients = _new_gradients(layer, chunk_steps)
    for buffer, grad in zip((gradients.of_hidden, gradients.of_cell), of_states, strict=True):
        if buffer is not None:
            buffer[:, 0] = 0 if grad is None else grad
    call = Call(
        layer,
        tape,
        of_output=None if of_output is None else dense(of_output).permute(2, 0, 1, 3),
        of_key_query=products.sequence.key_query,
        **gradients._asdict(),
    )
    of_product = gradients.of_gates if gradients.of_product is None else gradients.of_product
    of_hidden, hidden_weight = gradients.of_hidden[:, 0], weights.hidden.transpose(1, 2)
    for t in reversed(range(steps)):
        index = t % chunk_steps
        call("finish_backward", t, index)
        if spec.heads:
            project, output = not_none(weights.project), not_none(weights.output).expand(n, -1, -1)
            of_update, of_projected = (
                not_none(gradients.of_update)[:, index],
                not_none(gradients.of_projected)[:, index],
            )
            torch.bmm(of_update, output.transpose(1, 2), out=not_none(gradients.of_read)[:, 0])
            call("communicate_backward", t, index)
            torch.bmm(of_projected, project.transpose(1, 2), out=not_none(gradients.of_shown)[:, 0])
        call("blocks_backward", t, index)
        torch.baddbmm(of_hidden, of_product[:, index], hidden_weight, out=of_hidden)
        if index == 0:
            span = slice(t, min(t + chunk_steps, steps))
            all_active = spec.gate is None and sequence.valid is None
            products.multiply(span, _block(tape, gradients, span, all_active))
    of_cell = (
        None if gradients.of_cell is None else sequence.reset_state(gradients.of_cell[:, 0], 0)
    )
    return products, sequence.reset_state(of_hidden, 0), of_cell


class _Gradients(NamedTuple):
    """Gradients of values inside a step, [n, steps of a chunk, B, ...] or of one step at a time.

    The matrix products of a chunk of steps are taken together: see `Products`.
    """

    of_hidden: Tensor
    """[n, 1, B, s]: of the state after the step, then of that before it."""
    of_cell: Tensor | None
    """As `of_hidden`."""
    of_gates: Tensor
    of_product: Tensor | None
    """As `of_gates`; None where both are equal."""
    of_update: Tensor | None
    of_read: Tensor | None
    """[n, 1, B, h e]."""
    of_projected: Tensor | None
    of_shown: Tensor | None
    """[n, 1, B, s]."""


def _new_gradients(layer: LayerCall, chunk_steps: int) -> _Gradients:
    spec, weights, _, drive = layer
    n, _, batch, gates = drive.shape
    size = weights.hidden.shape[1]

    def new(width: int, steps: int = chunk_steps) -> Tensor:
        return drive.new_empty(n, steps, batch, width)

    lstm = spec.cell == "lstm"
    states = new(size, 1), new(size, 1) if lstm else None, new(gates), None if lstm else new(gates)
    if not spec.heads:
        return _Gradients(*states, None, None, None, None)
    _, read, update = not_none(weights.output).shape
    return _Gradients(
        *states, new(update), new(read, 1), new(not_none(weights.project).shape[-1]), new(size, 1)
    )


def _block(tape: Tape, gradients: _Gradients, span: slice, all_active: bool) -> StepBlock:
    """Views of the steps of `span`, side by side."""
    first = slice(0, span.stop - span.start)

    def flat(kept: Tensor, steps: slice) -> Tensor:
        return kept[:, steps].flatten(1, 2)

    def maybe(kept: Tensor | None, steps: slice) -> Tensor | None:
        return None if kept is None else flat(kept, steps)

    gates = flat(gradients.of_gates, first)
    return StepBlock(
        hidden=flat(tape.hidden, span),
        gates=gates,
        product=gates if gradients.of_product is None else flat(gradients.of_product, first),
        active=None if all_active else flat(tape.active, span),
        gate=maybe(tape.input_gate, span),
        shown=None if tape.read is None else flat(tape.shown, span),
        project=maybe(gradients.of_projected, first),
        read=maybe(tape.read, span),
        output=maybe(gradients.of_update, first),
    )


def _new_tape(layer: LayerCall, keep: bool) -> Tape:
    spec, weights, _, drive = layer
    n, steps, batch, gates = drive.shape
    size = weights.hidden.shape[1]
    kept = steps if keep else 1  # of the parts that no other step reads

    def new(width: int, steps: int = kept, dtype: torch.dtype = drive.dtype) -> Tensor:
        return drive.new_empty(n, steps, batch, width, dtype=dtype)

    def product(width: int) -> Tensor:
        """Memory for the result of a batched product, which is fast only if the result is dense."""
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
