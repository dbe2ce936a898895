"""`attention.attend` with masked top-k, fused for the CPU.

In plain PyTorch the cost of NFM on a CPU is memory traffic: keys and values copied into slots,
products written out before they are summed, and in the backward a whole gradient of the memory for
each of its readers. The C++ beside this file reads every row where it lies, goes back only to the k
rows that a head attended to, and adds to one gradient of the memory for all readers. It is built
with the system's compiler when first needed, in a few seconds, and kept in the user's cache.

That the readers share one gradient takes a detour: a reader hands on the memory's keys and values
to the next one. So each tensor has one user, and the gradient that comes back from that user can
be added to in place.

Without a compiler, or with RL_NFM_KERNELS=0 in the environment, the plain path is used.

Shapes: as in `attention`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rl_nfm.nfm import operators
from rl_nfm.nfm.attention import wide_type
from rl_nfm.nfm.call import Options, plain_read
from rl_nfm.nfm.kernel_call import SOURCE, SUFFIX, run_backward, run_forward
from rl_nfm.nfm.rescale import Grid
from rl_nfm.support.cpp import library, runs_eagerly

CPU = torch.device("cpu")


def available(device: torch.device = CPU) -> bool:
    """Whether the kernels can be used on this device; builds them when first asked for the CPU.

    A network is built on the CPU wherever it will run, and a run on a GPU need not wait for this.
    """
    return device.type == "cpu" and _built()


def _built() -> bool:
    return library(SOURCE) is not None


# As torch.compiler.assume_constant_result marks it, which would import the whole compiler.
_built._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def supports(query: Tensor, keys: Sequence[Tensor] = (), values: Sequence[Tensor] = ()) -> bool:
    """Whether the kernels take such tensors: on the CPU, of one type and batch size.

    Beside a query in half precision, keys and values may also be the float32 of an earlier reader.

    Under `torch.compile` they are an operator in its graph. What else records, transforms or fakes
    operations takes the plain path; so does `torch.export`, whose graph is to run without us.
    """
    return (
        query.device.type == "cpu"
        and wide_type(query.dtype) in SUFFIX
        and all(
            x.dtype in (query.dtype, wide_type(query.dtype))
            and x.device == query.device
            and x.shape[0] == query.shape[0]
            for x in (*keys, *values)
        )
        and (_is_compiled() or runs_eagerly(query, *keys, *values))
    )


def _is_compiled() -> bool:
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def attend(
    query: Float[Tensor, "B P HK"],
    keys: Sequence[Float[Tensor, "B _ HK"]],
    values: Sequence[Float[Tensor, "B _ HV"]],
    grid: Grid,
    *,
    heads: int,
    scale: float,
    top_k: int,
    null_slot: bool,
) -> tuple[Float[Tensor, "B P HV"], list[Float[Tensor, "B _ HK"]], list[Float[Tensor, "B _ HV"]]]:
    """What the heads read with masked top-k; of equal scores the first slots are kept.

    Args:
        query: of each position of the reading layer.
        keys: of each written layer, at all of its own positions.
        values: likewise.
        grid: the sizes behind the positions.
        heads: H.
        scale: factor of the scores.
        top_k: slots that a head may attend to.
        null_slot: whether there is one of score 0 and value 0.

    Returns:
        What each position reads, and keys and values for the next reader, which must take these;
        they are for no one else, because the gradient that comes back with them is written to.
        They are float32 where they came in half precision.

    Raises:
        ValueError: tensors that `supports` refuses, or whose sizes do not fit each other.
    """
    _check(query, keys, values, grid, heads)
    # Once for all readers: to convert rows while they are read took the kernels twice the time.
    dtype, wide = query.dtype, wide_type(query.dtype)
    query, *memory = (x.to(wide) for x in (query, *keys, *values))
    keys, values = memory[: len(keys)], memory[len(keys) :]
    options = Options.of(grid, heads=heads, scale=scale, top_k=top_k, null_slot=null_slot)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        # Nothing to hand on: what is made without gradients would cut the memory for later readers.
        read, *_ = operators.attend(query, keys, values, *options)
        return read.to(dtype), keys, values
    read, *memory = _Attend.apply(options, query, *memory)
    return read.to(dtype), memory[: len(keys)], memory[len(keys) :]


def _check(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], grid: Grid, heads: int
) -> None:
    """See `attend`; the kernels follow these sizes without looking."""
    counts = [math.prod(source) for source in grid.sources]
    sizes = [x.shape[1] for x in keys] + [x.shape[1] for x in values]
    widths = {x.shape[2] for x in (query, *keys)}, {x.shape[2] for x in values}
    if (
        not supports(query, keys, values)
        or sizes != counts * 2
        or query.shape[1] != math.prod(grid.target)
        or any(len(width) != 1 or min(width) % heads for width in widths)
    ):
        shapes = [[tuple(x.shape) for x in tensors] for tensors in ([query], keys, values)]
        raise ValueError(
            f"query, keys and values of {shapes} in {query.dtype} do not fit each other or "
            f"positions {grid.target} of {grid.sources} with {heads} heads"
        )


class _Attend(torch.autograd.Function):
    """Query, keys and values to what is read, keys and values."""

    @staticmethod
    def forward(ctx: Any, options: Options, query: Tensor, *memory: Tensor) -> Any:
        half = len(memory) // 2
        read, weights, rows = run_forward(query, memory[:half], memory[half:], options)
        ctx.save_for_backward(query, weights, rows, *memory)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return read, *(tensor.view_as(tensor) for tensor in memory)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, weights, rows, *memory = ctx.saved_tensors
        if grads[0] is not None and torch.is_grad_enabled():
            return None, *_plain_gradients(query, memory, grads, ctx.options)
        # From the next reader, or for the last one none; nobody else holds them.
        sums = [
            _zeros(tensor) if g is None else g.contiguous()
            for g, tensor in zip(grads[1:], memory, strict=True)
        ]
        if grads[0] is None:
            return None, None, *sums
        grad = run_backward(grads[0], query, memory, weights, rows, sums, ctx.options)
        return None, grad, *sums


def _plain_gradients(
    query: Tensor,
    memory: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    options: Options,
) -> list[Tensor | None]:
    """The same gradients in plain PyTorch, which can be differentiated again."""
    half = len(memory) // 2
    inputs = [x.view_as(x) for x in (query, *memory)]  # cut off from how they depend on each other
    read = plain_read(inputs[0], inputs[1 : half + 1], inputs[half + 1 :], options)
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(read, wanted, grads[0], create_graph=True))
    direct = [next(found) if x.requires_grad else None for x in inputs]
    passed_on = [None, *grads[1:]]
    pairs = zip(direct, passed_on, strict=True)
    return [b if a is None else a if b is None else a + b for a, b in pairs]


@torch.library.impl("rl_nfm::attend", "cpu")
def _operator(
    query: Tensor, keys: list[Tensor], values: list[Tensor], *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return run_forward(query, keys, values, Options(*options))


@torch.library.impl("rl_nfm::attend_backward", "cpu")
def _backward_operator(
    grad: Tensor,
    query: Tensor,
    memory: list[Tensor],
    weights: Tensor,
    rows: Tensor,
    *options: Any,
) -> list[Tensor]:
    sums = [_zeros(tensor) for tensor in memory]
    grad_query = run_backward(grad, query, memory, weights, rows, sums, Options(*options))
    return [grad_query, *sums]


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor, memory_format=torch.contiguous_format)
