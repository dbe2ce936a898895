"""One reader's call of the Triton kernels, and its gradients.

Each place makes query, keys and values in one product, and the kernels read the rows of memory
where that left them (`Packed`). A reader's backward makes the gradients of its query and of its
scores. The gradient of a written layer is made once, by the layer's first reader, whose backward
comes last. By then all other readers have left their gradients (`ReaderGradients`), and each row of
memory sums over the positions that can have read it. Nothing is added atomically, so results are
the same from run to run.

How gradients get from a later reader to an earlier one: a reader passes a token on to the next one.
The token's gradient comes back only if the next reader's backward has run, and then its gradients
lie in a box that both readers hold.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl_nfm.nfm import plain_gradients
from rl_nfm.nfm import triton_launch as launch
from rl_nfm.nfm.call import Options, plain_read
from rl_nfm.nfm.triton_launch import ReaderGradients


class Packed(NamedTuple):
    """Queries, keys and values of one layer, side by side, as one matrix product makes them."""

    rows: Tensor
    """[B, P, the sum of `parts`]."""
    parts: tuple[int, int, int]
    """Width of queries, keys and values, each with all heads; 0 where there are none."""

    def split(self) -> tuple[Tensor, Tensor, Tensor]:
        """Views of queries, keys and values."""
        return self.rows.split(self.parts, dim=-1)  # pyright: ignore[reportReturnType]


class Handover(NamedTuple):
    """What a reader passes on to the next one.

    The next one reads the same layers and may read further ones, which were written since.
    """

    token: Tensor
    box: "_Box"
    layers: int
    """How many layers the reader has read."""


class _Box:
    """What the readers after one reader leave for it, in one backward.

    These are their `ReaderGradients`, or, in a backward that is itself differentiated, the
    gradients of the packed rows so far.
    """

    contents: list[ReaderGradients] | list[Tensor | None]

    def __init__(self) -> None:
        self.contents = []

    def take(self) -> Any:
        contents, self.contents = self.contents, []
        return contents


class _Call(NamedTuple):
    """Everything in one reader's call but its tensors, which are the packed rows."""

    options: Options
    parts: list[tuple[int, int, int]]
    layers: int
    """How many of the tensors, from the first, are the memory."""
    old: int
    """How many of them had an earlier reader, which makes their gradient."""
    box: _Box
    previous: Handover | None
    falling_back: "FallingBack"


FallingBack = Callable[[], contextlib.AbstractContextManager[None]]
"""A context that swallows whatever a launch inside raises; see `TritonGuard.falling_back`."""


def attend(
    packed: Sequence[Packed],
    options: Options,
    previous: Handover | None = None,
    *,
    falling_back: FallingBack = contextlib.nullcontext,
) -> tuple[Tensor, Handover | None]:
    """What the heads read with masked top-k; of equal scores the first slots are kept.

    Args:
        packed: of each written layer, and last of the reading layer, which may be the last written.
        options: of the call.
        previous: what the last reader of this memory passed on.
        falling_back: of launches in the backward, which plain PyTorch then replaces; none: what
            they raise goes to the caller of the backward.

    Returns:
        What is read [B, P, H * V], and what to pass on to the next reader.
    """
    layers = len(packed) - 1
    if layers and packed[-2].rows is packed[-1].rows:
        packed = packed[:-1]
    tensors = [launch.even(x.rows) for x in packed]
    old = previous.layers if previous else 0
    call = _Call(options, [x.parts for x in packed], layers, old, _Box(), previous, falling_back)
    if not torch.is_grad_enabled():
        return launch.forward(*_reading(call, tensors), options)[0], previous
    read, token = _Attend.apply(call, previous.token if previous else None, *tensors)
    return read, Handover(token, call.box, layers)


