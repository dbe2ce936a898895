"""The loop of `unroll` on CUDA: matrix products by cuBLAS, all between them in Triton.

A step takes three products and three kernels, forward and backward alike; the gradients of weights
come from a few products over all steps. An LSTM or GRU block that stands alone takes one product
and one kernel. The kernels write what a step leaves where the products over all steps will read it,
so that nothing is stacked afterwards. `triton_kernels` are the kernels.

Covered, in float32: RIMs that weigh the input against one null slot and communicate, in each of
their options, and a block without both. The gate `across`, several input slots, other types,
`torch.compile` and all else that `runs_eagerly` excludes take the plain path.

Shapes as in `step`, and T time steps; what is kept of them is [n, T, B, ...].
"""

from typing import Any

import torch
from torch import Tensor

from rl_nfm.rims.layer_check import check_layer
from rl_nfm.rims.products import LayerCall, Products, Unrolled
from rl_nfm.rims.products_at_once import StepBlock
from rl_nfm.rims.step import not_none
from rl_nfm.rims.triton_sizes import Sizes, Strided, Tape, new_tape
from rl_nfm.support.triton_launch import launch_from


def forward(
    layer: LayerCall, hidden: Tensor, cell: Tensor | None, *, keep: bool
) -> tuple[Unrolled, list[Tensor | None]]:
    """Run all steps; see `unroll.Loop`.

    Raises:
        ValueError: shapes or types that do not fit each other.
    """
    check_layer(layer, hidden, cell)
    run = _Forward(layer, keep)
    run.begin(hidden, cell)
    for t in range(layer.drive.shape[1]):
        run.step(t)
    return Unrolled(run.output, run.last_hidden, run.last_cell, run.active), list(run.tape)


class _Forward:
    """Memory for the results of all steps, and the kernels of one."""

    def __init__(self, layer: LayerCall, keep: bool):
        self.layer, self.sizes = layer, Sizes.of(layer.spec, layer.weights)
        n, steps, batch, gates = layer.drive.shape
        new, size = layer.drive.new_empty, self.sizes.size
        self.tape = new_tape(layer, self.sizes, kept := steps if keep else 1)
        self.output = new(steps, batch, n, size)
        self.active = new(steps, batch, n, dtype=torch.bool)
        self.last_hidden = new(n, batch, size)
        self.last_cell = None if self.tape.cell is None else new(n, batch, size)
        self.product, self.linear = new(n, batch, gates), new(n, batch, self.sizes.update)
        self.steps, self.batch, self.kept = steps, batch, kept
        self.reset, self.valid = map(_flags, (layer.sequence.reset, layer.sequence.valid))
        self.drive = Strided.of(layer.drive)
        key_query, rank_query = layer.sequence.key_query, layer.weights.rank_query
        self.choice = (
            *Strided.of(key_query), _dense(rank_query), self.valid, self.tape.gate,
            self.tape.active, self.active.view(torch.uint8),
        )  # fmt: skip

    def begin(self, hidden: Tensor, cell: Tensor | None) -> None:
        """Take the first states, and choose who is active in the first step."""
        tape = self.tape
        if not self.sizes.spec.heads:
            sequence = self.layer.sequence
            for state, first in ((tape.hidden, hidden), (tape.cell, cell)):
                if state is not None:
                    state[:, 0].copy_(sequence.reset_state(not_none(first), 0))
            valid = sequence.valid
            self.active.fill_(True) if valid is None else self.active.copy_(valid.unsqueeze(-1))
            tape.active.copy_(self.active.permute(2, 0, 1))
            return
        launch(
            "begin", self.batch, _dense(hidden), _dense(cell), self.reset, tape.hidden, tape.cell,
            *self.choice, self.steps, self.batch, **self.sizes.states,
        )  # fmt: skip

    def step(self, t: int) -> None:
        """Step t."""
        (spec, weights, sequence, _), tape, sizes = self.layer, self.tape, self.sizes
        slot = t if self.kept > 1 else 0
        torch.bmm(tape.hidden[:, t], weights.hidden, out=self.product)
        launch(
            "run_blocks", sizes.rims * self.batch, self.product, *self.drive,
            _dense(weights.base), _dense(weights.hidden_bias), tape.gate, tape.active, tape.hidden,
            tape.cell, self.reset, tape.acts, tape.extra, tape.shown, self.last_hidden,
            self.last_cell, None if spec.heads else self.output, t, self.steps, self.batch, slot,
            self.kept, **sizes.state, N=sizes.rims, LSTM=spec.cell == "lstm",
            MASK_INPUT=spec.mask_input, PREVIOUS=spec.source == "previous",
        )  # fmt: skip
        if not spec.heads:
            return
        projected, read = not_none(tape.projected), not_none(tape.read)
        output = not_none(weights.output)
        torch.bmm(not_none(tape.shown)[:, slot], not_none(weights.project), out=projected[:, slot])
        launch(
            "communicate", self.batch * spec.heads, projected, tape.probs, read,
            spec.key_size**-0.5, self.batch, slot, self.kept, **sizes.heads,
        )  # fmt: skip
        torch.bmm(read[:, slot], output.expand(sizes.rims, -1, -1), out=self.linear)
        launch(
            "finish", self.batch, self.linear, _dense(weights.output_bias),
            _dense(sequence.dropout), tape.update, tape.shown, tape.hidden, self.reset,
            self.last_hidden, self.output, *self.choice, t, self.steps, self.batch, slot, self.kept,
            **sizes.states, GATED=sizes.update > sizes.size,
        )  # fmt: skip


