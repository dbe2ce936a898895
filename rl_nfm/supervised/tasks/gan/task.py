"""The GAN's task: InfoMax-GAN with NFM in the generator (NFM paper, table 4 and appendix F).

Settings of Mimicry, which the paper's runs used: hinge loss, five updates of the discriminator for
each of the generator's, batches of 64, Adam 2e-4 with betas 0 and 0.9 falling to 0 over 100,000
updates of the generator, InfoNCE with scale 0.2 in both networks' losses, no moving average of
weights. Published on CIFAR-10, 50,000 images (FID): SNGAN 16.77, InfoMax-GAN 15.12, NFM 13.15.

NFM: behind the first spatial layer and each block, two passes. The paper says that all eight places
read (preset `paper`; it gives no top-k for the GAN, so Atari's 4 stands); the authors' code reads
in the second pass alone, without a null slot (`--nfm.preset official_gan`).

Deviations: the step size falls once an epoch rather than at each update; an epoch shuffles the
images anew; the last, incomplete batch of a shuffle is left out. Images are compared in the
features of a classifier trained here (see `features`), since Inception's weights are not ours to
ship, by the Frechet distance, density and coverage; generated images are rounded to 256 levels, as
for FID. `real_*` is what real images of the other split get, and the baseline draws every pixel
alone from its values in the training images. `train_loss` averages over updates of both networks.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from rl_nfm.backbones.matching import count_parameters
from rl_nfm.nfm import TaskNFMConfig
from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.data.datasets import load_images
from rl_nfm.supervised.data.tiles import tile
from rl_nfm.supervised.loop.presets import Presets
from rl_nfm.supervised.loop.run import LoopConfig, Metrics, Task, register_loop_task
from rl_nfm.supervised.tasks.gan.data import in_side
from rl_nfm.supervised.tasks.gan.features import FeatureConfig
from rl_nfm.supervised.tasks.gan.losses import hinge_discriminator, hinge_generator, info_nce
from rl_nfm.supervised.tasks.gan.models import MODELS
from rl_nfm.supervised.tasks.gan.networks import Gan, Generator
from rl_nfm.supervised.tasks.gan.scores import Scores, check_scores
from rl_nfm.supervised.tasks.published import GAN

PICTURE_IMAGES, PICTURE_COLUMNS = 64, 8
GAN_FEATURES = FeatureConfig()
GAN_NFM = TaskNFMConfig(out_norm="batch").with_preset("paper")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GanConfig(LoopConfig):
    """Options of the GAN."""

    model: str = "nfm"
    """The networks, one of the models listed above."""
    data: Literal["digits", "mnist", "cifar10", "cifar100"] = "cifar10"
    """digits: embedded in scikit-learn; mnist: IDX files, Fashion-MNIST's too, in `data_folder`."""
    data_folder: Path | None = None
    """Folder of the IDX files, or of CIFAR's binary version."""
    epochs: Annotated[int, Ge(0)] = 200
    """Of `generator_updates_per_epoch` updates each; published: 100,000 updates in all."""
    generator_updates_per_epoch: Annotated[int, Gt(0)] = 500
    """Updates of the generator in an epoch."""
    discriminator_updates: Annotated[int, Gt(0)] = 5
    """Updates of the discriminator before each of the generator's."""
    learning_rate: Annotated[float, Gt(0)] = 2e-4
    """Step size of both networks at the start; it falls to 0 in equal steps, one an epoch."""
    generator_width: Annotated[int, Gt(0)] = 256
    """Channels of the generator's maps."""
    discriminator_width: Annotated[int, Gt(0)] = 128
    """Channels of the discriminator's maps."""
    latent_size: Annotated[int, Gt(0)] = 128
    """Normal numbers that an image is made from."""
    projection_size: Annotated[int, Gt(0)] = 1024
    """Size in which local and global features are compared (all but sngan)."""
    infomax_scale: Annotated[float, Ge(0)] = 0.2
    """Weight of InfoNCE in both networks' losses (all but sngan)."""
    samples: Annotated[int, Ge(2)] = 10_000
    """Images generated at each evaluation, from the same latents every time; density and coverage
    take the first 10,000 of them and of the reference."""
    reference: Literal["train", "test"] = "test"
    """Real images to compare with; published: train. Up to `samples` of them are used."""
    nearest: Annotated[int, Gt(0)] = 5
    """k of density and coverage (published: 5)."""
    features: FeatureConfig = GAN_FEATURES
    """The network in whose features images are compared."""
    nfm: TaskNFMConfig = GAN_NFM
    """Options of NFM (nfm; infomax_matched takes its size from them)."""


PRESETS = Presets("gan", GanConfig)


