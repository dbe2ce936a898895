"""Networks in whose features images are compared, by name: `--features.name`.

`classifier` is trained here, on the training images and labels of the same data: a narrow
PreActResNet whose pooled last stage gives the features. A distance in them is comparable only
between runs on the same data with the same options of this group, whose networks are equal, and is
never an FID. Who has Inception's weights registers a network of their own, from a module that an
entry point of the group `rl_nfm.tasks` names:

    from rl_nfm.supervised.tasks.gan.features import register_features

    def inception(data, config, device):
        net = my_inception().to(device)  # uint8 [B, C, 32, 32] to float [B, 2048]
        return lambda images: net(images)

    register_features("inception", inception, metric="fid")

Nothing is read from a TorchScript file, since reading one unpickles it.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor
from torch.nn import functional as F

from rl_nfm.backbones.resnet import PreActResNetClassifier, ResNetConfig
from rl_nfm.supervised.data.datasets import ImageData
from rl_nfm.support.bounds import Bounded
from rl_nfm.support.configuration import nearest

_CHUNK = 250


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureConfig(Bounded):
    """Options of the network in whose features images are compared."""

    name: str = "classifier"
    """classifier: trained here on the same data; or a registered one, such as Inception."""
    width: Annotated[int, Gt(0)] = 16
    """Channels of the classifier's first stage; it has 8 times as many features."""
    updates: Annotated[int, Gt(0)] = 1000
    """Updates of the classifier, of 128 images each."""


Extractor = Callable[[Tensor], Tensor]
"""From images uint8 [B, C, 32, 32] to features [B, D]."""
Builder = Callable[[ImageData, FeatureConfig, torch.device], Extractor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """A registered way to get features."""

    build: Builder
    metric: str
    """Name of the distance between Gaussians in these features."""


_FEATURES: dict[str, Features] = {}


def register_features(name: str, build: Builder, *, metric: str = "feature_distance") -> None:
    """Add a network in whose features images may be compared.

    Args:
        name: for `--features.name`.
        build: makes it from the data, in 32x32 pixels, the options and the device.
        metric: what the distance between Gaussians in its features is called.

    Raises:
        ValueError: the name is taken.
    """
    if name in _FEATURES:
        raise ValueError(f"features {name!r} are already registered")
    _FEATURES[name] = Features(build=build, metric=metric)


def features_named(name: str) -> Features:
    """The registered features.

    Raises:
        ValueError: unknown, with the nearest name.
    """
    if name not in _FEATURES:
        unknown = nearest("features.name", name, list(_FEATURES))
        raise ValueError(f"{unknown}; {__name__}.register_features adds others")
    return _FEATURES[name]


def extract(extractor: Extractor, images: Tensor, device: torch.device) -> Tensor:
    """Features float [N, D] of images uint8 [N, C, 32, 32], in full precision."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        return torch.cat([extractor(part.to(device)).float() for part in images.split(_CHUNK)])


class ClassifierFeatures:
    """A classifier trained on the data; the same for all seeds and models.

    It draws from generators of its own state, so that training goes on as if it had not been built.
    """

    def __init__(self, data: ImageData, config: FeatureConfig, device: torch.device):
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            with torch.enable_grad(), torch.autocast(device.type, enabled=False):
                self.net = _train_classifier(data, config, device)
                right = self._right_answers(data, device)
        self.accuracy = float(right.float().mean())
        """Share of correctly classified test images."""

    def _right_answers(self, data: ImageData, device: torch.device) -> Tensor:
        parts = data.test_images.split(_CHUNK)
        answers = torch.cat([self.net(_scaled(part.to(device))).argmax(1).cpu() for part in parts])
        return answers == data.test_labels

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, D] of images uint8 [B, C, 32, 32]."""
        return self.net.backbone(_scaled(images)).mean(dim=(2, 3))


def _train_classifier(
    data: ImageData, config: FeatureConfig, device: torch.device
) -> PreActResNetClassifier:
    """Adam, its step size from 2e-3 to 0 in equal steps."""
    resnet = ResNetConfig(depth=10, width=config.width, stem="halving")
    images, labels = data.train_images, data.train_labels
    net = PreActResNetClassifier(resnet, in_channels=images.shape[1], num_classes=data.classes)
    net = net.to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, config.updates)
    for _ in range(config.updates):
        rows = torch.randint(len(images), (128,))
        loss = F.cross_entropy(net(_scaled(images[rows].to(device))), labels[rows].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


def _scaled(images: Tensor) -> Tensor:
    """Pixels uint8 as floats in -1 .. 1."""
    return images.float() / 127.5 - 1.0


register_features("classifier", ClassifierFeatures)
