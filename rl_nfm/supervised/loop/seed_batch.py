"""Many seeds of one small model, trained as one batch with `torch.func`.

Parameters get a leading seed axis S. One vectorised forward pass serves all seeds, the loss is
summed over them, so that each gets the gradient it would have alone; the optimisers here are
elementwise, so that they update each as alone. On such models most of the time is overhead of each
operation, so 100 seeds cost little more than one.
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
"""By the names that the published modular networks give them."""


class SeedBatch:
    """S models and their optimiser.

    Args:
        build: makes one model; called once a seed, after seeding torch's global generator.
        seeds: one of each model.
        learning_rates: parameters whose name contains the key get the value; the first match
            counts, "" matches all.
        weight_decay: L2 penalty of the optimiser, on all parameters.
        optimizer: a name in `OPTIMIZERS`.
        device: where they live.
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
        """The code; its own parameters are not used."""
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
        """Set all step sizes to `factor` times those given."""
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
        """Write a checkpoint directory; `more` comes back from `load`."""
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
        own = {**self.parameters, **self.buffers}
        shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
        if meta["seeds"] != list(self.seeds) or shapes != {
            name: tuple(tensor.shape) for name, tensor in saved.items()
        }:
            raise ValueError(f"{source}: holds other seeds or another model")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved[name])
        moments = load_tensors(source / "optimizer.safetensors")
        load_optimizer_state(self.optimizer, moments)
        return meta, load_tensors(source / "more.safetensors")


def seed_generator(seed: int, step: int) -> torch.Generator:
    """A generator for one seed's randomness from `step` on: the same alone and in a batch."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