def _reading(call: _Call, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Query, keys and values of a call."""
    views = [Packed(*pair).split() for pair in zip(tensors, call.parts, strict=True)]
    memory = views[: call.layers]
    return views[-1][0], [keys for _, keys, _ in memory], [values for *_, values in memory]


class _Attend(torch.autograd.Function):
    """From the last reader's token and packed rows to what is read and the next reader's token."""

    @staticmethod
    def forward(ctx: Any, call: _Call, token: Tensor | None, *packed: Tensor) -> Any:
        del token
        read, weights, slots = launch.forward(*_reading(call, packed), call.options)
        ctx.save_for_backward(weights, slots, *packed)
        ctx.call = call
        ctx.set_materialize_grads(False)
        return read, read.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad, grad_token = grads
        call: _Call = ctx.call
        later = [] if grad_token is None else call.box.take()
        weights, slots, *packed = ctx.saved_tensors
        wanted = [needed and n >= call.old for n, needed in enumerate(ctx.needs_input_grad[2:])]
        if torch.is_grad_enabled():
            later = _plain_gradients(call, packed, grad, later)
            sums = [x if want else None for x, want in zip(later, wanted, strict=False)]
            sums += [None] * (len(packed) - len(sums))
        else:
            later, sums = _gradients(call, packed, grad, weights, slots, later, wanted)
        if call.previous is None:
            return None, None, *sums
        call.previous.box.contents = later
        return None, call.previous.token.new_empty(0), *sums


def _gradients(
    call: _Call,
    packed: Sequence[Tensor],
    grad: Tensor | None,
    weights: Tensor,
    slots: Tensor,
    later: list[ReaderGradients],
    wanted: list[bool],
) -> tuple[list[ReaderGradients], list[Tensor | None]]:
    """What this reader and all later ones leave, and the gradients that are wanted."""
    if grad is None and not later:
        return later, [None] * len(packed)
    sums = [
        _empty_gradient(call, n, packed[n], grad is not None) if want else None
        for n, want in enumerate(wanted)
    ]
    if grad is not None:
        query, keys, values = _reading(call, packed)
        grad_rows = sums[-1]
        width = query.shape[-1]
        grad_query = torch.empty_like(query) if grad_rows is None else grad_rows[..., :width]
        grad = launch.even(grad)
        pairs = _launched(
            call, "query_gradient", grad, keys, values, weights, slots, grad_query, call.options
        )
        later = [
            ReaderGradients(query, grad, pairs, slots, call.options, call.layers),
            *later,
        ]
    for n, rows in enumerate(sums[: call.layers]):
        if rows is not None:
            _, keys, values = Packed(rows, call.parts[n]).split()
            _launched(call, "memory_gradient", later, n, keys, values, call.options.heads)
    return later, sums


def _launched(call: _Call, name: str, *args: Any) -> Any:
    """What a function of `triton_launch` gives; if it cannot be launched, in plain PyTorch."""
    with call.falling_back():
        return getattr(launch, name)(*args)
    return getattr(plain_gradients, name)(*args)


def _empty_gradient(call: _Call, n: int, rows: Tensor, with_query: bool) -> Tensor:
    """A tensor for kernels to fill, which holds zeros if they do not fill all of it."""
    filled = call.parts[n][0] * (with_query and n == len(call.parts) - 1)
    filled += sum(call.parts[n][1:]) * (n < call.layers)
    shape = rows.shape
    return rows.new_empty(shape) if filled == shape[-1] else rows.new_zeros(shape)


def _plain_gradients(
    call: _Call, packed: Sequence[Tensor], grad: Tensor | None, later: list[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of packed rows so far, in plain PyTorch, which can be differentiated again."""
    direct: list[Tensor | None] = [None] * len(packed)
    if grad is not None:
        inputs = [x.view_as(x) for x in packed]  # cut off from how they depend on each other
        read = plain_read(*_reading(call, inputs), call.options)
        wanted = [x for x in inputs if x.requires_grad]
        found = iter(torch.autograd.grad(read, wanted, grad, create_graph=True, allow_unused=True))
        direct = [next(found) if x.requires_grad else None for x in inputs]
    later = [*later[: call.layers], *[None] * (len(packed) - len(later[: call.layers]))]
    pairs = zip(direct, later, strict=True)
    return [b if a is None else a if b is None else a + b for a, b in pairs]
