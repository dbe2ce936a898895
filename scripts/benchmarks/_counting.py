"""Kernels, bytes and floating-point operations of what runs inside a `Counter`, on fake tensors.

Each operation counts as the kernels that PyTorch's eager CUDA path launches for it, according to
PyTorch's sources (helpers and caching inside cuDNN are not seen), and as the bytes that it must
read and write. A copy between host and device, or an operation whose output shape depends on
values, waits for the device and is counted as synchronising.
"""

import collections
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_FREE = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "device",
    "diagonal", "empty", "empty_like", "empty_strided", "expand", "is_same_size",
    "lift_fresh", "new_empty", "new_empty_strided", "permute", "select", "slice", "split",
    "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view",
}  # fmt: skip
_WRITES_ONLY = {
    "arange", "fill_", "full", "full_like", "new_full", "new_ones", "new_zeros", "ones",
    "ones_like", "rand", "randint", "randn", "random_", "scalar_tensor", "zero_", "zeros",
    "zeros_like",
}  # fmt: skip
_KERNELS = {"native_group_norm": 3, "native_group_norm_backward": 5, "topk": 2, "sort": 3}
"""Kernels of operations that launch a fixed number other than 1."""
_TENSORS_PER_LAUNCH, _ELEMENTS_PER_LAUNCH = 100, 320 * 65536
"""Kernels of multi-tensor operations."""


def total_bytes(tensors: list[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def tensors_in(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


@dataclasses.dataclass
class Tally:
    """Sums over operations."""

    kernels: int = 0
    bytes: int = 0
    flops: int = 0


class Counter(TorchDispatchMode):
    """Counts the operations dispatched inside the block, in total and by name."""

    active: "Counter | None" = None
    """The innermost counter."""

    def __init__(self) -> None:
        super().__init__()
        self.total = Tally()
        self.by_name: dict[str, Tally] = collections.defaultdict(Tally)
        self.synchronising: dict[str, int] = collections.Counter()

    def __enter__(self) -> "Counter":
        """Start counting."""
        Counter.active = self
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        """Stop counting."""
        Counter.active = None
        super().__exit__(*args)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note what it would take on a GPU."""
        kwargs = kwargs or {}
        name = func._schema.name.rpartition("::")[2]
        try:
            out = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise RuntimeError(f"{name} waits for the device") from error
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(out)
        if len({x.device.type for x in (*inputs, *outputs) if x.dim() or name == "_to_copy"}) > 1:
            self.synchronising[name] += 1
        if name in _FREE:
            return out
        inputs = tensors_in((args, {k: v for k, v in kwargs.items() if k != "out"}))
        one = Tally(_kernels(name, args, inputs), _traffic(name, args, inputs, outputs))
        count: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if count is not None:
            one.flops = count(*args, **kwargs, out_val=out)
        self.add(name, one)
        return out

    def add(self, name: str, one: Tally) -> None:
        """Also count kernels that are launched without PyTorch's dispatcher."""
        for tally in (self.total, self.by_name[name]):
            tally.kernels += one.kernels
            tally.bytes += one.bytes
            tally.flops += one.flops


def _kernels(name: str, args: Any, inputs: list[Tensor]) -> int:
    if name == "convolution":
        return 1 + (args[2] is not None) + _relayouts(args[0])
    if name == "convolution_backward":
        return 1 + sum(args[-1][:2]) + args[-1][2] + _relayouts(args[0]) + _relayouts(args[1])
    if name.startswith(("_foreach", "_fused_adam")):
        first = args[0]
        elements = sum(x.numel() for x in first)
        launches = max(len(first) / _TENSORS_PER_LAUNCH, elements / _ELEMENTS_PER_LAUNCH)
        return max(1, math.ceil(launches)) + ("norm" in name)
    return _KERNELS.get(name, 1)


def _relayouts(x: Tensor) -> int:
    """Half-precision convolutions run with channels last, whatever the layout of the input."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return int(not last)


def _traffic(name: str, args: Any, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """Bytes of these tensors, each read or written once."""
    read, written = total_bytes(inputs), total_bytes(outputs)
    if name in _WRITES_ONLY:
        return written
    if name in ("index_select", "index", "gather"):
        return 2 * written
    if name in ("index_copy_", "index_put_", "index_put", "scatter"):
        return 2 * total_bytes(inputs[1:])
    if name == "_fused_adam_":
        return 7 * total_bytes(tensors_in(args[0]))
    if name.startswith("_foreach") and name.endswith("_"):
        return 2 * read
    if name == "convolution":
        again = 2 * written * (args[2] is not None) + 2 * _relayouts(args[0]) * total_bytes(
            [args[0]]
        )
        return read + written + again
    if name == "convolution_backward":
        again = total_bytes([args[0]]) * (sum(args[-1]) - 1)
        return read + written + again + sum(2 * _relayouts(x) * total_bytes([x]) for x in args[:2])
    if name.startswith("native_group_norm"):
        return read + written + total_bytes(inputs[:1]) * (5 if name.endswith("backward") else 1)
    return read + written
