"""The state of an optimiser as named tensors: how it is saved and restored.

Saving a tensor loses its memory format. A fused optimiser walks through parameter, gradient and
moments as raw memory, so a moment whose strides differ from its parameter's would be applied to the
wrong weights. Every restored moment is therefore laid out like its parameter.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def optimizer_state(
    optimizer: torch.optim.Optimizer, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """The optimiser's moments and step counts, by `NAME.FIELD`.

    Args:
        optimizer: any of torch's.
        names: one for each parameter, in the optimiser's order; None: they are numbered.
    """
    names = _numbers(optimizer) if names is None else names
    state = optimizer.state_dict()["state"]
    return {
        f"{names[index]}.{field}": value
        for index, values in state.items()
        for field, value in values.items()
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    saved: Mapping[str, Any],
    names: Sequence[str] | None = None,
    groups: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Restore what `optimizer_state` returned.

    Args:
        optimizer: its parameters must have the same names and shapes.
        saved: moments and step counts by `NAME.FIELD`.
        names: as in `optimizer_state`.
        groups: options of the parameter groups; None leaves them unchanged.

    Raises:
        ValueError: a name is unknown, a moment is missing that other parameters have, or a moment's
            shape is not its parameter's.
    """
    names = _numbers(optimizer) if names is None else names
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    index_of = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {}
    for key, value in saved.items():
        name, _, field = key.rpartition(".")
        if name not in index_of:
            raise ValueError(f"optimiser: {key!r} belongs to no parameter")
        index = index_of[name]
        shape = () if field == "step" else tuple(parameters[index].shape)
        if isinstance(value, Tensor) and tuple(value.shape) != shape:
            raise ValueError(f"optimiser: {key!r} has shape {tuple(value.shape)}, must be {shape}")
        state.setdefault(index, {})[field] = value
    every = {field for values in state.values() for field in values}
    for index, values in state.items():
        if missing := every - values.keys():
            raise ValueError(f"optimiser: {names[index]}.{min(missing)} is missing")
    rates = [group["lr"] for group in optimizer.param_groups]
    kept = optimizer.state_dict()["param_groups"] if groups is None else list(groups)
    optimizer.load_state_dict({"state": state, "param_groups": kept})
    if groups is None:
        # Loading copies the rate, which may be a tensor that a schedule writes to.
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    for parameter, values in optimizer.state.items():
        for field, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[field] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _numbers(optimizer: torch.optim.Optimizer) -> list[str]:
    return [str(index) for index in range(sum(len(g["params"]) for g in optimizer.param_groups))]
