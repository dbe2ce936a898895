"""Norms by name, and group norm with the ReLU behind it in one kernel.

On a GPU, PyTorch's group norm under autocast turns half precision into float32 and lays channels
out first, at every norm. `GroupNorm` keeps the type and the layout: there it runs in Triton
(`norm_kernels`), elsewhere it is PyTorch's.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from rl_nfm.support.modules import is_untouched
from rl_nfm.support.triton_guard import TritonGuard

Norm = Literal["batch", "group", "none"]
CHANNELS_PER_GROUP = 16
"""Wu and He 2018, "Group Normalization", table 3: best with a fixed number of channels."""
_KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_KERNEL_CHANNELS_PER_GROUP = 4096


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm`; on a GPU the output keeps the input's type, and has its channels last."""

    def forward(self, input: Tensor) -> Tensor:
        """The norm of [N, C, ...]."""
        return self.run(input, relu=False)

    def run(self, x: Tensor, *, relu: bool) -> Tensor:
        """The norm of x [N, C, ...], and its ReLU where asked for."""
        if self._fits_kernels(x) and not _is_transformed() and _ready(x.device, x.dtype):
            return _run_kernels(self, x, relu)
        y = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return F.relu(y) if relu else y

    def _fits_kernels(self, x: Tensor) -> bool:
        return (
            self.affine
            and x.dtype in _KERNEL_TYPES
            and x.numel() > 0
            and x.dim() > 1
            and x.shape[1] == self.num_channels
            and self.num_channels <= _KERNEL_CHANNELS_PER_GROUP * self.num_groups
        )


class FusedSequential(nn.Sequential):
    """`nn.Sequential` in which a group norm and the ReLU behind it run as one."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Apply the layers in turn."""
        for layer in fuse(self):
            x = layer(x)
        return x


def fuse(layers: Iterable[nn.Module]) -> Iterator[Callable[[Tensor], Tensor]]:
    """The layers in turn, a group norm and the ReLU behind it as one function."""
    waiting: GroupNorm | None = None
    for layer in layers:
        if waiting is not None and is_untouched(layer, nn.ReLU):
            yield functools.partial(norm_relu, waiting)
            waiting = None
            continue
        if waiting is not None:
            yield waiting
        waiting = layer if isinstance(layer, GroupNorm) and is_untouched(layer, GroupNorm) else None
        if waiting is None:
            yield layer
    if waiting is not None:
        yield waiting


def norm_relu(norm: nn.Module, x: Tensor) -> Tensor:
    """The ReLU of `norm(x)`, in one kernel where there is one."""
    if isinstance(norm, GroupNorm) and is_untouched(norm, GroupNorm):
        return norm.run(x, relu=True)
    return F.relu(norm(x))


def make_norm(norm: Norm, channels: int, *, rank: int = 2) -> nn.Module:
    """The norm layer of [B, channels, ...] with `rank` more dimensions; the identity for `none`.

    A group has 16 channels, or the least number above that divides `channels` evenly.
    """
    if norm == "batch":
        kinds = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        return kinds[rank](channels)
    if norm == "none":
        return nn.Identity()
    most = max(1, channels // CHANNELS_PER_GROUP)
    groups = next(n for n in range(most, 0, -1) if channels % n == 0)
    return GroupNorm(groups, channels)


def _is_transformed() -> bool:
    """Whether `torch.func` or forward-mode derivatives are at work, which the kernels have not."""
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def _run_kernels(norm: GroupNorm, x: Tensor, relu: bool) -> Tensor:
    from rl_nfm.backbones.norm_kernels import group_norm

    rows = x.movedim(1, -1)  # [N, ..., C]: as it lies, where channels are last in memory
    flat = rows.reshape(x.shape[0], -1, norm.num_channels).contiguous()
    y, _ = group_norm(flat, norm.weight, norm.bias, norm.num_groups, norm.eps, relu)
    return y.view(rows.shape).movedim(-1, 1)


def _check(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Results and gradients of the kernels beside PyTorch's in float64."""
    generator = torch.Generator().manual_seed(0)
    # 33 x 33 x 16: the forward keeps that in registers, the backward reads it in two pieces. One
    # shape, because each takes a second to compile.
    drawn = torch.randn(2, 1, 32, 33, 33, generator=generator).to(device, dtype)
    results: list[list[Tensor]] = []
    for exact in (False, True):
        norm = GroupNorm(2, 32, device=device, dtype=torch.float64 if exact else None)
        x, grad = drawn.double() if exact else drawn
        leaves = (x.detach().requires_grad_(), norm.weight, norm.bias)
        if exact:
            y = F.group_norm(leaves[0], norm.num_groups, *leaves[1:], norm.eps).relu()
        else:
            y = _run_kernels(norm, leaves[0], True)
        results.append([y, *torch.autograd.grad(y, leaves, grad)])
    yield from zip(*results, strict=True)


guard = TritonGuard("group norm", _check)


def _ready(device: torch.device, dtype: torch.dtype) -> bool:
    return guard.ready(device, dtype)


# What `torch.compiler.assume_constant_result` does; but that imports the compiler, which takes as
# long as to import PyTorch itself, in processes too that compile nothing.
_ready._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
