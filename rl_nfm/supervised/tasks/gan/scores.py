"""Scores of generated images beside a fixed set of real ones."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rl_nfm.supervised.data.datasets import ImageData
from rl_nfm.supervised.tasks.gan.distances import (
    Gaussian,
    density_and_coverage,
    frechet_distance,
    neighbour_radii,
)
from rl_nfm.supervised.tasks.gan.features import extract, features_named

if TYPE_CHECKING:
    from rl_nfm.supervised.tasks.gan.task import GanConfig

NEIGHBOUR_IMAGES = 10_000
"""Images of each set that density and coverage are computed from, as in Naeem et al. 2020; their
cost grows with the product."""
_CHUNK = 1000


def check_scores(data: ImageData, config: "GanConfig") -> None:
    """Check, before the training, that there will be scores.

    Raises:
        ValueError: unknown features, or more neighbours asked for than there are images.
    """
    features_named(config.features.name)
    real = data.train_images if config.reference == "train" else data.test_images
    count = min(len(real), config.samples, NEIGHBOUR_IMAGES)
    if config.nearest >= count:
        raise ValueError(f"nearest: {config.nearest} is not below the {count} real images")


class Scores:
    """Compares images with up to `samples` real ones of a split.

    Args:
        data: in 32x32 pixels.
        config: the task's options.
        device: where features are computed.

    """

    def __init__(self, data: ImageData, config: "GanConfig", device: torch.device):
        self.device, self.nearest, self.samples = device, config.nearest, config.samples
        self.train_images = data.train_images
        splits = (data.train_images, data.test_images)
        real, self.other = splits if config.reference == "train" else splits[::-1]
        chosen = features_named(config.features.name)
        self.metric = chosen.metric
        self.extractor = chosen.build(data, config.features, device)
        features = self._features(_some(real, config.samples))
        self.real_images = len(features)
        self.gaussian = Gaussian.of(features)
        self.neighbours = features[:NEIGHBOUR_IMAGES]
        self.radii = neighbour_radii(self.neighbours, self.nearest)

    def of(self, images: Tensor) -> dict[str, float]:
        """Scores of images uint8 [N, C, 32, 32]."""
        return self._compare(self._features(images))

    def _compare(self, features: Tensor) -> dict[str, float]:
        density, coverage = density_and_coverage(
            self.neighbours, features[:NEIGHBOUR_IMAGES], self.radii, self.nearest
        )
        distance = frechet_distance(self.gaussian, Gaussian.of(features))
        return {self.metric: distance, "density": density, "coverage": coverage}

    def of_real_images(self) -> dict[str, float]:
        """Scores of real images of the split that is not the reference, and what they rest on."""
        images = _some(self.other, self.samples)
        counts = {"real_images": len(images), "reference_images": self.real_images}
        accuracy = getattr(self.extractor, "accuracy", None)
        return {
            **{f"real_{name}": value for name, value in self.of(images).items()},
            **{name: float(count) for name, count in counts.items()},
            **({} if accuracy is None else {"feature_classifier_accuracy": accuracy}),
        }

    def of_independent_pixels(self) -> dict[str, float]:
        """Scores of images whose pixels are drawn one by one from those of training images."""
        flat, shape = self.train_images.flatten(1), self.train_images.shape[1:]
        numbers = torch.Generator().manual_seed(2)
        parts = []
        for first in range(0, self.samples, _CHUNK):
            count = min(_CHUNK, self.samples - first)
            rows = torch.randint(len(flat), (count, flat.shape[1]), generator=numbers)
            parts.append(self._features(flat.gather(0, rows).unflatten(1, shape)))
        return self._compare(torch.cat(parts))

    def _features(self, images: Tensor) -> Tensor:
        return extract(self.extractor, images, self.device)


def _some(images: Tensor, count: int) -> Tensor:
    """The images, or `count` of them in a fixed random order."""
    if len(images) <= count:
        return images
    numbers = torch.Generator().manual_seed(3)
    return images[torch.randperm(len(images), generator=numbers)[:count]]
