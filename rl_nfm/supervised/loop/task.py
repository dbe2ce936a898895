"""What a task defines so that the shared loop can train it: data, model, loss and metrics."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.loop.options import RunConfig
from rl_nfm.supervised.models import Models


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig(RunConfig):
    """Options of every task that the shared loop trains."""

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


C = TypeVar("C", bound=LoopConfig)
Metrics = dict[str, float]


class Task(ABC, Generic[C]):
    """The data, model, loss and metrics of one trial.

    Args:
        config: the options of the run.
        device: where data and model live.

    The loop seeds torch's global generators before it makes a task, so data and weights may draw
    from them freely. Test data should come from a separate generator, with one seed for all trials.
    """

    models: ClassVar[Models | None] = None
    """What the config's `model` chooses from; none: `build_model` knows what to build."""

    used_by: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Without `models`: for an option, the models that read it."""

    columns: ClassVar[Columns] = Columns()
    """Columns of a table of runs."""

    lower_is_better: ClassVar[bool] = False
    """Whether the lowest `validation` is the best one."""

    tested_weights: ClassVar[Literal["best", "last"]] = "best"
    """Of which evaluation `test` gets the weights: the best `validation` (without any, the last)
    or the last."""

    free_in_evaluation: ClassVar[Sequence[str]] = ()
    """Options that choose the test data; an evaluation of a trained model may change them."""

    def __init__(self, config: C, device: torch.device):
        self.config = config
        self.device = device

    def build_model(self) -> nn.Module:
        """The model, on the CPU; by default, what `models` makes of the task."""
        assert self.models is not None, "a task without `models` must override build_model"
        return self.models[vars(self.config)["model"]].build(self)

    @abstractmethod
    def batches(self, epoch: int) -> Iterable[Any]:
        """The batches of one epoch (counted from 0), on the device."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The scalar loss of one batch."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> Metrics:
        """Metrics after an epoch; the model is in eval mode and no gradient is recorded.

        The metric `validation`, measured on data used neither for training nor for testing, decides
        which epoch is reported and kept in `best/`; without it the last epoch is.
        """

    def baselines(self) -> Metrics:
        """For each metric, the value of a model that has learned nothing of the task."""
        return {}

    def test(self, model: nn.Module) -> Metrics:
        """Further metrics of the trained model, computed once; see `tested_weights`."""
        del model
        return {}

    def pictures(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Pictures by name, uint8 [H, W, 1 or 3], made after every evaluation.

        Each becomes NAME_EPOCH.png in the trial's folder, which a report shows.
        """
        del model
        return {}

    def by_step(self, model: nn.Module) -> Mapping[str, Sequence[float]]:
        """A loss or score at each step of the test sequences, by test set; drawn by the report.

        Computed once, of the same weights as `test`.
        """
        del model
        return {}

    def baselines_by_step(self) -> Mapping[str, Mapping[str, Sequence[float]]]:
        """For each test set of `by_step`, the values of models that have learned nothing."""
        return {}

    def write_video(self, model: nn.Module, path: Path) -> None:
        """Write an MP4 of what the trained model predicts.

        Args:
            model: in eval mode; no gradient is recorded.
            path: ends in .mp4.

        Raises:
            ValueError: there is nothing to be seen of this task.
            OSError: it cannot be written.
        """
        del model
        raise ValueError(f"video: {path} cannot be made: this task has no video")

    def summarise(self, history: Sequence[Metrics]) -> Metrics:
        """The trial's metrics from those of all evaluations; by default, of the best validation."""
        return dict(history[self.best_index(history)])

    def best_index(self, history: Sequence[Metrics]) -> int:
        """Index of the evaluation with the best `validation`; without any, the last one.

        Args:
            history: the metrics of all evaluations, at least one.
        """
        known = [i for i, row in enumerate(history) if "validation" in row]
        best = min if self.lower_is_better else max
        return best(known, key=lambda i: history[i]["validation"], default=len(history) - 1)

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

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser; by default Adam."""
        return torch.optim.Adam(model.parameters(), lr=self.config.learning_rate)

    def learning_rate(self, epoch: int) -> float:
        """The learning rate of an epoch (counted from 0); by default constant."""
        del epoch
        return self.config.learning_rate
