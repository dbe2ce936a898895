"""Rows of the Boolean tasks as training data: split, noise, batches, and digits instead of bits.

A row is one combination of input bits. Some rows are for training; half of the others are for
validation and the rest for testing. With digit images (modularity 2 2 3 2 2) a row is a pair of
digits 0 to 7: each training example is two random training images of them, each test example two
test images.

Shapes: S seeds, U updates, B examples of an update, T tasks, R rows, C copies of a test row.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rl_nfm.modular.tasks import IMAGE_MODULARITY, BooleanTask
from rl_nfm.supervised.data.datasets import load_images
from rl_nfm.supervised.loop.seed_batch import seed_generator

TEST_COPIES = 20
"""Image pairs of each row at test."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """Indices of rows."""

    train: Tensor
    validation: Tensor
    test: Tensor


def split_rows(rows: int, share: float, seed: int) -> Split:
    """Split rows at random: a share to train on; of the rest, half to validate and half to test.

    Raises:
        ValueError: one of the three would be empty.
    """
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    train = int(rows * share)
    validation = (rows - train) // 2
    if train < 1 or validation < 1:
        raise ValueError(
            f"dataset_split: {share} of {rows} rows leaves {train} to train on and "
            f"{rows - train} to test (allowed: {_up(1 / rows)} to {(rows - 2) / rows:.3g})"
        )
    return Split(
        train=order[:train],
        validation=order[train : train + validation],
        test=order[train + validation :],
    )


def _up(share: float) -> str:
    """A share in few digits, not below it."""
    return f"{math.ceil(share * 10_000) / 10_000:g}"


class BitRows:
    """Examples whose inputs are the bits themselves.

    Args:
        tasks: T tasks over the same bits.
        noise: standard deviation of Gaussian noise on training inputs.
    """

    digest: str | None = None
    """Tells images that were read from files from others."""

    def __init__(self, tasks: Sequence[BooleanTask], noise: float):
        self.noise = noise
        self.bits, _ = tasks[0].truth_table()  # [R, bits]
        self.labels = torch.stack([task.truth_table()[1] for task in tasks])  # [T, R, outputs]
        self.copies = 1
        self.input_size = self.bits.shape[1]

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Training inputs [..., bits] of rows [...]."""
        inputs = self.bits[rows]
        return inputs + self.noise * torch.randn(inputs.shape, generator=generator)

    def test_inputs(self) -> Tensor:
        """Test inputs [R * C, bits], the copies of a row together; here C = 1."""
        return self.bits


class DigitRows(BitRows):
    """Examples whose inputs are images of two digits, [..., 2, pixels] in [0, 1].

    Args:
        tasks: T tasks over the bits of two digits.
        noise: standard deviation of Gaussian noise on training images.
        data: the name of a data set of digit images.
        folder: the folder of its files, if it has any.
    """

    def __init__(self, tasks: Sequence[BooleanTask], noise: float, data: str, folder: Path | None):
        super().__init__(tasks, noise)
        self.copies = TEST_COPIES
        images = load_images(data, folder)
        self.digest = images.digest
        weights = torch.tensor([4.0, 2.0, 1.0])
        digits = (self.bits.view(-1, 2, 3) @ weights).long()  # [R, 2]
        self.digits = digits
        self.train_pixels, self.train_places = _by_digit(images.train_images, images.train_labels)
        self.test_pixels, self.test_places = _by_digit(images.test_images, images.test_labels)
        self.input_size = self.train_pixels.shape[1]

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Training inputs [..., 2, pixels] of rows [...]."""
        pixels = _choose(self.digits[rows], self.train_pixels, self.train_places, generator)
        return pixels + self.noise * torch.randn(pixels.shape, generator=generator)

    def test_inputs(self) -> Tensor:
        """Test inputs [R * C, 2, pixels], the copies of a row together, equal in all runs."""
        digits = self.digits.repeat_interleave(self.copies, dim=0)
        return _choose(digits, self.test_pixels, self.test_places, torch.Generator().manual_seed(0))


def _by_digit(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [N, pixels] in [0, 1] of digits 0 to 7 in order, and where each begins, [9]."""
    order = labels.argsort(stable=True)
    order = order[labels[order] < 8]
    counts = torch.bincount(labels[order], minlength=8)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return images[order].flatten(1).float() / 255, starts


def _choose(digits: Tensor, pixels: Tensor, starts: Tensor, generator: torch.Generator) -> Tensor:
    """A random image of each digit, [..., pixels]."""
    size = starts[digits + 1] - starts[digits]
    offset = (torch.rand(digits.shape, generator=generator) * size).long()
    return pixels[starts[digits] + offset]


def make_rows(
    modularity: Sequence[int],
    tasks: Sequence[BooleanTask],
    noise: float,
    data: str,
    folder: Path | None,
) -> BitRows:
    """The source of inputs: images of digits for the modularity that uses them, else bits."""
    if tuple(modularity) == IMAGE_MODULARITY:
        return DigitRows(tasks, noise, data, folder)
    return BitRows(tasks, noise)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochData:
    """The examples of one epoch for every seed."""

    inputs: Tensor
    """[S, examples, ...]."""
    labels: Tensor
    """[S, examples, outputs]."""
    task_id: Tensor
    """int64 [S, examples]."""


def epoch_data(
    source: BitRows, train: Tensor, copies: int, seeds: Sequence[int], epoch: int
) -> EpochData:
    """Every training row of every task, `copies` times, shuffled separately for each seed.

    Args:
        source: makes the inputs for rows.
        train: indices of training rows.
        copies: examples per row and task.
        seeds: S of them.
        epoch: counted from 0.
    """
    tasks = len(source.labels)
    rows = train.repeat(tasks * copies)
    task_id = torch.arange(tasks).repeat_interleave(len(train) * copies)
    inputs, labels, ids = [], [], []
    for seed in seeds:
        generator = seed_generator(seed, epoch)
        order = torch.randperm(len(rows), generator=generator)
        inputs.append(source.draw(rows[order], generator))
        labels.append(source.labels[task_id[order], rows[order]])
        ids.append(task_id[order])
    return EpochData(
        inputs=torch.stack(inputs), labels=torch.stack(labels), task_id=torch.stack(ids)
    )


def write_tables(folder: Path, modularity: Sequence[int], tasks: Sequence[BooleanTask]) -> None:
    """Write each task's truth table below `folder`, one CSV file per task."""
    place = folder / "-".join(map(str, modularity))
    place.mkdir(parents=True, exist_ok=True)
    for index, task in enumerate(tasks):
        inputs, outputs = task.truth_table()
        names = [f"x{i}" for i in range(inputs.shape[1])]
        names += [f"y{i}" for i in range(outputs.shape[1])]
        lines = [",".join(str(int(v)) for v in row) for row in torch.cat([inputs, outputs], 1)]
        text = "\n".join([",".join(names), *lines]) + "\n"
        (place / f"task{index}.csv").write_text(text, encoding="utf-8")
