"""The models of the GAN's task; each is called with the task."""

from typing import TYPE_CHECKING

import torch

from rl_nfm.backbones.matching import count_parameters, same_params_as
from rl_nfm.nfm import NFMConfig
from rl_nfm.supervised.models import Models
from rl_nfm.supervised.tasks.gan.networks import Discriminator, Gan, Generator

if TYPE_CHECKING:
    from rl_nfm.supervised.tasks.gan.task import GanTask

MODELS = Models("gan")
_INFOMAX = ("projection_size", "infomax_scale")


def _generator(task: "GanTask", width: int, nfm: NFMConfig | None) -> Generator:
    sizes = {"latent_size": task.config.latent_size, "channels": task.train.shape[1]}
    return Generator(width=width, **sizes, nfm=nfm)


def _discriminator(task: "GanTask", projection_size: int | None) -> Discriminator:
    sizes = {"width": task.config.discriminator_width, "channels": task.train.shape[1]}
    return Discriminator(**sizes, projection_size=projection_size)


def _infomax_gan(task: "GanTask", width: int, nfm: NFMConfig | None) -> Gan:
    discriminator = _discriminator(task, task.config.projection_size)
    return Gan(_generator(task, width, nfm), discriminator)


@MODELS.register("infomax", "InfoMax-GAN", reads=_INFOMAX)
def _infomax(task: "GanTask") -> Gan:
    return _infomax_gan(task, task.config.generator_width, None)


@MODELS.register("nfm", "InfoMax-GAN with NFM in the generator", reads=("nfm", *_INFOMAX))
def _nfm(task: "GanTask") -> Gan:
    return _infomax_gan(task, task.config.generator_width, task.config.nfm)


@MODELS.register(
    "infomax_matched",
    "InfoMax-GAN, its generator widened to as many parameters as nfm's",
    reads=("nfm", *_INFOMAX),
)
def _infomax_matched(task: "GanTask") -> Gan:
    with torch.device("meta"):
        reference = _generator(task, task.config.generator_width, task.config.nfm)
    wanted = count_parameters(reference)
    width = same_params_as(wanted, lambda width: _generator(task, width, None))
    return _infomax_gan(task, width, None)


@MODELS.register("sngan", "without InfoNCE and without NFM")
def _sngan(task: "GanTask") -> Gan:
    generator = _generator(task, task.config.generator_width, None)
    return Gan(generator, _discriminator(task, None))
