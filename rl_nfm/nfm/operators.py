"""The fused attention as operators of PyTorch's dispatcher: what `torch.compile` sees of it.

`kernels` implements them for the CPU, `triton_attention` for CUDA. Here a reader's backward makes
gradients of its own for the whole memory: the detours by which readers share one gradient are
nothing that a graph could follow.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_CALL = "int[] sizes, str mode, int heads, float scale, int top_k, bool null_slot"
torch.library.define(
    "rl_nfm::attend",
    f"(Tensor query, Tensor[] keys, Tensor[] values, {_CALL}) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "rl_nfm::attend_backward",
    f"(Tensor grad, Tensor query, Tensor[] memory, Tensor weights, Tensor chosen, {_CALL})"
    " -> Tensor[]",
)


def attend(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What is read [B, P, H * V], and of each head the weights and choices [B, P, H, k].

    Args:
        *args: query, keys, values and the fields of `Options`. Choices are numbers of rows on the
            CPU, of slots on CUDA.
    """
    return torch.ops.rl_nfm.attend(*args)


@torch.library.register_fake("rl_nfm::attend")
def empty_results(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    sizes: list[int],
    mode: str,
    heads: int,
    scale: float,
    top_k: int,
    null_slot: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors for the results, not filled."""
    del keys, sizes, mode, scale, null_slot
    chosen = (*query.shape[:2], heads, top_k)
    return (
        query.new_empty((*query.shape[:2], values[0].shape[-1])),
        query.new_empty(
            chosen, dtype=torch.float64 if query.dtype == torch.float64 else torch.float32
        ),
        query.new_empty(chosen, dtype=torch.int16 if query.is_cuda else torch.int32),
    )


@torch.library.register_fake("rl_nfm::attend_backward")
def _empty_gradients(grad: Tensor, query: Tensor, memory: list[Tensor], *rest: Any) -> list[Tensor]:
    del grad, rest
    return [tensor.new_empty(tensor.shape) for tensor in (query, *memory)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, keys, values, *ctx.options = inputs
    _, weights, chosen = output
    ctx.mark_non_differentiable(weights, chosen)
    ctx.save_for_backward(query, weights, chosen, *keys, *values)


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    query, weights, chosen, *memory = ctx.saved_tensors
    grad_query, *sums = torch.ops.rl_nfm.attend_backward(
        grad, query, memory, weights, chosen, *ctx.options
    )
    half = len(memory) // 2
    return grad_query, sums[:half], sums[half:], *[None] * len(ctx.options)


torch.library.register_autograd("rl_nfm::attend", _differentiate, setup_context=_save)