def backward(
    layer: LayerCall, saved: list[Any], grads: tuple[Tensor | None, ...]
) -> tuple[Products, Tensor, Tensor | None]:
    """Gradients of the products and of the first states; see `unroll.Loop`."""
    run = _Backward(layer, Tape(*saved), grads)
    for t in reversed(range(layer.drive.shape[1])):
        run.step(t)
    tape, of_product = run.tape, run.of_gates if run.of_product is None else run.of_product
    run.products.multiply(
        slice(0, run.steps),
        StepBlock(
            hidden=tape.hidden.flatten(1, 2),
            gates=run.of_gates.flatten(1, 2),
            product=of_product.flatten(1, 2),
            active=None,
            gate=None if tape.gate is None else tape.gate.flatten(1, 2).unsqueeze(-1),
            shown=_flat(tape.shown),
            project=_flat(run.of_projected),
            read=_flat(tape.read),
            output=_flat(run.of_update),
        ),
    )
    reset = layer.sequence.reset_state
    of_hidden = run.of_hidden[0] + run.parts.unflatten(0, (-1, run.gates)).sum(1)
    of_cell = None if tape.cell is None else reset(run.of_cell[0], 0)
    return run.products, reset(of_hidden, 0), of_cell


class _Backward:
    """Memory for the gradients of all steps, and the kernels of one.

    The product that leads to the state before a step is long and narrow. It is taken gate by gate,
    side by side; the next kernels add the parts up.
    """

    def __init__(self, layer: LayerCall, tape: Tape, grads: tuple[Tensor | None, ...]):
        of_output, of_hidden, of_cell = grads
        self.layer, self.tape, self.sizes = layer, tape, Sizes.of(layer.spec, layer.weights)
        n, steps, batch, gates = layer.drive.shape
        self.steps, self.batch = steps, batch
        new, sizes = layer.drive.new_empty, self.sizes
        lstm = tape.cell is not None
        self.gates = 4 if lstm else 3
        by_gate = layer.weights.hidden.unflatten(-1, (self.gates, -1)).permute(0, 2, 3, 1)
        self.hidden_weight = by_gate.reshape(n * self.gates, sizes.size, sizes.size)
        self.parts = layer.drive.new_zeros(n * self.gates, batch, sizes.size)
        self.of_parts = torch.empty_like(self.parts)
        self.of_hidden = [_first(of_hidden, tape.hidden), new(n, batch, sizes.size)]
        self.of_cell = [_first(of_cell, tape.hidden), new(n, batch, sizes.size)] if lstm else []
        self.of_gates = new(n, steps, batch, gates)
        self.of_product = None if lstm else new(n, steps, batch, gates)
        self.products = Products(layer.weights, layer.sequence, at_once=True)
        self.of_key_query = self.products.sequence.key_query
        key_query = layer.sequence.key_query
        like = self.of_key_query
        if like is not None and key_query is not None and key_query.stride() != like.stride():
            key_query = torch.empty_like(like).copy_(key_query)
        self.reset = _flags(layer.sequence.reset)
        self.of_output = Strided.of(None if of_output is None else of_output.permute(2, 0, 1, 3))
        self.drive, self.key_query = Strided.of(layer.drive), Strided.of(key_query)
        self.of_update = self.of_projected = self.of_read = self.of_shown = None
        if layer.spec.heads:
            self.of_update = new(n, steps, batch, sizes.update)
            self.of_projected = torch.empty_like(not_none(tape.projected))
            self.of_read, self.of_shown = new(n, batch, sizes.read), new(n, batch, sizes.size)

    def step(self, t: int) -> None:
        """Step t, after the one behind it."""
        tape, sizes = self.tape, self.sizes
        arriving = self.of_hidden[0], self.parts, *self.of_output
        if sizes.spec.heads:
            self._communication(t, arriving)
        old_cell, new_cell = self.of_cell if self.of_cell else (None, None)
        launch(
            "blocks_backward", sizes.rims * self.batch, *arriving, self.of_shown, old_cell,
            self.reset, tape.active, tape.acts, tape.extra, tape.cell, tape.hidden, *self.drive,
            tape.gate, *self.key_query, self.of_gates, self.of_product, self.of_parts,
            self.of_key_query, self.of_hidden[1], new_cell, t, self.steps, self.batch,
            **sizes.state, PARTS=self.gates,
        )  # fmt: skip
        torch.bmm(self.of_parts, self.hidden_weight, out=self.parts)
        self.of_hidden.reverse()
        self.of_cell.reverse()

    def _communication(self, t: int, arriving: tuple[Any, ...]) -> None:
        (spec, weights, sequence, _), tape, sizes = self.layer, self.tape, self.sizes
        of_update, of_projected = not_none(self.of_update), not_none(self.of_projected)
        launch(
            "finish_backward", sizes.rims * self.batch, *arriving, self.reset, tape.active,
            tape.update, _dense(sequence.dropout), of_update, t, self.steps, self.batch,
            **sizes.state, PARTS=self.gates, GATED=sizes.update > sizes.size,
        )  # fmt: skip
        output = not_none(weights.output).expand(sizes.rims, -1, -1).transpose(1, 2)
        torch.bmm(of_update[:, t], output, out=self.of_read)
        launch(
            "communicate_backward", self.batch * spec.heads, self.of_read, tape.projected,
            tape.probs, of_projected, spec.key_size**-0.5, t, self.steps, self.batch, **sizes.heads,
        )  # fmt: skip
        project = not_none(weights.project).transpose(1, 2)
        torch.bmm(of_projected[:, t], project, out=self.of_shown)


def launch(name: str, programs: int, *args: Any, **constants: Any) -> None:
    """Launch as many programs of the kernel of this name."""
    from rl_nfm.rims import triton_backward_kernels, triton_communication, triton_kernels

    modules = triton_kernels, triton_backward_kernels, triton_communication
    launch_from(modules, name, (programs,), args, constants)


def _flags(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.resolve_neg().contiguous()


def _flat(kept: Tensor | None) -> Tensor | None:
    return None if kept is None else kept.flatten(1, 2)


def _first(grad: Tensor | None, like: Tensor) -> Tensor:
    """The gradient of a last state, [n, B, s], to be written to."""
    first = like.new_empty(like[:, 0].shape)
    return first.zero_() if grad is None else first.copy_(grad)
