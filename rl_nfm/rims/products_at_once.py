"""The products that `products` defines, of all steps and RIMs at once: for a GPU.

Shapes as in `step`, and T time steps; N is steps times B, SF is S times F.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rl_nfm.rims.step import StepWeights, not_none


class StepBlock(NamedTuple):
    """Several steps side by side with their gradients, [n, N, ...], where N is steps times B."""

    hidden: Tensor
    gates: Tensor
    product: Tensor
    """The same tensor as `gates` where they are equal."""
    active: Tensor | None
    """bool [n, N, 1]; None: all."""
    gate: Tensor | None
    shown: Tensor | None
    project: Tensor | None
    read: Tensor | None
    output: Tensor | None


def drive_at_once(value: Tensor, keep: Tensor, weight: Tensor) -> Tensor:
    """`SequenceInputs.drive` [n, T, B, G] of one slot, where RIMs read other parts of the input."""
    masked = torch.where(keep, value, 0.0).flatten(1, 2)
    return torch.bmm(masked, weight.transpose(0, 1)).unflatten(1, value.shape[:2])


def multiply_all(
    weights: StepWeights, value: Tensor, keep: Tensor | None, block: StepBlock
) -> tuple[StepWeights, Tensor]:
    """Gradients of the weights, and of what was read of the input.

    Args:
        weights: of a step.
        value: what was read of the input, [T, B, SF].
        keep: bool [n, T, B, F], see `SequenceInputs`; None: all.
        block: of all steps.
    """
    project = output = output_bias = None
    if block.shown is not None and weights.output is not None:
        project = torch.bmm(block.shown.transpose(1, 2), not_none(block.project))
        read, update = not_none(block.read), not_none(block.output)
        if len(weights.output) == 1:
            read, update = read.flatten(0, 1).unsqueeze(0), update.flatten(0, 1).unsqueeze(0)
        output = torch.bmm(read.transpose(1, 2), update)
        if weights.output_bias is not None:
            output_bias = update.sum((0, 1)).view(1, 1, -1)
    rank_query = weights.rank_query
    of_input, of_value = _multiply_inputs(weights.input, value, keep, block)
    of_weights = StepWeights(
        of_input,
        torch.bmm(block.hidden.transpose(1, 2), block.product),
        block.gates.sum(1, keepdim=True),
        None if weights.hidden_bias is None else block.product.sum(1, keepdim=True),
        None if rank_query is None else torch.zeros_like(rank_query),
        project=project,
        output=output,
        output_bias=output_bias,
    )
    return of_weights, of_value


def _multiply_inputs(
    weight: Tensor, value: Tensor, keep: Tensor | None, block: StepBlock
) -> tuple[Tensor, Tensor]:
    """Gradients of the weight for the input [F, n, G], and of what was read [T, B, SF]."""
    of_weights, reads = [], []
    for slot, read in enumerate(value.flatten(0, 1).split(len(weight), -1)):
        gate = None if block.gate is None else block.gate[..., slot : slot + 1]
        if keep is None:
            of_weight, of_read = _multiply_shared(weight, read, block.gates, gate)
        else:
            gates = block.gates if gate is None else block.gates * gate
            kept = keep.flatten(1, 2)
            masked = torch.where(kept, read, 0.0).transpose(1, 2)
            of_weight = torch.bmm(masked, gates).transpose(0, 1)
            of_each = torch.bmm(gates, weight.permute(1, 2, 0))
            of_read = torch.where(kept, of_each, 0.0).sum(0)
        of_weights.append(of_weight)
        reads.append(of_read)
    if len(reads) == 1:
        return of_weights[0], reads[0].view(value.shape)
    return torch.stack(of_weights).sum(0), torch.cat(reads, -1).view(value.shape)


def _multiply_shared(
    weight: Tensor, read: Tensor, gates: Tensor, gate: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `_multiply_inputs`, of one slot that all RIMs read alike."""
    side_by_side = gates.new_empty(len(read), *weight.shape[1:])  # [N, n, G]
    if gate is None:
        side_by_side.copy_(gates.transpose(0, 1))
    else:
        torch.mul(gates.transpose(0, 1), gate.transpose(0, 1), out=side_by_side)
    flat = side_by_side.flatten(1)
    return (read.t() @ flat).view(weight.shape), flat @ weight.flatten(1).t()
