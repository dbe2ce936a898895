"""A task whose seeds are trained one by one: what it defines, and the options that all have."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from rl_nfm.supervised.loop.options import RunConfig
from rl_nfm.supervised.loop.reporting import format_metrics, mean_and_deviation
from rl_nfm.supervised.loop.trainee import Metrics, Part, Schedule, Trainee


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig(RunConfig):
    """Options of every task that is trained seed by seed."""

    FORMER_NAMES: ClassVar = {"clip_norm": "max_grad_norm", "eval_every": "eval_every_epochs"}
    FORMER_VALUES: ClassVar = {
        "max_grad_norm": {0: None},
        "precision": {"float32": "fp32", "bfloat16": "bf16"},
    }

    epochs: Annotated[int, Ge(0)] = 1
    """Passes over the training set (or `updates_per_epoch` batches of a generated one)."""
    batch_size: Annotated[int, Gt(0)] = 64
    """Examples per update."""
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    """Learning rate at the start."""
    max_grad_norm: Annotated[float, Gt(0)] | None = None
    """Global gradient norm is clipped to this; none: not clipped."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """bf16: autocast, with weights, optimiser and losses in fp32."""
    eval_every_epochs: Annotated[int, Gt(0)] = 1
    """Epochs between evaluations (and checkpoints); the last epoch is always evaluated."""
    patience_epochs: Annotated[int, Gt(0)] | None = None
    """Stop when the validation has not improved for this many epochs; none: never."""


LoopC = TypeVar("LoopC", bound=LoopConfig)


class Task(Trainee[LoopC]):
    """The data, model, loss and metrics of one seed.

    A subclass defines `batches`, `loss` and `evaluate`, and `models` or `build_model`; see
    `Trainee` for what else it may define. The loop seeds torch's global generators before it makes
    a task, so data and weights may draw from them freely. Test data should come from a separate
    generator, with one seed for all trials.
    """

    @classmethod
    def parts(cls, config: LoopC) -> list[Part]:
        """Each seed."""
        return [
            Part(folder=f"trial{index}", config=config, seed=config.seed + index)
            for index in range(config.trials)
        ]

    @property
    def schedule(self) -> Schedule:
        """That of the options."""
        return Schedule(
            epochs=self.config.epochs,
            eval_every_epochs=self.config.eval_every_epochs,
            patience_epochs=self.config.patience_epochs,
        )

    def build_model(self) -> nn.Module:
        """The model, on the CPU; by default, what `models` makes of the task."""
        assert self.models is not None, "a task without `models` must override build_model"
        return self.models[vars(self.config)["model"]].build(self)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser; by default Adam."""
        return torch.optim.Adam(model.parameters(), lr=self.config.learning_rate)

    def learning_rate(self, epoch: int) -> float:
        """The learning rate of an epoch (counted from 0); by default constant."""
        del epoch
        return self.config.learning_rate

    def set_learning_rates(self, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        """Set that of all parameters to `learning_rate`."""
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(epoch)

    def autocast(self) -> AbstractContextManager[Any]:
        """See `LoopConfig.precision`."""
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def clip_gradients(self, model: nn.Module) -> None:
        """See `LoopConfig.max_grad_norm`."""
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), self.config.max_grad_norm)

    def hold_out(self, count: int, share: float) -> tuple[Tensor, Tensor]:
        """Indices of the examples that validate, drawn at random, and of those that train.

        Args:
            count: N examples.
            share: of them that is held out; with 0 nothing is, or drawn.

        Raises:
            ValueError: one of the two sets is empty, or `patience_epochs` needs validation.
        """
        if not share and self.config.patience_epochs is not None:
            raise ValueError("patience_epochs: has no effect without validation above 0")
        held = round(share * count)
        if held == count or (share and not held):
            raise ValueError(f"validation: {share} leaves one of the two sets empty")
        order = torch.randperm(count) if held else torch.arange(count)
        return order[:held], order[held:]

    def by_step(self, model: nn.Module) -> Mapping[str, Sequence[float]]:
        """A loss or score at each step of the test sequences, by test set; drawn by the report.

        Computed once, of the same weights as `test`.
        """
        del model
        return {}

    def baselines_by_step(self) -> Mapping[str, Mapping[str, Sequence[float]]]:
        """For each test set of `by_step`, the values of models that have learned nothing."""
        return {}

    def summarise(self, history: Sequence[Metrics]) -> Metrics:
        """The trial's metrics from those of all evaluations; by default, of the best validation.

        Args:
            history: the metrics of each evaluation, with its `epoch`.
        """
        return dict(history[self.best_index(history)])

    def figures(self, model: nn.Module, history: Sequence[Metrics]) -> list[dict[str, Any]]:
        """Metrics, of training and computed once, and curves over steps if there are any."""
        metrics = {**self.summarise(history), **self.test(model)}
        metrics.pop("epoch", None)
        by_step = self.by_step(model)
        return [{"metrics": metrics, **({"by_step": by_step} if by_step else {})}]

    def outcome(self, facts: Mapping[str, Any], figures: list[dict[str, Any]]) -> dict[str, Any]:
        """The trial, and the baselines."""
        by_step = self.baselines_by_step()
        return {
            "trial": {**facts, **figures[0]},
            "baselines": self.baselines(),
            **({"baselines_by_step": by_step} if by_step else {}),
        }

    @classmethod
    def result(cls, outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The trials, mean and sample standard deviation of their metrics, and mean baselines."""
        trials = [outcome["trial"] for outcome in outcomes]
        mean, deviation = mean_and_deviation([trial["metrics"] for trial in trials])
        more = {name: value for name, value in outcomes[-1].items() if name != "trial"}
        more["baselines"], _ = mean_and_deviation([outcome["baselines"] for outcome in outcomes])
        return {"trials": trials, "mean": mean, "deviation": deviation, **more}

    @classmethod
    def report(cls, folder: Path, result: Mapping[str, Any]) -> str:
        """The metrics, a line each."""
        begun = f"{result['task']}: {len(result['trials'])} trial(s), {folder / 'result.json'}\n"
        return begun + format_metrics(result["mean"], result["deviation"], result["baselines"])
