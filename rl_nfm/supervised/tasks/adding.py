"""The adding task (Hochreiter & Schmidhuber 1997; as in RIMs, Goyal et al. 2019, appendix).

A sequence of numbers from U(0, 1), two of which are marked; the target is the sum of the two.
Trained on sequences of 50 steps and tested on 200. Predicting 1 whatever the input has a mean
squared error of 2/12 = 0.1667, the variance of the sum of two such numbers.

One mark lies in each half of the sequence, and every batch is new.
"""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.loop.presets import Presets
from rl_nfm.supervised.loop.run import Metrics, Task, register_loop_task
from rl_nfm.supervised.tasks.recurrent import CORES, RecurrentConfig, SequenceModel

BASELINE_MSE = 2 / 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddingConfig(RecurrentConfig):
    """Options of the adding task."""

    epochs: Annotated[int, Ge(0)] = 100
    """Evaluations, each after `updates_per_epoch` batches."""
    updates_per_epoch: Annotated[int, Gt(0)] = 200
    """New batches an epoch."""
    max_grad_norm: Annotated[float, Gt(0)] | None = 0.1
    """Global gradient norm is clipped to this; none: not clipped."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.2
    """Dropout before the output layer."""
    train_steps: Annotated[int, Ge(2)] = 50
    """Length of a training sequence."""
    test_steps: Annotated[int, Ge(2)] = 200
    """Length of a longer test sequence."""
    test_examples: Annotated[int, Gt(0)] = 1000
    """Test sequences of either length."""


PRESETS = Presets("adding", AddingConfig)


def make_sequences(
    count: int, steps: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Inputs [N, T, 2] (number, mark) and targets [N]."""
    numbers = torch.rand(count, steps, generator=generator)
    half = steps // 2
    first = torch.randint(half, (count,), generator=generator)
    second = half + torch.randint(steps - half, (count,), generator=generator)
    rows = torch.arange(count)
    marks = torch.zeros(count, steps)
    marks[rows, first] = 1.0
    marks[rows, second] = 1.0
    return torch.stack([numbers, marks], dim=-1), numbers[rows, first] + numbers[rows, second]


class AddingTask(Task[AddingConfig]):
    """One trial of the adding task."""

    models = CORES
    lower_is_better = True
    free_in_evaluation: ClassVar = ("test_steps", "test_examples")
    columns: ClassVar = Columns(shown=("mse_*",))

    def __init__(self, config: AddingConfig, device: torch.device):
        super().__init__(config, device)
        generator = torch.Generator().manual_seed(0)  # the same test set for every seed
        self.tests = {
            steps: make_sequences(config.test_examples, steps, generator)
            for steps in (config.train_steps, config.test_steps)
        }
        self.validation = make_sequences(
            config.test_examples, config.train_steps, torch.Generator().manual_seed(1)
        )

    def build_model(self) -> nn.Module:
        """See `Task.build_model`."""
        return SequenceModel(self.config, inputs=None, input_size=2, outputs=1)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Task.batches`."""
        del epoch
        for _ in range(self.config.updates_per_epoch):
            inputs, targets = make_sequences(self.config.batch_size, self.config.train_steps)
            yield inputs.to(self.device), targets.to(self.device)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean squared error after the last step."""
        inputs, targets = batch
        return F.mse_loss(model(inputs, 1)[:, 0, 0], targets)

    def baselines(self) -> Metrics:
        """Of predicting 1 whatever the input."""
        return {f"mse_{steps}": BASELINE_MSE for steps in self.tests}

    def evaluate(self, model: nn.Module) -> Metrics:
        """Mean squared error at both lengths, and on other sequences of the training length."""
        metrics = {f"mse_{steps}": self._error(model, test) for steps, test in self.tests.items()}
        return {**metrics, "validation": self._error(model, self.validation)}

    def _error(self, model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
        inputs, targets = test
        errors = [
            F.mse_loss(model(x.to(self.device), 1)[:, 0, 0].cpu(), y, reduction="sum")
            for x, y in zip(inputs.split(250), targets.split(250), strict=True)
        ]
        return float(torch.stack(errors).sum()) / len(targets)


register_loop_task("adding", "add the two marked numbers of a long sequence", AddingTask, PRESETS)
