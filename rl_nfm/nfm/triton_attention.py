"""The attention in Triton for CUDA: where it is used, and its operators for `torch.compile`.

`triton_kernels` are the kernels, `triton_launch` runs them, `triton_autograd` makes gradients.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rl_nfm.nfm import operators
from rl_nfm.nfm import triton_launch as launch
from rl_nfm.nfm.call import Options, plain_read
from rl_nfm.nfm.triton_autograd import Handover, Packed, attend
from rl_nfm.nfm.triton_launch import ReaderGradients
from rl_nfm.support import triton_guard
from rl_nfm.support.cpp import runs_eagerly
from rl_nfm.support.triton_guard import TritonGuard

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_LAYERS = 32
"""Layers of memory; the kernels are compiled anew for each number of layers."""
MOST_NUMBERS = 2**16
"""Numbers in the keys or values that all heads of one position attend to."""


def is_wanted(tensor: Tensor) -> bool:
    """Whether the kernels are switched on for such tensors; `supports` says if they can be used."""
    return not torch.compiler.is_compiling() and triton_guard.switched_on(tensor.device)


def is_compiled(query: Tensor) -> bool:
    """Whether `torch.compile` is making a graph that should hold our operator for this query."""
    compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return compiling and query.is_cuda and query.dtype in _TYPES


def supports(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], options: Options
) -> bool:
    """Whether the kernels take such tensors; checked against the plain path at first use."""
    tensors = (query, *keys, *values)
    return is_wanted(query) and runs_eagerly(*tensors) and _fits(query, keys, values, options)


def _fits(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], options: Options
) -> bool:
    heads, most = options.heads, max(query.shape[-1], values[0].shape[-1])
    numbers = launch.power(heads) * launch.power(options.top_k) * launch.power(most // heads)
    return (
        query.dtype in _TYPES
        and len(keys) <= MOST_LAYERS
        and numbers <= MOST_NUMBERS
        and sum(launch.lengths(options, len(keys))) < 2**15
        and all(
            x.dtype == query.dtype
            and x.device == query.device
            and x.shape[0] == query.shape[0]
            and x.shape[1] * x.stride(1) < 2**31
            for x in (query, *keys, *values)
        )
        and guard.ready(query.device, *_case(query, values[0], options))
    )


def try_to_attend(
    packed: Sequence[Packed], options: Options, previous: Handover | None
) -> tuple[Tensor, Handover | None] | None:
    """As `attend`, or None if the kernels cannot be launched; they are then never tried again."""
    query, _, values = packed[-1].split()[0], *packed[0].split()[1:]
    falling_back = functools.partial(
        guard.falling_back, query.device, *_case(query, values, options)
    )
    with falling_back():
        return attend(packed, options, previous, falling_back=falling_back)
    return None


# The operators that `torch.compile` puts into its graphs.


def _operator(
    query: Tensor, keys: list[Tensor], values: list[Tensor], *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    call = Options(*options)
    if _fits(query, keys, values, call):
        even_keys, even_values = ([launch.even(x) for x in rows] for rows in (keys, values))
        with guard.falling_back(query.device, *_case(query, values[0], call)):
            return launch.forward(launch.even(query), even_keys, even_values, call)
    _, weights, slots = operators.empty_results(query, keys, values, *call)
    return plain_read(query, keys, values, call), weights, slots


def _backward_operator(
    grad: Tensor,
    query: Tensor,
    memory: list[Tensor],
    weights: Tensor,
    slots: Tensor,
    *options: Any,
) -> list[Tensor]:
    call, half = Options(*options), len(memory) // 2
    keys, values = memory[:half], memory[half:]
    if _fits(query, keys, values, call):
        with guard.falling_back(query.device, *_case(query, values[0], call)):
            return _launched_gradients(grad, query, memory, weights, slots, call)
    inputs = [x.detach().requires_grad_() for x in (query, *memory)]
    with torch.enable_grad():
        read = plain_read(inputs[0], inputs[1 : half + 1], inputs[half + 1 :], call)
    return list(torch.autograd.grad(read, inputs, grad))


def _launched_gradients(
    grad: Tensor,
    query: Tensor,
    memory: list[Tensor],
    weights: Tensor,
    slots: Tensor,
    options: Options,
) -> list[Tensor]:
    half = len(memory) // 2
    grad, query, *memory = map(launch.even, (grad, query, *memory))
    keys, values = memory[:half], memory[half:]
    grad_query, *sums = [x.new_empty(x.shape) for x in (query, *memory)]
    pairs = launch.query_gradient(grad, keys, values, weights, slots, grad_query, options)
    readers = [ReaderGradients(query, grad, pairs, slots, options, half)]
    for n, (grad_keys, grad_values) in enumerate(zip(sums[:half], sums[half:], strict=True)):
        launch.memory_gradient(readers, n, grad_keys, grad_values, options.heads)
    return [grad_query, *sums]


torch.library.impl("rl_nfm::attend", "cuda", _operator)
torch.library.impl("rl_nfm::attend_backward", "cuda", _backward_operator)


def _case(query: Tensor, values: Tensor, options: Options) -> tuple[Any, ...]:
    """All that the kernels are compiled for, except the sizes of layers."""
    heads = options.heads
    sizes = query.shape[-1] // heads, values.shape[-1] // heads
    return query.dtype, heads, *sizes, options.top_k, options.null_slot


def _check(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    key: int,
    value: int,
    top_k: int,
    null_slot: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Results and gradients beside expected ones.

    The case is a reader of three positions over one finer layer, whose windows overlap.
    """
    options = Options([3, 3 * top_k + 1], "space_to_depth", heads, key**-0.5, top_k, null_slot)
    generator = torch.Generator().manual_seed(0)
    parts = [(heads * key, 0, 0), (0, heads * key, heads * value)]
    plain = [
        torch.randn(2, n, sum(part), generator=generator).to(dtype).double().requires_grad_()
        for n, part in zip(options.sizes, parts, strict=True)
    ]
    actual = [x.detach().to(device, dtype).requires_grad_() for x in plain]
    packed = [Packed(x, part) for x, part in zip(actual, parts, strict=True)]
    read, _ = attend([packed[1], packed[0]], options)
    _, keys, values = Packed(plain[1], parts[1]).split()
    expected = plain_read(plain[0], [keys], [values], options)
    grad = torch.randn(expected.shape, generator=generator).to(dtype)
    found = [read, *torch.autograd.grad(read, actual, grad.to(device))]
    wanted = [expected, *torch.autograd.grad(expected, plain, grad.double())]
    yield from zip(found, (x.to(device) for x in wanted), strict=True)


guard = TritonGuard("attention", _check)
