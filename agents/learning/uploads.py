"""Arrays that cross to the device together: one pinned buffer, one copy.

On the CPU buffer and tensors share their memory and nothing is copied a second time.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

_ALIGNMENT = 64
_NUMPY: dict[torch.dtype, type[np.generic]] = {
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
    torch.float32: np.float32,
}


class Uploads:
    """Named arrays on the host and their twins on the device."""

    def __init__(
        self, fields: Mapping[str, tuple[tuple[int, ...], torch.dtype]], device: torch.device
    ):
        """Allocate zeros.

        Args:
            fields: shape and type (uint8, bool or float32) of each array.
            device: where the tensors live.
        """
        offsets, total = {}, 0
        for name, (shape, dtype) in fields.items():
            offsets[name] = total
            size = int(np.prod(shape)) * dtype.itemsize
            total += -(-size // _ALIGNMENT) * _ALIGNMENT
        cuda = device.type == "cuda"
        self._host = torch.zeros(total, dtype=torch.uint8, pin_memory=cuda)
        self._device = torch.zeros(total, dtype=torch.uint8, device=device) if cuda else self._host
        self._arrays: dict[str, NDArray[np.generic]] = {}
        self.tensors: dict[str, Tensor] = {}
        """What `copy` fills, by name."""
        for name, (shape, dtype) in fields.items():
            size = int(np.prod(shape)) * dtype.itemsize
            part = slice(offsets[name], offsets[name] + size)
            self._arrays[name] = self._host.numpy()[part].view(_NUMPY[dtype]).reshape(shape)
            self.tensors[name] = self._device[part].view(dtype).view(shape)

    def fill(self, **arrays: ArrayLike) -> None:
        """Write the host's side; only once the copy before is done."""
        for name, array in arrays.items():
            np.copyto(self._arrays[name], array)

    def copy(self) -> None:
        """Host to device, in the current stream's order."""
        if self._device is not self._host:
            self._device.copy_(self._host, non_blocking=True)
