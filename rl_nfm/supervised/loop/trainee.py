"""What the loop trains: the interface that one seed (`Task`) and a batch of seeds share."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.loop.options import RunConfig
from rl_nfm.supervised.loop.reporting import is_number
from rl_nfm.supervised.models import Models

C = TypeVar("C", bound=RunConfig)
Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long the loop trains, and how often it evaluates."""

    epochs: int
    eval_every_epochs: int
    """Epochs between evaluations (and checkpoints); the last epoch is always evaluated."""
    patience_epochs: int | None = None
    """Stop when the validation has not improved for this many epochs; none: never."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """What a run trains at once; its parts are trained one after the other."""

    folder: str
    """Inside the run's folder."""
    config: Any
    seed: int
    """Where torch's global generators start, before data and model are made."""


class Trainee(ABC, Generic[C]):
    """Data, model, loss, metrics and result of one part of a run.

    Args:
        config: the options of the part.
        device: where data and model live.
    """

    models: ClassVar[Models | None] = None
    """What the config's `model` chooses from; none: `build_model` knows what to build."""

    columns: ClassVar[Columns] = Columns()
    """Columns of a table of runs."""

    lower_is_better: ClassVar[bool] = False
    """Whether the lowest `validation` is the best one."""

    tested_weights: ClassVar[Literal["best", "last"]] = "best"
    """Of which evaluation the weights are tested at the end: the best `validation` (without any,
    the last) or the last."""

    free_in_evaluation: ClassVar[Sequence[str]] = ()
    """Options that choose the test data; an evaluation of a trained model may change them."""

    same_data_in_evaluation: ClassVar[bool] = False
    """Whether the weights mean nothing on other data than those of the training."""

    data_digest: str | None = None
    """Tells the data that were read from files from others; none: nothing was read."""

    def __init__(self, config: C, device: torch.device):
        self.config = config
        self.device = device

    @classmethod
    @abstractmethod
    def parts(cls, config: C) -> list[Part]:
        """The parts of a run.

        Raises:
            ValueError: options that do not fit each other.
        """

    @property
    @abstractmethod
    def schedule(self) -> Schedule:
        """How long to train, and how often to evaluate."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The model, on the CPU."""

    def place_model(self) -> nn.Module:
        """The model of `build_model` on the device, with convolutions in channels_last.

        So maps are laid out as NFM and the linear layers behind them read them, and a CPU's
        convolutions of few channels are faster.
        """
        model = self.build_model()
        if not isinstance(model, nn.Module):
            raise ValueError(f"the task's model must be a torch module, got {model!r}")
        model = model.to(self.device)
        for module in model.modules():
            convolution = isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
            if convolution and module.weight.dim() == 4:  # 5 in a batch of seeds
                module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return model

    @abstractmethod
    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of a model, which is on the device."""

    @abstractmethod
    def set_learning_rates(self, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        """Set the learning rates of an epoch (counted from 0)."""

    @abstractmethod
    def batches(self, epoch: int) -> Iterable[Any]:
        """The batches of one epoch (counted from 0), on the device."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The scalar loss of one batch; of a batch of seeds, the loss of each, [S]."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> Metrics:
        """Metrics after an epoch; the model is in eval mode and no gradient is recorded.

        The metric `validation`, measured on data used neither for training nor for testing, decides
        which epoch is reported and kept in `best/`; without it the last epoch is.
        """

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which models run; by default, nothing is cast."""
        return nullcontext()

    def clip_gradients(self, model: nn.Module) -> None:
        """Bound the gradients in place; by default they stay."""

    def update(self, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> Tensor:
        """One update; returns what `loss` did."""
        with self.autocast():
            loss = self.loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        self.clip_gradients(model)
        optimizer.step()
        return loss.detach()

    def after_epoch(self, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        """Whatever else changes the model after `epoch` epochs."""

    def check_losses(self, losses: Tensor, epoch: int) -> None:
        """Stop a run that cannot recover.

        Args:
            losses: the mean loss of the epoch, a scalar or [S].
            epoch: its number, counted from 1.

        Raises:
            ValueError: no seed's loss is finite.
        """
        found = losses.flatten().tolist()
        if not any(map(math.isfinite, found)):
            options = vars(self.config)
            more = " or set max_grad_norm" if "max_grad_norm" in options else ""
            raise ValueError(
                f"the loss of epoch {epoch} is {found[0]}: lower learning_rate "
                f"(now {options['learning_rate']}){more}"
            )

    def baselines(self) -> Metrics:
        """For each metric, the value of a model that has learned nothing of the task."""
        return {}

    def test(self, model: nn.Module) -> Metrics:
        """Further metrics of the trained model, computed once; see `tested_weights`."""
        del model
        return {}

    def pictures(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Pictures by name, uint8 [H, W, 1 or 3], made after every evaluation.

        Each becomes NAME_EPOCH.png in the part's folder, which a report shows.
        """
        del model
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

    def best_index(self, history: Sequence[Metrics]) -> int:
        """Index of the evaluation with the best `validation`; without any, the last one.

        Args:
            history: the metrics of all evaluations, at least one; null where one was not finite.
        """
        known = [i for i, row in enumerate(history) if is_number(row.get("validation"))]
        best = min if self.lower_is_better else max
        return best(known, key=lambda i: history[i]["validation"], default=len(history) - 1)

    def data_facts(self) -> dict[str, Any]:
        """What the weights need of the data they were trained on, as JSON: statistics, names."""
        return {}

    def use_data_facts(self, facts: Mapping[str, Any]) -> None:
        """Evaluate weights on other data than those that they were trained on.

        Args:
            facts: `data_facts` of the training; empty where an earlier version kept none.

        Raises:
            ValueError: these data mean something else.
        """

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps besides model, optimiser and torch's global generators."""
        return {}

    def load_state(self, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore `state`.

        Args:
            state: as it was saved.
            meta: the checkpoint's meta data, where earlier versions kept some of it.
        """

    @abstractmethod
    def figures(self, model: nn.Module, history: Sequence[Metrics]) -> list[dict[str, Any]]:
        """What is reported of each seed, computed in eval mode without gradients.

        Args:
            model: with the weights of `tested_weights`.
            history: the metrics of all evaluations, at least one.
        """

    @abstractmethod
    def outcome(self, facts: Mapping[str, Any], figures: list[dict[str, Any]]) -> dict[str, Any]:
        """What `result` needs of this part.

        Args:
            facts: `seed`, `best_epoch`, `parameters` (of one seed), `epochs`, `updates`,
                `train_seconds`, and `learning_rates` where they are not those of the config.
            figures: what is reported of each seed.
        """

    @classmethod
    @abstractmethod
    def result(cls, outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The content of the result file, from the outcomes of all parts."""

    @classmethod
    @abstractmethod
    def report(cls, folder: Path, result: Mapping[str, Any]) -> str:
        """The text that ends a run; files of its own may be written beside the result."""
