"""The loop of `unroll` in plain PyTorch, around any functions that do what those of `step` do.

Shapes as in `step`, and T time steps.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rl_nfm.rims.products import Kept, LayerCall, Products, Unrolled
from rl_nfm.rims.step import StepSaved, not_none


def forward(
    step: Callable[..., Any],
    layer: LayerCall,
    hidden: Tensor,
    cell: Tensor | None,
    *,
    keep: bool,
) -> tuple[Unrolled, list[Tensor | None]]:
    """Run all steps; see `unroll.Loop`."""
    spec, weights, sequence, drive = layer
    outputs, actives, kept = [], [], []
    for t in range(drive.shape[1]):
        hidden = sequence.reset_state(hidden, t)
        cell = None if cell is None else sequence.reset_state(cell, t)
        new_hidden, new_cell, saved = step(
            spec, weights, sequence.step_inputs(t, drive), hidden, cell
        )
        if keep:
            kept += [hidden, cell, *saved[:-1], *saved.communication]
        hidden, cell = new_hidden, new_cell
        outputs.append(hidden.transpose(0, 1))
        actives.append(saved.active)
    output = torch.stack(outputs)
    if actives[0] is None:
        active = torch.ones(output.shape[:-1], dtype=torch.bool, device=output.device)
    else:
        active = torch.stack([x.squeeze(-1).t() for x in actives]).expand(output.shape[:-1])
    return Unrolled(output, hidden, cell, active), kept


def backward(
    step: Callable[..., Any],
    layer: LayerCall,
    saved: list[Any],
    grads: tuple[Tensor | None, ...],
) -> tuple[Products, Tensor, Tensor | None]:
    """Gradients of the products and of the first states; see `unroll.Loop`."""
    spec, weights, sequence, drive = layer
    kept = _restore(saved, drive.shape[1])
    of_output, of_hidden, of_cell = grads
    zeros = torch.zeros_like(kept[0].hidden)
    of_hidden = zeros if of_hidden is None else of_hidden
    if spec.cell == "lstm" and of_cell is None:
        of_cell = zeros
    products = Products(weights, sequence)
    for t in reversed(range(len(kept))):
        if of_output is not None:
            of_hidden = of_hidden + of_output[t].transpose(0, 1)
        hidden, cell, of_step = kept[t]
        of_hidden, of_cell, step_gradients = step(
            spec, weights, sequence.step_inputs(t, drive), of_step, hidden, cell, of_hidden, of_cell
        )
        of_hidden = sequence.reset_state(not_none(of_hidden), t)
        of_cell = None if of_cell is None else sequence.reset_state(of_cell, t)
        products.add(t, kept[t], step_gradients)
    return products, not_none(of_hidden), of_cell


def _restore(saved: list[Any], steps: int) -> list[Kept]:
    """What `forward` kept of each step."""
    width, plain = len(saved) // steps, len(StepSaved._fields) - 1
    kept = []
    for start in range(0, len(saved), width):
        hidden, cell, *one = saved[start : start + width]
        kept.append(Kept(hidden, cell, StepSaved(*one[:plain], communication=tuple(one[plain:]))))
    return kept