@contextlib.contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """What is computed from the parameters meanwhile gives them no gradient."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


class GanTask(Task[GanConfig]):
    """One trial of the GAN.

    A batch is the real images of an update of the discriminator, or None for the generator's turn.
    Each loss gives gradients to one of the networks alone, and Adam leaves parameters without a
    gradient as they are, so that one optimiser serves both.
    """

    models = MODELS
    free_in_evaluation: ClassVar = ("data_folder", "samples", "reference", "nearest", "features")
    columns: ClassVar = Columns(
        shown=("*_distance", "fid", "density", "coverage"),
        percent=("coverage", "real_coverage"),
        published=GAN,
    )

    def __init__(self, config: GanConfig, device: torch.device):
        super().__init__(config, device)
        if config.patience_epochs is not None:
            raise ValueError("patience_epochs: has no effect on the GAN, which has no validation")
        self.data = in_side(load_images(config.data, config.data_folder))
        self.data_digest = self.data.digest
        self.train = self.data.train_images.to(device)
        if config.batch_size > len(self.train):
            raise ValueError(
                f"batch_size: {config.batch_size} exceeds the {len(self.train)} training images"
            )
        check_scores(self.data, config)
        self.losses: dict[str, list[Tensor]] = {}

    @cached_property
    def scores(self) -> Scores:
        """Comparison with the reference, whose network is trained at the first evaluation."""
        return Scores(self.data, self.config, self.device)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Adam without a mean of gradients."""
        rate = self.config.learning_rate
        return torch.optim.Adam(model.parameters(), lr=rate, betas=(0.0, 0.9))

    def learning_rate(self, epoch: int) -> float:
        """The step size of an epoch, from `learning_rate` towards 0."""
        return self.config.learning_rate * (1 - epoch / self.config.epochs)

    def batches(self, epoch: int) -> Iterator[Tensor | None]:
        """Real images for each update of the discriminator, None for those of the generator."""
        del epoch
        real = self._real_batches()
        for _ in range(self.config.generator_updates_per_epoch):
            for _ in range(self.config.discriminator_updates):
                yield next(real)
            yield None

    def _real_batches(self) -> Iterator[Tensor]:
        size = self.config.batch_size
        while True:
            for rows in torch.randperm(len(self.train)).split(size):
                if len(rows) == size:
                    yield self.train[rows.to(self.device)].float() / 127.5 - 1.0

    def loss(self, model: nn.Module, batch: Tensor | None) -> Tensor:
        """The discriminator's loss on real and generated images, or the generator's on its own."""
        assert isinstance(model, Gan)
        if batch is None:
            return self._generator_loss(model)
        with torch.no_grad():
            fake = model.generator(self._latents())
        real_scores, *features = model.discriminator(batch)
        fake_scores, *_ = model.discriminator(fake)
        hinge = hinge_discriminator(real_scores.float(), fake_scores.float())
        return self._note("discriminator", hinge) + self._infomax(model, features, "discriminator")

    def _generator_loss(self, model: Gan) -> Tensor:
        with without_gradients(model.discriminator):
            scores, *features = model.discriminator(model.generator(self._latents()))
            hinge = hinge_generator(scores.float())
            return self._note("generator", hinge) + self._infomax(model, features, "generator")

    def _infomax(self, model: Gan, features: Sequence[Tensor], network: str) -> Tensor | float:
        """Weighted InfoNCE of local and global features."""
        if not model.discriminator.projects:
            return 0.0
        loss = info_nce(*model.discriminator.project(*features))
        return self.config.infomax_scale * self._note(f"{network}_info_nce", loss)

    def _note(self, name: str, loss: Tensor) -> Tensor:
        self.losses.setdefault(f"loss/{name}", []).append(loss.detach())
        return loss

    def _latents(self) -> Tensor:
        return torch.randn(self.config.batch_size, self.config.latent_size, device=self.device)

    def evaluate(self, model: nn.Module) -> Metrics:
        """Scores of generated images, and the mean losses since the last evaluation."""
        assert isinstance(model, Gan)
        metrics = self.scores.of(self._generate(model.generator, self.config.samples, seed=0))
        for name, losses in self.losses.items():
            metrics[name] = float(torch.stack(losses).mean())
        self.losses = {}
        return metrics

    def pictures(self, model: nn.Module) -> Mapping[str, Tensor]:
        """A grid of images from the same latents every time."""
        assert isinstance(model, Gan)
        images = self._generate(model.generator, PICTURE_IMAGES, seed=1)
        return {"samples": tile(images, PICTURE_COLUMNS)}

    def test(self, model: nn.Module) -> Metrics:
        """Scores of real images of the other split, and what the numbers rest on."""
        assert isinstance(model, Gan)
        return {
            **self.scores.of_real_images(),
            "generator_parameters": float(count_parameters(model.generator)),
        }

    def baselines(self) -> Metrics:
        """Scores of images whose pixels are drawn one by one from those of training images."""
        return self.scores.of_independent_pixels()

    def _generate(self, generator: Generator, count: int, seed: int) -> Tensor:
        """Images uint8 [count, C, 32, 32], on the CPU."""
        numbers = torch.Generator().manual_seed(seed)
        latents = torch.randn(count, self.config.latent_size, generator=numbers)
        parts = [generator(part.to(self.device)) for part in latents.split(250)]
        return torch.cat(
            [(part.float() * 127.5 + 127.5).round().to(torch.uint8).cpu() for part in parts]
        )


register_loop_task(
    "gan",
    "an InfoMax-GAN with NFM in its generator or without; distances to real images, samples",
    GanTask,
    PRESETS,
)
