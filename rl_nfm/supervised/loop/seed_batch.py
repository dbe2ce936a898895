"""Many seeds of one small model, trained by the loop as one batch with `torch.func`.

Parameters get a leading seed axis S, and one vectorised forward pass serves all seeds. The loss is
summed over seeds, so each gets the gradient that it would get alone; the optimisers are
elementwise, so each is also updated as if alone. With such small models most of the time is the
overhead of each operation, so 100 seeds cost little more than one.
"""

import copy
import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from rl_nfm.supervised.loop.trainee import C, Part, Trainee

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "rms": torch.optim.RMSprop,
}
"""Optimisers by the names that the code of the published modular networks uses."""


class SeedBatch(nn.Module):
    """S models that run as one.

    Args:
        build: makes one model; called once per seed, after torch's global generator was seeded.
        seeds: the seed of each model.
    """

    def __init__(self, build: Callable[[], nn.Module], seeds: Sequence[int]):
        super().__init__()
        models = []
        for seed in seeds:
            torch.manual_seed(seed)
            models.append(build())
        self.seeds = tuple(seeds)
        self._first = (models[0],)  # in a tuple, so that it is no submodule
        parameters, buffers = stack_module_state(models)
        self.stacked = copy.deepcopy(models[0])
        """One model's modules, whose parameters and buffers have a leading seed axis."""
        for name, value in {**parameters, **buffers}.items():
            owner, _, attribute = name.rpartition(".")
            of_seeds = value
            if name in parameters:
                of_seeds = nn.Parameter(value.detach(), requires_grad=value.requires_grad)
            setattr(self.stacked.get_submodule(owner), attribute, of_seeds)

    @property
    def first(self) -> nn.Module:
        """One model as it was built, for questions about its structure."""
        return self._first[0]

    @property
    def values(self) -> dict[str, Tensor]:
        """The parameters of all seeds, [S, ...], by their names in one model."""
        return dict(self.stacked.named_parameters())

    def forward(self, *args: Any, **flags: Any) -> Any:
        """The models' outputs; tensors (and tensors in lists) among `args` have a seed axis."""

        def run(state: dict[str, Tensor], *args: Any) -> Any:
            return functional_call(self.stacked, state, args, flags)

        return vmap(run)({**self.values, **dict(self.stacked.named_buffers())}, *args)

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Parameters and buffers of all seeds, by their names in one model."""
        return self.stacked.state_dict(*args, **options)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """Inverse of `state_dict`."""
        return self.stacked.load_state_dict(*args, **options)

    def make_optimizer(
        self, name: str, learning_rates: Mapping[str, float], *, weight_decay: float = 0.0
    ) -> torch.optim.Optimizer:
        """An optimiser of all seeds.

        Args:
            name: one of `OPTIMIZERS`.
            learning_rates: parameters whose name contains the key get the value; the first match
                counts, "" matches all.
            weight_decay: L2 penalty on all parameters.
        """
        groups: dict[str, list[Tensor]] = {key: [] for key in learning_rates}
        for parameter_name, parameter in self.values.items():
            if parameter.requires_grad:
                groups[next(key for key in groups if key in parameter_name)].append(parameter)
        options = [
            {"params": parameters, "lr": learning_rates[key], "initial_lr": learning_rates[key]}
            for key, parameters in groups.items()
            if parameters
        ]
        return OPTIMIZERS[name](options, weight_decay=weight_decay)


class SeedBatchTask(Trainee[C]):
    """A task whose seeds are trained as one batch: its model is a `SeedBatch`."""

    def __init__(self, config: C, device: torch.device):
        super().__init__(config, device)
        self.seeds = range(config.seed, config.seed + config.trials)

    @classmethod
    def parts(cls, config: C) -> list[Part]:
        """All seeds at once, in the run's own folder."""
        return [Part(folder=".", config=config, seed=config.seed)]

    @abstractmethod
    def build_one(self) -> nn.Module:
        """The model of one seed."""

    def build_model(self) -> nn.Module:
        """One model for each seed."""
        return SeedBatch(self.build_one, self.seeds)

    @classmethod
    def result(cls, outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The outcome of the only part."""
        (outcome,) = outcomes
        return outcome

    def rate_factor(self, epoch: int) -> float:
        """Factor of all learning rates in an epoch (counted from 0)."""
        del epoch
        return 1.0

    def set_learning_rates(self, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        """Multiply the initial ones by `rate_factor`."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate_factor(epoch) * group["initial_lr"]


def seed_generator(seed: int, step: int) -> torch.Generator:
    """A generator for one seed's random numbers from `step` on, the same alone and in a batch.

    Equal arguments give equal numbers, so whatever is drawn for another purpose needs other steps.
    """
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
