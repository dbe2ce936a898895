"""Image classification with PreActResNets, with and without NFM (NFM paper, section 4.2, table 2).

Published (600 epochs, mean of the last 10), input mixup: CIFAR-10 PreActResNet18 96.27 -> 96.56 %,
34: 96.79 -> 97.05, 50: 97.31 -> 97.58; CIFAR-100 18: 78.15 -> 78.66, 34: 80.13 -> 80.77;
Tiny-ImageNet 18: 57.12 -> 58.32. One 16x16 box (CIFAR-10, 18): 82.46 -> 84.11. Random attention at
test time: 96.5 -> 88.5.

The pipeline is that of Manifold Mixup, on which the published runs build: SGD with Nesterov
momentum 0.9, weight decay 1e-4, batch 100, step size 0.1 divided by 10 at 200, 400 and 500 of 600
epochs, flips and crops padded by 2, and binary cross-entropy between softmax(logits) and the mixed
one-hot targets, which is not the usual cross-entropy.

NFM after each stage, two passes: eight modules, which all read with the preset `paper` (the
authors' code and the preset `small` read in the second pass alone: --nfm.preset official, none).
Table 8 is a sweep (docs/results_supervised.md). Table 9 is the preset `symbols` with `--width 12`,
24 and 64: its parameter counts (177k, 698k, 4.9M; with NFM 206k, 757k, 5.07M) hold with one pass
and a single linear output. Of the data the paper says only that they are 100k examples of Synbols.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.backbones.resnet import ResNetConfig, make_pass_networks
from rl_nfm.nfm import (
    NeuralFunctionModule,
    NFMConfig,
    TaskNFMConfig,
    set_random_attention,
)
from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.data.augmentation import (
    channel_statistics,
    mixup,
    occlude,
    random_crop,
    random_flip,
)
from rl_nfm.supervised.data.datasets import SYMBOLS, constant_accuracy, load_images
from rl_nfm.supervised.loop.presets import Presets
from rl_nfm.supervised.loop.run import LoopConfig, Metrics, Task, register_loop_task
from rl_nfm.supervised.models import Models
from rl_nfm.supervised.tasks.published import CLASSIFICATION

CHUNK = 200
LEAST_ALPHA = 1e-3
CLASSIFICATION_NFM = TaskNFMConfig(top_k=5, out_norm="batch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationConfig(LoopConfig):
    """Options of classification."""

    model: str = "nfm"
    """One of the models listed above."""
    data: Literal["digits", "symbols", "mnist", "cifar10", "cifar100", "folder"] = "cifar10"
    """digits: embedded in scikit-learn; symbols: letters in many fonts and colours, drawn when the
    run begins, in the manner of Synbols; the others: files in `data_folder`."""
    data_folder: Path | None = None
    """IDX files, CIFAR's binary version, or train/CLASS/* and test/CLASS/* (or val/); for symbols,
    .ttf and .otf files to use instead of matplotlib's fonts."""
    num_symbols: Annotated[int, Ge(500)] = SYMBOLS
    """Pictures of symbols, of which the last fifth tests (as many as Synbols' default data)."""
    depth: Literal[10, 18, 34, 50] = 18
    """Of the PreActResNet; 10 has one block a stage."""
    width: Annotated[int, Gt(0)] = 64
    """Channels of the first stage."""
    stem: Literal["auto", "pixel", "halving"] = "auto"
    """Before the stages: pixel, as published for 32x32 images; halving, with stride 2, as for
    64x64, which costs a quarter; auto: halving from 64x64 on."""
    epochs: Annotated[int, Ge(0)] = 600
    """Passes over the training set."""
    batch_size: Annotated[int, Gt(0)] = 100
    """Images an update."""
    learning_rate: Annotated[float, Gt(0)] = 0.1
    """Step size at the start; divided by 10 after 1/3, 2/3 and 5/6 of the epochs."""
    mixup_alpha: Annotated[float, Ge(0)] = 1.0
    """Of the Beta distribution of input mixup (ImageNet: 0.5); 0: no mixup."""
    flip: bool = True
    """Mirror training images at random."""
    crop_padding: Annotated[int, Ge(0)] = 2
    """Training images are moved by up to so many pixels."""
    validation: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the training images that is held out to choose `best/`, and to stop early; the
    published runs train on all of them and report the mean of the last epochs."""
    average_epochs: Annotated[int, Gt(0)] = 10
    """The reported accuracy is the mean over the evaluations of so many last epochs."""
    occlusion: Annotated[int, Ge(0)] = 16
    """Side in pixels of the black box of the occlusion test; 0: no such test."""
    nfm: TaskNFMConfig = CLASSIFICATION_NFM
    """Options of NFM (nfm)."""
    share_convolutions: bool = False
    """The passes share the convolutions of their blocks, with stems, norms and shortcuts of their
    own (nfm; a variant in the authors' ResNet); `nfm.share_passes` shares all."""


PRESETS = Presets("classification", ClassificationConfig)
MODELS = Models("classification")


class Classifier(nn.Module):
    """A PreActResNet from normalised pixels to logits, with or without NFM after each stage."""

    def __init__(
        self,
        resnet: ResNetConfig,
        nfm: NFMConfig | None,
        *,
        in_channels: int,
        classes: int,
        share_convolutions: bool = False,
    ):
        super().__init__()
        copies = 1 if nfm is None else nfm.copies
        networks = make_pass_networks(
            resnet, in_channels=in_channels, passes=copies, share_convolutions=share_convolutions
        )
        channels = networks[0].stage_channels
        if nfm is None:
            self.trunk: nn.Module = networks[0]
        else:
            lists = [list(network.stages) for network in networks]
            self.trunk = NeuralFunctionModule(lists, channels=channels, config=nfm)
        self.head = nn.Linear(channels[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]."""
        return self.head(self.trunk(images).mean(dim=(2, 3)))


def soft_label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of softmax(logits) against targets in [0, 1], mean over [B, K].

    log(1 - p_k) is computed as a log-sum-exp over the other classes, so that it stays finite.
    """
    log_p = F.log_softmax(logits, dim=1)
    others = logits[:, None, :].expand(-1, logits.shape[1], -1)  # [B, K, K]
    self_ = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    log_q = others.masked_fill(self_, -math.inf).logsumexp(2) - logits.logsumexp(1, keepdim=True)
    return -(targets * log_p + (1 - targets) * log_q).mean()


class ClassificationTask(Task[ClassificationConfig]):
    """One trial of classification."""

    models = MODELS
    tested_weights: ClassVar = "last"  # as published
    free_in_evaluation: ClassVar = ("data", "data_folder", "num_symbols", "occlusion")
    columns: ClassVar = Columns(
        shown=("accuracy*",), percent=("accuracy*", "validation"), published=CLASSIFICATION
    )

    def __init__(self, config: ClassificationConfig, device: torch.device):
        super().__init__(config, device)
        if config.share_convolutions and config.nfm.share_passes:
            raise ValueError("share_convolutions: has no effect beside nfm.share_passes")
        if 0 < config.mixup_alpha < LEAST_ALPHA:  # of which no Beta distribution can be drawn
            raise ValueError(
                f"mixup_alpha: {config.mixup_alpha} is not allowed: must be 0 or at least "
                f"{LEAST_ALPHA}"
            )
        self.data = load_images(config.data, config.data_folder, num_symbols=config.num_symbols)
        self.data_digest = self.data.digest
        side = min(self.data.train_images.shape[2:])
        if config.occlusion > side:
            raise ValueError(
                f"occlusion: {config.occlusion} is larger than the images, whose side is {side}"
            )
        self.held_out, self.kept = self.hold_out(len(self.data.train_images), config.validation)
        mean, deviation = channel_statistics(self.data.train_images)
        self.mean, self.deviation = mean.to(device), deviation.to(device)

    def data_facts(self) -> dict[str, Any]:
        """Mean and deviation of the training images, [C], and names of the classes."""
        statistics = {"mean": self.mean, "deviation": self.deviation}
        return {
            **{name: value.flatten().tolist() for name, value in statistics.items()},
            "classes": None if self.data.names is None else [*self.data.names],
        }

    def use_data_facts(self, facts: Mapping[str, Any]) -> None:
        """Normalise as in training; these data's own training images are none to validate on.

        Raises:
            ValueError: the classes have other names.
        """
        self.held_out = self.held_out[:0]
        if not facts:
            print("note: these weights kept no mean of their images; the new ones have their own")
            return
        names = self.data_facts()["classes"]
        if None not in (names, facts["classes"]) and names != facts["classes"]:
            raise ValueError(
                f"data_folder: its classes {', '.join(names)} are not those of the training "
                f"({', '.join(facts['classes'])})"
            )
        self.mean = self.mean.new_tensor(facts["mean"]).view_as(self.mean)
        self.deviation = self.deviation.new_tensor(facts["deviation"]).view_as(self.deviation)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD with Nesterov momentum."""
        return torch.optim.SGD(
            model.parameters(),
            lr=self.config.learning_rate,
            momentum=0.9,
            weight_decay=1e-4,
            nesterov=True,
        )

    def learning_rate(self, epoch: int) -> float:
        """The rate, divided by 10 after 1/3, 2/3 and 5/6 of the epochs (200, 400, 500 of 600)."""
        passed = sum(epoch >= self.config.epochs * share for share in (1 / 3, 2 / 3, 5 / 6))
        return self.config.learning_rate * 0.1**passed

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented images and their soft labels."""
        del epoch
        config, data = self.config, self.data
        for chosen in torch.randperm(len(self.kept)).split(config.batch_size):
            rows = self.kept[chosen]
            images = self._normalise(data.train_images[rows])
            targets = F.one_hot(data.train_labels[rows], data.classes).float().to(self.device)
            if config.flip:
                images = random_flip(images)
            if config.crop_padding:
                images = random_crop(images, config.crop_padding)
            if config.mixup_alpha > 0:
                images, targets = mixup(images, targets, config.mixup_alpha)
            yield images, targets

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """See `soft_label_loss`."""
        images, targets = batch
        return soft_label_loss(model(images).float(), targets)

    def baselines(self) -> Metrics:
        """Of naming the most frequent class of the training images."""
        labels = self.data.train_labels
        chance = constant_accuracy(labels[self.kept], self.data.test_labels)
        names = ["accuracy", "accuracy_last"]
        names += ["accuracy_occluded"] if self.config.occlusion else []
        found = dict.fromkeys(names, chance)
        if len(self.held_out):
            found["validation"] = constant_accuracy(labels[self.kept], labels[self.held_out])
        return found

    def evaluate(self, model: nn.Module) -> Metrics:
        """Accuracy on the test images, and on the held-out training images if there are any."""
        metrics = {"accuracy": self._accuracy(model, occlusion=0)}
        if len(self.held_out):
            images, labels = self.data.train_images, self.data.train_labels
            held = (images[self.held_out], labels[self.held_out])
            metrics["validation"] = self._accuracy(model, occlusion=0, of=held)
        return metrics

    def test(self, model: nn.Module) -> Metrics:
        """Accuracy with one black box in each image, and with random attention (with NFM)."""
        config = self.config
        metrics = {"accuracy_last": self._accuracy(model, occlusion=0)}
        if config.occlusion:
            metrics["accuracy_occluded"] = self._accuracy(model, occlusion=config.occlusion)
        if any(isinstance(module, NeuralFunctionModule) for module in model.modules()):
            set_random_attention(model, True)
            with torch.random.fork_rng():  # the same noise at every test of the same weights
                torch.manual_seed(0)
                metrics["accuracy_random_attention"] = self._accuracy(model, occlusion=0)
            set_random_attention(model, config.nfm.random_attention)
        return metrics

    def summarise(self, history: Sequence[Metrics]) -> Metrics:
        """The mean accuracy of the evaluations in the last epochs, the last one at least."""
        first = history[-1]["epoch"] - self.config.average_epochs
        last = [row["accuracy"] for row in history if row["epoch"] > first]
        return {**history[-1], "accuracy": sum(last) / len(last)}

    def _normalise(self, images: Tensor) -> Tensor:
        return (images.to(self.device).float() / 255.0 - self.mean) / self.deviation

    def _accuracy(
        self, model: nn.Module, *, occlusion: int, of: tuple[Tensor, Tensor] | None = None
    ) -> float:
        """Share of correctly classified images; none: those of the test set."""
        generator = torch.Generator().manual_seed(0)  # the same boxes for every model and seed
        right = 0
        images, labels = of or (self.data.test_images, self.data.test_labels)
        for x, y in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
            if occlusion:
                x = occlude(x, occlusion, generator)
            right += int((model(self._normalise(x)).argmax(1).cpu() == y).sum())
        return right / len(labels)


def _make(task: ClassificationTask, nfm: NFMConfig | None) -> Classifier:
    config, images = task.config, task.data.train_images
    fine = min(images.shape[2:]) < 64
    stem = config.stem if config.stem != "auto" else "pixel" if fine else "halving"
    return Classifier(
        ResNetConfig(depth=config.depth, width=config.width, stem=stem),
        nfm,
        in_channels=images.shape[1],
        classes=task.data.classes,
        share_convolutions=config.share_convolutions,
    )


@MODELS.register("resnet", "the PreActResNet alone")
def _resnet(task: ClassificationTask) -> nn.Module:
    return _make(task, None)


@MODELS.register("nfm", "the PreActResNet with NFM", reads=("nfm", "share_convolutions"))
def _nfm(task: ClassificationTask) -> nn.Module:
    return _make(task, task.config.nfm)


register_loop_task(
    "classification",
    "classify images with PreActResNets, with NFM or without; occlusion, random attention",
    ClassificationTask,
    PRESETS,
)
