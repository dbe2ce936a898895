"""Hierarchically modular networks with learned or known routing.

From "How Can Knowledge of a Task's Modular Structure Improve Generalization and Training
Efficiency?" (TMLR 2025). Deviations: modules of a level (or of a bank, where shared) are one
batched MLP; the networks put out logits, not probabilities; noise can be handed in, so that a
forward pass is a pure function (many seeds at once by `torch.func.vmap`).

Shapes: B rows, N units of the level below, F values of a unit (1, or the pixels of an image),
M positions of a level, K shared modules, R units that a module reads, T tasks.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from rl_nfm.modular.placement import Routing
from rl_nfm.modular.routing import (
    gumbel_noise,
    perturb,
    straight_through_one_hot,
    straight_through_top_k,
)
from rl_nfm.support.bounds import Bounded


class ModuleBank(nn.Module):
    """M equal MLPs with ReLU between layers, evaluated at once.

    Args:
        count: M.
        arch: sizes from input to output.
    """

    def __init__(self, count: int, arch: Sequence[int]):
        super().__init__()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for inputs, outputs in pairwise(arch):
            bound = 1 / math.sqrt(inputs)  # as torch.nn.Linear
            self.weights.append(torch.empty(count, outputs, inputs).uniform_(-bound, bound))
            self.biases.append(torch.empty(count, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Module m on [..., m, in]: [..., M, in] (or [..., 1, in], for all) to [..., M, out]."""
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if depth > 0:
                x = x.relu()
            x = torch.einsum("...mi,moi->...mo", x, weight) + bias
        return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """One level of a modular network."""

    positions: int
    """Modules, or slots for shared modules."""
    arch: tuple[int, ...]
    """Sizes of a module's MLP; its input is `reads` units."""
    reads: int = 2
    """Units a module reads, in the order of their logits."""
    num_shared: int | None = None
    """Modules in the bank that all levels of this `arch` share; None: each position has its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutingConfig(Bounded):
    """How routing is trained; none of it has an effect in eval mode."""

    use_gumbel: bool = False
    """Add Gumbel(0, 1) noise to routing logits."""
    tau: Annotated[float, Gt(0)] = 1.0
    """Logits (with their noise) are divided by this."""
    per_sample_routing: bool = False
    """Noise of its own for each row, not one for the batch."""


Noise = Sequence[Tensor]
"""One tensor per routing decision, in the order of `HierarchicallyModular.logits()`."""


class HierarchicallyModular(nn.Module):
    """Levels of small MLPs, each of which reads a few units of the level below.

    Routing logits of a position, [T, N, M], say which units it reads; with shared modules, a slot's
    location logits, [T, K, M], say which module works there. The outputs are a last choice of
    `num_outputs` units of the last level.

    Args:
        num_inputs: N of the first level.
        num_outputs: units chosen at the end.
        levels: from inputs to outputs.
        num_tasks: T.
        routing: see `RoutingConfig`.
        known_inputs: tables of a routing whose units are read; then not trained.
        known_outputs: tables of a routing whose last choice, of the outputs, is taken; then not
            trained.
        known_modules: tables of a routing whose modules work at the slots; then not trained.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        levels: Sequence[Level],
        *,
        num_tasks: int = 1,
        routing: RoutingConfig | None = None,
        known_inputs: Routing | None = None,
        known_outputs: Routing | None = None,
        known_modules: Routing | None = None,
    ):
        super().__init__()
        self.levels = tuple(levels)
        self.num_outputs = num_outputs
        self.routing = routing or RoutingConfig()
        self.module_input_logits = nn.ParameterList()
        self.location_logits = nn.ParameterList()
        self.banks = nn.ModuleList()
        self.bank_of: list[int] = []
        units, banks = num_inputs, {}
        for depth, level in enumerate(levels):
            _check_level(depth, level, units)
            self.module_input_logits.append(torch.randn(num_tasks, units, level.positions))
            if level.num_shared is not None:
                self.location_logits.append(
                    torch.randn(num_tasks, level.num_shared, level.positions)
                )
            key = (level.arch, level.num_shared) if level.num_shared else depth
            if key not in banks:
                banks[key] = len(self.banks)
                self.banks.append(ModuleBank(level.num_shared or level.positions, level.arch))
            self.bank_of.append(banks[key])
            units = level.positions * level.arch[-1]
        if units < num_outputs:
            raise ValueError(f"the last level has {units} units, too few for {num_outputs} outputs")
        self.module_input_logits.append(torch.randn(num_tasks, units, 1))
        if known_inputs is not None:
            _set_known(self.module_input_logits, known_inputs.module_inputs)
        if known_outputs is not None:
            last = [levels[-1:] for levels in known_outputs.module_inputs]
            _set_known(self.module_input_logits[-1:], last)
        if known_modules is not None:
            assert known_modules.modules is not None
            tables = [[[(m,) for m in level] for level in task] for task in known_modules.modules]
            _set_known(self.location_logits, tables)

    def logits(self) -> list[Tensor]:
        """All routing logits: module inputs from the first level on, outputs, locations."""
        return [*self.module_input_logits, *self.location_logits]

    def chosen_units(self, parameters: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """Units read, int64 [..., T, R, M] of each level and then of the outputs.

        Args:
            parameters: name to tensor, where they are kept outside the model (stacked over seeds,
                say); by default the model's own.
        """
        tensors = dict(self.named_parameters()) if parameters is None else parameters
        counts = [level.reads for level in self.levels] + [self.num_outputs]
        return [
            tensors[f"module_input_logits.{depth}"].topk(count, dim=-2).indices
            for depth, count in enumerate(counts)
        ]

    def noise_shapes(self, batch_size: int) -> list[tuple[int, ...]]:
        """Shapes of the noise of one forward pass of `batch_size` rows."""
        if not self.routing.use_gumbel:
            return []
        own = self.routing.per_sample_routing
        return [
            (batch_size if own else logits.shape[0], *logits.shape[1:]) for logits in self.logits()
        ]

    def sample_noise(
        self, batch_size: int, generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """Gumbel noise for one forward pass of `batch_size` rows; empty without `use_gumbel`."""
        return [gumbel_noise(shape, generator) for shape in self.noise_shapes(batch_size)]

    def forward(
        self, x: Tensor, task_id: Tensor | None = None, noise: Noise | None = None
    ) -> Tensor:
        """Logits of the outputs.

        Args:
            x: [B, N] or, with units of several values, [B, N, F].
            task_id: int64 [B]; by default task 0.
            noise: as `sample_noise` gives it; by default drawn in training mode. Eval mode uses
                none.

        Returns:
            [B, num_outputs].
        """
        units = x if x.dim() == 3 else x.unsqueeze(-1)  # [B, N, F]
        if task_id is None:
            task_id = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        if noise is None and self.training:
            noise = [sample.to(x.device) for sample in self.sample_noise(len(x))]
        chosen = self._choose(task_id, noise)
        depth = len(self.levels)
        locations = iter(chosen[depth + 1 :])
        for index, level in enumerate(self.levels):
            read = torch.einsum("bnf,rbnm->bmrf", units, chosen[index]).flatten(2)  # [B, M, R*F]
            bank = self.banks[self.bank_of[index]]
            if level.num_shared is None:
                out = bank(read)  # [B, M, out]
            else:
                everywhere = bank(read.unsqueeze(2))  # [B, M, K, out]
                out = torch.einsum("bmko,bkm->bmo", everywhere, next(locations)[0])
            units = out.flatten(1).unsqueeze(-1)  # [B, M*out, 1]
        return torch.einsum("bnf,rbnm->brfm", units, chosen[depth]).flatten(1)

    def _choose(self, task_id: Tensor, noise: Noise | None) -> list[Tensor]:
        """Selections [R, B, N, M], in the order of `logits`; locations have R = 1."""
        per_sample = self.routing.per_sample_routing and self.training
        counts = [level.reads for level in self.levels] + [self.num_outputs]
        chosen = []
        for index, logits in enumerate(self.logits()):
            table = logits[task_id] if per_sample else logits
            if self.training:
                table = perturb(table, noise[index] if noise else None, self.routing.tau)
            count = counts[index] if index < len(counts) else 1
            if count == 1:
                selection = straight_through_one_hot(table).unsqueeze(0)
            else:
                selection = straight_through_top_k(table, count)
            chosen.append(selection if per_sample else selection[:, task_id])
        return chosen


def _check_level(depth: int, level: Level, units: int) -> None:
    where = f"level {depth + 1}"
    if level.positions < 1 or (level.num_shared is not None and level.num_shared < 1):
        raise ValueError(f"{where}: needs at least one module, got {level}")
    if len(level.arch) < 2 or min(level.arch) < 1:
        raise ValueError(f"{where}: module_arch {level.arch} must be at least two positive sizes")
    if (
        level.reads < 1
        or level.arch[0] % level.reads
        or (depth > 0 and level.arch[0] != level.reads)
    ):
        raise ValueError(
            f"{where}: module_arch {level.arch} does not begin with the {level.reads} units read"
        )
    if not 1 <= level.reads <= units:
        raise ValueError(
            f"{where}: a module cannot read {level.reads} of {units} units (allowed: 1 to {units})"
        )


@torch.no_grad()
def _set_known(
    logits: nn.ParameterList, tables: Sequence[Sequence[Sequence[Sequence[int]]]]
) -> None:
    """Fix logits: 0 but for the units of a table, which get 1.0, 1.1, ... from the last one on."""
    for depth, parameter in enumerate(logits):
        parameter.requires_grad_(False).zero_()
        for task, levels in enumerate(tables):
            for position, units in enumerate(levels[depth]):
                for rank, unit in enumerate(reversed(units)):
                    parameter[task, unit, position] = 1.0 + 0.1 * rank
