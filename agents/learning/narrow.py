"""Weights of a network without gradients in half precision, where autocast would cast them anyway.

Under autocast every convolution and every linear layer casts its float32 weights when it is called.
Acting does so at every step of the environments, with weights that change once per update: of the
419 kernels of an act of `nfm_paper` 129 were such casts. An update does so with the target, which
changes once in hundreds of updates. Which weights these are cannot be told from the modules, since
code may use a layer's weights as it likes. So one use is watched: a weight that serves convolutions
and linear layers under autocast, and nothing else, may be cast beforehand. What is computed stays
the same, bit for bit.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_CAST = (F.linear, F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d)
"""Functions whose arguments autocast brings to half precision."""
_READ_ONLY = ("__get__", "size", "dim", "stride", "numel", "is_contiguous")
"""What asks a tensor about itself, and reads no number of it; unless it gives another tensor, as
`T` does. An address is for something that knows the type it expects there."""


class _Watch(TorchFunctionMode):
    """Notes which tensors were cast by autocast, and which had any other use."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.cast: set[int] = set()
        self.others: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        asks = getattr(func, "__name__", "") in _READ_ONLY and not isinstance(found, Tensor)
        if not asks:
            casting = func in _CAST and torch.is_autocast_enabled(self.device.type)
            (self.cast if casting else self.others).update(_ids((*args, *kwargs.values())))
        return found


def _ids(values: Iterable[Any]) -> Iterable[int]:
    for value in values:
        if isinstance(value, Tensor):
            yield id(value)
        elif isinstance(value, list | tuple):
            yield from _ids(value)


def narrow_(network: nn.Module, dtype: torch.dtype, run: Callable[[], object]) -> int:
    """Cast, in place, the float32 parameters that autocast would cast to `dtype` in every `run`.

    Args:
        network: without gradients.
        dtype: of autocast.
        run: uses the network under autocast, as all later uses will.

    Returns:
        How many parameters were cast.
    """
    parameters = list(network.parameters())
    watch = _Watch(parameters[0].device)
    with watch:
        run()
    chosen = [
        p
        for p in parameters
        if p.dtype == torch.float32 and id(p) in watch.cast and id(p) not in watch.others
    ]
    for parameter in chosen:
        # The allocator knows it from another stream than the one that reads; a fake GPU has none.
        if parameter.is_cuda and torch.cuda.is_available():
            parameter.data.record_stream(torch.cuda.current_stream(parameter.device))
        parameter.data = parameter.data.to(dtype)
    return len(chosen)
