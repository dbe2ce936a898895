"""What a task must say for the shared loop to train it: data, model, loss and figures."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.loop.options import RunConfig


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
    """Examples an update."""
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    """Step size at the start."""
    max_grad_norm: Annotated[float, Gt(0)] | None = None
    """Global gradient norm is clipped to this; none: not clipped."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """bf16: autocast, with weights, optimiser and losses in fp32."""
    eval_every_epochs: Annotated[int, Gt(0)] = 1
    """Epochs between evaluations (and checkpoints); the last epoch is always evaluated."""
    patience_epochs: Annotated[int, Gt(0)] | None = None
    """Stop when the validation has not improved for so many epochs; none: never."""


C = TypeVar("C", bound=LoopConfig)
Metrics = dict[str, float]


class Task(ABC, Generic[C]):
    """One trial's data, model, loss and figures.

    Args:
        config: of the run.
        device: where data and model live.

    The loop seeds torch's global generators before it makes a task, so data and weights may draw
    from them freely; test data should come from a generator of their own, equal for all trials.
    """

    used_by: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Option to the models that read it; with any other model, setting it is refused."""

    columns: ClassVar[Columns] = Columns()
    """Of a table of runs."""

    lower_is_better: ClassVar[bool] = False
    """Whether the lowest `validation` is the best one."""

    free_in_evaluation: ClassVar[Sequence[str]] = ()
    """Options that say what a trained model is tested on, which an evaluation may change."""

    def __init__(self, config: C, device: torch.device):
        self.config = config
        self.device = device

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The model, on the CPU."""

    @abstractmethod
    def batches(self, epoch: int) -> Iterable[Any]:
        """The batches of one epoch (counted from 0), on the device."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The scalar loss of one batch."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> Metrics:
        """Figures after an epoch; the model is in eval mode and no gradient is recorded.

        The one called `validation`, of data that are neither trained nor tested on, chooses the
        epoch that is reported and kept in `best/`; without it that is the last one.
        """

    def baselines(self) -> Metrics:
        """By metric: what a model reaches that has learned nothing of the task's point."""
        return {}

    def test(self, model: nn.Module) -> Metrics:
        """More figures, once, of the trained model."""
        del model
        return {}

    def summarise(self, history: Sequence[Metrics]) -> Metrics:
        """The trial's figures from those of all evaluations; here: of the best validation."""
        return dict(history[self.best_index(history)])

    def best_index(self, history: Sequence[Metrics]) -> int:
        """The evaluation of the best `validation`, the first of equal ones; without any the last.

        Args:
            history: of all evaluations, at least one.
        """
        known = [i for i, row in enumerate(history) if "validation" in row]
        best = min if self.lower_is_better else max
        return best(known, key=lambda i: history[i]["validation"], default=len(history) - 1)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser; here: Adam."""
        return torch.optim.Adam(model.parameters(), lr=self.config.learning_rate)

    def learning_rate(self, epoch: int) -> float:
        """Step size of an epoch (counted from 0); here: constant."""
        del epoch
        return self.config.learning_rate
