"""A search for the routing of modular networks: candidates of a seed compete on training loss.

Not in the published code, where gradients alone move the routing and most runs end answering 0
always. An XOR gives no gradient towards either of its inputs alone, so a module with one wrong
input cannot improve; but a candidate in which both are drawn right learns the gate in a hundred
updates. So a few positions are re-drawn at a time and what lowers the loss is kept. A gate that is
right but not yet read from above shows no gain either, so several positions change at once.

Works on stacked parameters (`torch.func.stack_module_state`). Shapes: S seeds, P candidates of a
seed, which lie together on the leading axis of S P; T tasks, M positions of a level.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from rl_nfm.modular.networks import HierarchicallyModular

KEPT = 4
"""One candidate in so many is kept as it is."""
REDRAWN = 1 / 3
"""Probability that a position of a new candidate is re-drawn."""


def survivors(losses: Tensor, candidates: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which candidate each is to be a copy of.

    Args:
        losses: [S P]; nan counts as worst.
        candidates: P.
        generator: chooses among the kept.

    Returns:
        Sources int64 [S P], and whether a candidate is new rather than kept, bool [S P].
    """
    ranks = losses.nan_to_num(float("inf")).view(-1, candidates).argsort(1)  # [S, P]
    kept = max(candidates // KEPT, 1)
    choice = torch.randint(kept, ranks.shape, generator=generator)
    sources = torch.arange(candidates).expand_as(ranks).clone()
    sources.scatter_(1, ranks[:, kept:], ranks.gather(1, choice)[:, kept:])
    new = torch.zeros_like(ranks, dtype=torch.bool).scatter_(1, ranks[:, kept:], True)
    first = torch.arange(len(ranks))[:, None] * candidates
    return (sources + first).flatten(), new.flatten()


@torch.no_grad()
def redraw(
    model: HierarchicallyModular,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    losses: Tensor,
    candidates: int,
    generator: torch.Generator,
) -> None:
    """Replace the worst candidates by copies of the best with some positions re-drawn.

    Positions get new routing logits where these are trained, and new weights where the module is
    their own; shared modules stay. Moments of the optimiser go with the parameters.

    Args:
        model: the network that all candidates are copies of.
        parameters: name to [S P, ...]; changed in place.
        optimizer: of `parameters`; its state is changed in place.
        losses: training losses [S P].
        candidates: P.
        generator: of all randomness.
    """
    sources, new = survivors(losses.cpu(), candidates, generator)
    for parameter in parameters.values():
        moments = [v for v in optimizer.state.get(parameter, {}).values() if v.dim() > 0]
        for tensor in (parameter, *moments):
            tensor.copy_(tensor[sources.to(tensor.device)])
    masks = _draw_positions(model, new, generator)
    for name, parameter in parameters.items():
        mask = _mask_of(name, model, masks)
        if mask is None or not parameter.requires_grad:
            continue
        mask = mask.to(parameter.device)
        while mask.dim() < parameter.dim():
            mask = mask.unsqueeze(-1)
        fresh = _fresh(name, parameter, model, generator).to(parameter.device)
        parameter.copy_(torch.where(mask, fresh, parameter))
        for value in optimizer.state.get(parameter, {}).values():
            if value.dim() > 0:
                value.masked_fill_(mask, 0.0)


def _draw_positions(
    model: HierarchicallyModular, new: Tensor, generator: torch.Generator
) -> list[Tensor]:
    """Positions to re-draw of each level and of the outputs, bool [S P, M]; at least one each."""
    counts = [level.positions for level in model.levels] + [1]
    shape = (len(new), sum(counts))
    drawn = torch.rand(shape, generator=generator) < REDRAWN
    one = torch.randint(shape[1], (len(new), 1), generator=generator)
    drawn |= ~drawn.any(1, keepdim=True) & (torch.arange(shape[1]) == one)
    return list((drawn & new[:, None]).split(counts, dim=1))


def _mask_of(name: str, model: HierarchicallyModular, masks: list[Tensor]) -> Tensor | None:
    """What of a parameter is re-drawn, with as many leading axes as needed; None: nothing."""
    kind, index, *_ = name.split(".")
    if kind == "module_input_logits":
        return masks[int(index)][:, None, None, :]  # [S P, T, N, M]
    shared = [level.num_shared is not None for level in model.levels]
    if kind == "location_logits":
        level = [depth for depth, own in enumerate(shared) if own][int(index)]
        return masks[level][:, None, None, :]
    return None if any(shared) else masks[int(index)]  # banks: [S P, M, ...]


def _fresh(
    name: str, parameter: Tensor, model: HierarchicallyModular, generator: torch.Generator
) -> Tensor:
    """New values with the distribution of the start."""
    if not name.startswith("banks"):
        return torch.randn(parameter.shape, generator=generator)
    _, bank, _, layer = name.split(".")
    fan_in = model.get_submodule(f"banks.{bank}").get_parameter(f"weights.{layer}").shape[-1]
    return (2 * torch.rand(parameter.shape, generator=generator) - 1) / fan_in**0.5
