"""Many seeds of one small model, trained as one batch with `torch.func`.

Parameters get a leading seed axis S, and one vectorised forward pass serves all seeds. The loss is
summed over seeds, so each gets the gradient that it would get alone; the optimisers are
elementwise, so each is also updated as if alone. With such small models most of the time is the
overhead of each operation, so 100 seeds cost little more than one.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from rl_nfm.support.optimizer import load_optimizer_state, optimizer_state
from rl_nfm.support.storage import load_meta, load_tensors, save_directory

KIND = "rl-nfm supervised seeds"
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "rms": torch.optim.RMSprop,
}
"""Optimisers by the names that the code of the published modular networks uses."""


class SeedBatch:
    """S models and their optimiser.

    Args:
        build: makes one model; called once per seed, after torch's global generator was seeded.
        seeds: the seed of each model.
        learning_rates: parameters whose name contains the key get the value; the first match
            counts, "" matches all.
        weight_decay: the optimiser's L2 penalty, on all parameters.
        optimizer: a name in `OPTIMIZERS`.
        device: where the models live.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        seeds: Sequence[int],
        *,
        learning_rates: Mapping[str, float],
        weight_decay: float = 0.0,
        optimizer: str = "adam",
        device: torch.device | None = None,
    ):
        models = []
        for seed in seeds:
            torch.manual_seed(seed)
            models.append(build().to(device))
        self.seeds = tuple(seeds)
        self.model = models[0]
        """The model whose code runs; its parameters are not used."""
        self.parameters, self.buffers = stack_module_state(models)
        groups: dict[str, list[Tensor]] = {key: [] for key in learning_rates}
        for name, parameter in self.parameters.items():
            if parameter.requires_grad:
                groups[next(key for key in groups if key in name)].append(parameter)
        self._rates = [learning_rates[key] for key, p in groups.items() if p]
        self.optimizer = OPTIMIZERS[optimizer](
            [{"params": p, "lr": learning_rates[key]} for key, p in groups.items() if p],
            weight_decay=weight_decay,
        )

    def scale_rates(self, factor: float) -> None:
        """Set all learning rates to `factor` times the initial ones."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = factor * rate

    def __call__(self, *args: Any, **flags: Any) -> Any:
        """The models' outputs; tensors (and tensors in lists) among `args` have a seed axis."""

        def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor], *args: Any) -> Any:
            return functional_call(self.model, (parameters, buffers), args, flags)

        return vmap(run)(self.parameters, self.buffers, *args)

    def update(self, losses: Tensor, max_grad_value: float | None = None) -> None:
        """One step of each seed on its loss, [S]; gradients are clipped to +-`max_grad_value`."""
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        if max_grad_value is not None:
            nn.utils.clip_grad_value_(self.parameters.values(), max_grad_value)
        self.optimizer.step()

    def save(self, target: Path, meta: Mapping[str, Any], more: Mapping[str, Tensor]) -> None:
        """Write a checkpoint directory; `load` returns `more`."""
        save_directory(
            target,
            kind=KIND,
            meta={"seeds": list(self.seeds), **meta},
            tensors={
                "model": {**self.parameters, **self.buffers},
                "optimizer": optimizer_state(self.optimizer),
                "more": more,
            },
        )

    def load(self, source: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Continue from a checkpoint; returns its meta data and `more`.

        Raises:
            ValueError: missing, damaged, or of other seeds or sizes.
        """
        meta = load_meta(source, kind=KIND)
        saved = load_tensors(source / "model.safetensors")
        state = {**self.parameters, **self.buffers}
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if meta["seeds"] != list(self.seeds) or shapes != {
            name: tuple(tensor.shape) for name, tensor in saved.items()
        }:
            raise ValueError(f"{source}: holds other seeds or another model")
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(saved[name])
        moments = load_tensors(source / "optimizer.safetensors")
        load_optimizer_state(self.optimizer, moments)
        return meta, load_tensors(source / "more.safetensors")


def seed_generator(seed: int, step: int) -> torch.Generator:
    """A generator for one seed's random numbers from `step` on, the same alone and in a batch."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
