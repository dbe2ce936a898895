"""What the kernels of `triton_loop` are compiled for, and the memory that they write to.

Shapes as in `step`, and T time steps; what is kept of them is [n, T, B, ...].
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rl_nfm.rims.products import LayerCall
from rl_nfm.rims.step import StepSpec, StepWeights, not_none
from rl_nfm.support.triton_launch import power

MOST_NUMBERS = 2**14
"""In a program: of all RIMs' states, of the products of their queries and keys, or of a state."""


class Sizes(NamedTuple):
    """What the kernels are compiled for, apart from the parts that are absent."""

    spec: StepSpec
    rims: int
    size: int
    read: int
    """Of what all heads of a RIM read; 0 without communication."""
    update: int
    """Of the update with its gate; 0 without communication."""

    @staticmethod
    def of(spec: StepSpec, weights: StepWeights) -> "Sizes":
        """The sizes of a layer."""
        n, size, _ = weights.hidden.shape
        read, update = (0, 0) if weights.output is None else weights.output.shape[1:]
        return Sizes(spec, n, size, read, update)

    @property
    def fit(self) -> bool:
        """Whether the kernels are made for these."""
        spec, rims = self.spec, power(self.rims)
        alone = spec.gate is None and not spec.heads
        if not alone and not (spec.gate == "null" and spec.slots == 1 and spec.heads):
            return False
        widest = max(spec.key_size, self.read // max(1, spec.heads))
        return max(rims * power(self.size), 1 if alone else rims**2 * power(widest)) <= MOST_NUMBERS

    @property
    def state(self) -> dict[str, int]:
        """Constants of kernels for one RIM in a program."""
        padded = power(self.size)
        return {"S": self.size, "SP": padded, "num_warps": _warps(padded, 256)}

    @property
    def states(self) -> dict[str, int]:
        """Constants of kernels for all RIMs in a program."""
        padded = power(self.rims)
        warps = _warps(padded * power(self.size), 256)
        common = self.state | {"N": self.rims, "NP": padded, "num_warps": warps}
        return common | {"TOP": self.spec.num_active}

    @property
    def heads(self) -> dict[str, int]:
        """Constants of kernels of the communication."""
        spec, padded = self.spec, power(self.rims)
        value = self.read // spec.heads
        sizes = {"H": spec.heads, "D": spec.key_size, "DP": power(spec.key_size)}
        warps = _warps(padded**2 * power(max(spec.key_size, value)), 1024)
        return sizes | {
            "N": self.rims, "NP": padded, "E": value, "EP": power(value), "num_warps": warps,
        }  # fmt: skip


class Tape(NamedTuple):
    """What the forward keeps, or of one step only (kept = 1) where no gradient is asked for."""

    hidden: Tensor
    """[n, T, B, s], always of all steps: the state before each."""
    cell: Tensor | None
    """Likewise; None for a GRU."""
    active: Tensor
    """uint8 [n, T, B]."""
    gate: Tensor | None
    """Of the input, [n, T, B]; None: 1."""
    acts: Tensor
    """[n, kept, B, G]: gates after their nonlinearity."""
    extra: Tensor
    """[n, kept, B, s]: see `StepSaved`."""
    shown: Tensor | None = None
    """[n, kept, B, s]; this and the following: None without communication."""
    projected: Tensor | None = None
    """[n, kept, B, Q]: queries, keys and values."""
    probs: Tensor | None = None
    """[n, kept, B, h n]."""
    read: Tensor | None = None
    """[n, kept, B, h e]."""
    update: Tensor | None = None
    """[n, kept, B, 2 s]: the linear part and the gate after their nonlinearities, if gated."""


def new_tape(layer: LayerCall, sizes: Sizes, kept: int) -> Tape:
    """Memory for the tape."""
    spec, drive = layer.spec, layer.drive
    n, steps, batch, gates = drive.shape

    def new(width: int, count: int = kept) -> Tensor:
        return drive.new_empty(n, count, batch, width)

    tape = Tape(
        hidden=new(sizes.size, steps),
        cell=new(sizes.size, steps) if spec.cell == "lstm" else None,
        active=drive.new_empty(n, steps, batch, dtype=torch.uint8),
        gate=None if spec.gate is None else drive.new_empty(n, steps, batch),
        acts=new(gates),
        extra=new(sizes.size),
    )
    if not spec.heads:
        return tape
    return tape._replace(
        shown=new(sizes.size),
        projected=new(not_none(layer.weights.project).shape[-1]),
        probs=new(spec.heads * n),
        read=new(sizes.read),
        update=new(sizes.update) if sizes.update > sizes.size else None,
    )


class Strided(NamedTuple):
    """A tensor [n, T, B, ...] from outside as the kernels take it."""

    tensor: Tensor | None
    rim: int = 0
    step: int = 0
    row: int = 0

    @staticmethod
    def of(tensor: Tensor | None) -> "Strided":
        """The tensor, copied if its last dimension is not dense; None: there is none."""
        if tensor is None:
            return Strided(None)
        tensor = tensor.resolve_neg()
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            tensor = tensor.contiguous()
        return Strided(tensor, *tensor.stride()[:3])


def _warps(numbers: int, each: int) -> int:
    return min(8, max(1, numbers // each))
