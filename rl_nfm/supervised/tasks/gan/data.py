"""Images of 32x32 for the GAN, from any of the data sets."""

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from rl_nfm.supervised.data.datasets import ImageData
from rl_nfm.supervised.tasks.gan.networks import SIDE


def to_side(images: Tensor) -> Tensor:
    """Images uint8 [N, C, H, W] in 32x32 pixels.

    They are enlarged by the largest whole factor that fits (bilinear; 4 for the 8x8 digits), then
    padded with black on all sides alike (2 pixels for MNIST and Fashion-MNIST).

    Raises:
        ValueError: they are larger.
    """
    if max(images.shape[2:]) > SIDE:
        raise ValueError(f"data: images of {tuple(images.shape[2:])} are larger than {SIDE}x{SIDE}")
    factor = SIDE // max(images.shape[2:])
    if factor > 1:
        parts = [
            F.interpolate(part.float(), scale_factor=factor, mode="bilinear", align_corners=False)
            .round()
            .to(torch.uint8)
            for part in images.split(1000)
        ]
        images = torch.cat(parts)
    height, width = (SIDE - side for side in images.shape[2:])
    return F.pad(images, (width // 2, width - width // 2, height // 2, height - height // 2))


def in_side(data: ImageData) -> ImageData:
    """The data set with images in 32x32 pixels; see `to_side`."""
    return dataclasses.replace(
        data, train_images=to_side(data.train_images), test_images=to_side(data.test_images)
    )
