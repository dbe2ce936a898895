"""A search for the routing of modular networks: candidates of a seed compete on training loss.

Not in the published code, where gradients alone move the routing and most runs end answering 0
always. An XOR gives no gradient towards either of its inputs alone, so a module with one wrong
input cannot improve; but where both are drawn right, the gate is learned in some fifty updates. So
a position is drawn anew at a time, and what lowers the loss is kept. A gate that is right but not
read from above shows no gain either, so a change often goes on to one of the units that the
changed position now reads, and so on down.

Works on stacked parameters (`torch.func.stack_module_state`). Shapes: S seeds, P candidates of a
seed, which lie together on the leading axis of S P; T tasks, M positions of a level.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from rl_nfm.modular.networks import HierarchicallyModular

KEPT = 4
"""One candidate in so many is kept as it is."""
DESCENT = 1 / 2
"""Probability that a change goes on to a unit that the changed position reads."""


class Draws:
    """Random numbers [S P, ...] of which each seed draws its own: the same alone and in a batch.

    Args:
        generators: of each seed, on the CPU.
    """

    def __init__(self, generators: Sequence[torch.Generator]):
        self.generators = generators

    def __call__(self, draw: Callable[..., Tensor], *shape: int) -> Tensor:
        """What `draw(shape, generator=...)` gives for each seed's share of the first axis."""
        share = (shape[0] // len(self.generators), *shape[1:])
        return torch.cat([draw(share, generator=generator) for generator in self.generators])


def survivors(losses: Tensor, candidates: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Which candidate each is to be a copy of.

    Args:
        losses: [S P]; nan counts as worst.
        candidates: P.
        draws: chooses among the kept.

    Returns:
        Sources int64 [S P], and whether a candidate is new rather than kept, bool [S P].
    """
    ranks = losses.nan_to_num(float("inf")).view(-1, candidates).argsort(1)  # [S, P]
    kept = max(candidates // KEPT, 1)
    choice = draws(partial(torch.randint, kept), losses.numel()).view(ranks.shape)
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
    draws: Draws,
) -> None:
    """Replace the worst candidates by copies of the best in which a few positions are drawn anew.

    A position gets new routing logits (for one task) where these are trained, and new weights
    where it has a module of its own; shared modules stay. Moments of the optimiser go along.

    Args:
        model: the network that all candidates are copies of.
        parameters: name to [S P, ...]; changed in place.
        optimizer: of `parameters`; its state is changed in place.
        losses: training losses [S P].
        candidates: P.
        draws: all randomness.
    """
    sources, new = survivors(losses.cpu(), candidates, draws)
    for parameter in parameters.values():
        for tensor in (parameter, *_moments(optimizer, parameter)):
            tensor.copy_(tensor[sources.to(tensor.device)])
    count, tasks = len(new), parameters["module_input_logits.0"].shape[1]
    positions = [level.positions for level in model.levels] + [1]
    start = draws(partial(torch.randint, sum(positions)), count)
    task = draws(partial(torch.randint, tasks), count)
    place = torch.full((count,), -1)  # at the level in question; -1: nothing changes there
    for depth in range(len(positions) - 1, -1, -1):
        begun = start - sum(positions[:depth])
        place = torch.where((begun >= 0) & (begun < positions[depth]) & new, begun, place)
        changed = torch.arange(positions[depth]) == place[:, None]  # [S P, M]
        for name in _names_of(model, parameters, depth):
            mask = changed
            if "logits" in name:
                of_task = torch.arange(tasks) == task[:, None]
                mask = of_task[:, :, None, None] & changed[:, None, None]  # [S P, T, 1, M]
            _replace(name, parameters[name], mask, model, optimizer, draws)
        if depth > 0:
            place = _unit_read(parameters, depth, place, task, model, draws)


def _unit_read(
    parameters: Mapping[str, Tensor],
    depth: int,
    place: Tensor,
    task: Tensor,
    model: HierarchicallyModular,
    draws: Draws,
) -> Tensor:
    """A position of the level below that the changed one reads, int64 [S P]; often -1, none."""
    read = model.chosen_units(parameters)[depth].cpu()  # [S P, T, R, M]
    rank = draws(partial(torch.randint, read.shape[2]), len(place))
    units = read[torch.arange(len(place)), task, rank, place.clamp(min=0)]
    goes_on = (draws(torch.rand, len(place)) < DESCENT) & (place >= 0)
    return torch.where(goes_on, units // model.levels[depth - 1].arch[-1], -1)


def _names_of(
    model: HierarchicallyModular, parameters: Mapping[str, Tensor], depth: int
) -> list[str]:
    """Trained parameters that belong to the positions of a level (the last: to the outputs)."""
    names = [f"module_input_logits.{depth}"]
    if depth < len(model.levels):
        shared = [level.num_shared is not None for level in model.levels]
        if shared[depth]:
            names.append(f"location_logits.{sum(shared[:depth])}")
        else:
            bank = f"banks.{model.bank_of[depth]}."
            names += [name for name in parameters if name.startswith(bank)]
    return [name for name in names if parameters[name].requires_grad]


def _replace(
    name: str,
    parameter: Tensor,
    mask: Tensor,
    model: HierarchicallyModular,
    optimizer: torch.optim.Optimizer,
    draws: Draws,
) -> None:
    """New values with the distribution of the start where `mask` is true, without moments."""
    if "logits" in name:
        fresh = draws(torch.randn, *parameter.shape)
    else:
        _, bank, _, layer = name.split(".")
        fan_in = model.get_parameter(f"banks.{bank}.weights.{layer}").shape[-1]
        fresh = (2 * draws(torch.rand, *parameter.shape) - 1) / fan_in**0.5
    mask = mask.view(*mask.shape, *[1] * (parameter.dim() - mask.dim())).to(parameter.device)
    parameter.copy_(torch.where(mask, fresh.to(parameter.device), parameter))
    for moment in _moments(optimizer, parameter):
        moment.masked_fill_(mask, 0.0)


def _moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> list[Tensor]:
    """The optimiser's running averages of a parameter; none before its first step."""
    return [value for value in optimizer.state.get(parameter, {}).values() if value.dim() > 0]
