"""Generator and discriminator of InfoMax-GAN for images of 32x32, with NFM or without.

Sources: residual nets of Miyato et al. 2018 (SNGAN, spectral norm in the discriminator alone), with
the projections of Lee et al. 2021 (InfoMax-GAN), in the sizes of Mimicry (Lee & Town 2020), whose
executed code gives the tests their numbers of parameters and outputs, as does the NFM authors' fork
of it for `official_gan`. NFM stands after the first spatial layer and after each residual block of
the generator (Lamb et al. 2021, appendix F): four places in each pass; the last normalisation and
convolution belong to no pass.

As Mimicry is executed, a block of the discriminator has its first ReLU feed the shortcut too, and
the local features are those after the next block's ReLU (its ReLUs work in place); in the papers
the shortcut takes the block's input as it is. 1x1 convolutions of shortcuts run at the smaller of
their two resolutions, which changes nothing but the rounding. Deviations: the spectral norm starts
from 15 power iterations instead of none (PyTorch's parametrisation), and NFM's layers keep this
project's initial weights, where the authors' are Glorot's.

Shapes: B batch, Z latent size, C channels of an image, D width of the discriminator, R size of a
projection.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from rl_nfm.nfm import NeuralFunctionModule, NFMConfig

SIDE = 32
"""Height and width of an image."""
_FIRST = 4


def _glorot(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> nn.Module:
    nn.init.xavier_uniform_(layer.weight, gain)
    return layer


def _normed(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> nn.Module:
    return spectral_norm(_glorot(layer, gain))


class _Up(nn.Module):
    """Doubles height and width around a shortcut: [B, C, H, W] to [B, C, 2 H, 2 W]."""

    def __init__(self, width: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.convs = nn.ModuleList(
            _glorot(nn.Conv2d(width, width, 3, padding=1), math.sqrt(2)) for _ in range(2)
        )
        self.shortcut = _glorot(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.convs[0](_double(F.relu(self.norms[0](x))))
        h = self.convs[1](F.relu(self.norms[1](h)))
        return h + _double(self.shortcut(x))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class _Down(nn.Module):
    """Two convolutions around a shortcut, with spectral norm.

    Args:
        channels: of input and output.
        halve: whether height and width are halved.
        first: whether the input is an image, which no ReLU comes before.
    """

    def __init__(self, channels: tuple[int, int], *, halve: bool, first: bool = False):
        super().__init__()
        inputs, outputs = channels
        self.halve, self.first = halve, first
        self.convs = nn.ModuleList(
            _normed(nn.Conv2d(c, outputs, 3, padding=1), math.sqrt(2)) for c in (inputs, outputs)
        )
        changes = halve or inputs != outputs
        self.shortcut = _normed(nn.Conv2d(inputs, outputs, 1)) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.first else F.relu(x)
        h = self.convs[1](F.relu(self.convs[0](x)))
        if self.halve:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + self.shortcut(x)


class _Base(nn.Module):
    """The first spatial layer: latents [B, Z] to maps [B, width, 4, 4]."""

    def __init__(self, latent_size: int, width: int):
        super().__init__()
        self.linear = _glorot(nn.Linear(latent_size, width * _FIRST**2))

    def forward(self, latents: Tensor) -> Tensor:
        return self.linear(latents).unflatten(1, (-1, _FIRST, _FIRST))


def _layers(latent_size: int, width: int) -> list[nn.Module]:
    """The layers that NFM may stand behind: 4x4, 8x8, 16x16 and 32x32 maps."""
    return [_Base(latent_size, width), *(_Up(width) for _ in range(3))]


class Generator(nn.Module):
    """Latents [B, Z] to images [B, C, 32, 32] in -1 .. 1.

    Args:
        latent_size: Z.
        width: channels of all maps.
        channels: C.
        nfm: NFM's options; None: without.
    """

    def __init__(self, *, latent_size: int, width: int, channels: int, nfm: NFMConfig | None):
        super().__init__()
        self.latent_size = latent_size
        if nfm is None:
            self.trunk: nn.Module = nn.Sequential(*_layers(latent_size, width))
        else:
            lists = [_layers(latent_size, width) for _ in range(nfm.copies)]
            self.trunk = NeuralFunctionModule(lists, channels=[width] * 4, config=nfm)
        self.norm = nn.BatchNorm2d(width)
        self.conv = _glorot(nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, latents: Tensor) -> Tensor:
        """See the class."""
        return torch.tanh(self.conv(F.relu(self.norm(self.trunk(latents)))))


class Projection(nn.Module):
    """One hidden layer of the input's size around a linear shortcut, to R numbers.

    Args:
        make: makes a linear map of (inputs, outputs).
        inputs: size of the input.
        outputs: R.
    """

    def __init__(self, make: Callable[[int, int], nn.Module], inputs: int, outputs: int):
        super().__init__()
        self.hidden, self.out = make(inputs, inputs), make(inputs, outputs)
        self.shortcut = make(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Projected features, of the rank of x."""
        return self.out(F.relu(self.hidden(x))) + self.shortcut(x)


class Discriminator(nn.Module):
    """Images [B, C, 32, 32] to scores and features.

    Args:
        width: D.
        channels: C.
        projection_size: R; None: no projections, which makes it SNGAN's.
    """

    def __init__(self, *, width: int, channels: int, projection_size: int | None):
        super().__init__()
        self.local = nn.Sequential(
            _Down((channels, width), halve=True, first=True),
            _Down((width, width), halve=True),
            _Down((width, width), halve=False),
        )
        self.last = _Down((width, width), halve=False)
        self.score = _normed(nn.Linear(width, 1))
        self.projects = projection_size is not None
        """Whether there are projections."""
        if projection_size is not None:
            self.project_local = Projection(_normed_1x1, width, projection_size)
            self.project_global = Projection(_normed_linear, width, projection_size)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [B], local features [B, D, 8, 8] and global features [B, D]."""
        local = F.relu(self.local(images))
        whole = F.relu(self.last(local)).sum(dim=(2, 3))
        return self.score(whole).squeeze(1), local, whole

    def project(self, local: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
        """Local and global features as [B, R, 64] and [B, R]."""
        return self.project_local(local).flatten(2), self.project_global(whole)


def _normed_1x1(inputs: int, outputs: int) -> nn.Module:
    return _normed(nn.Conv2d(inputs, outputs, 1))


def _normed_linear(inputs: int, outputs: int) -> nn.Module:
    return _normed(nn.Linear(inputs, outputs))


class Gan(nn.Module):
    """Both networks."""

    def __init__(self, generator: Generator, discriminator: Discriminator):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
