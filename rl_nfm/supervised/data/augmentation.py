"""Image augmentation on whole batches: normalisation, padded crops, flips, mixup, one black box.

These are the steps of the pipeline that the NFM paper uses for classification (Verma et al. 2019,
Manifold Mixup), computed on the device without a loop over images.

Letters: B images, C channels, H x W pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [1, C, 1, 1] of uint8 images [N, C, H, W] scaled to [0, 1]."""
    sums = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(sums)
    for part in images.split(4096):
        values = part.double() / 255.0
        sums += values.sum(dim=(0, 2, 3))
        squares += (values**2).sum(dim=(0, 2, 3))
    count = images.numel() / images.shape[1]
    mean = sums / count
    deviation = (squares / count - mean**2).clamp(min=1e-12).sqrt()
    return mean.float().view(1, -1, 1, 1), deviation.float().view(1, -1, 1, 1)


def random_crop(images: Tensor, padding: int) -> Tensor:
    """Each image shifted by up to `padding` pixels either way, filled with zeros: [B, C, H, W]."""
    batch, _, height, width = images.shape
    padded = F.pad(images, [padding] * 4)
    y, x = torch.randint(2 * padding + 1, (2, batch, 1, 1, 1))
    rows = (y + torch.arange(height).view(1, 1, -1, 1)).to(images.device)
    columns = (x + torch.arange(width).view(1, 1, 1, -1)).to(images.device)
    index = torch.arange(batch, device=images.device).view(-1, 1, 1, 1)
    channels = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
    return padded[index, channels, rows, columns]


def random_flip(images: Tensor) -> Tensor:
    """Each image mirrored left to right with probability one half."""
    flip = (torch.rand(len(images)) < 0.5).to(images.device)
    return torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)


def mixup(images: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Images and one-hot targets [B, K] mixed with those of a permutation of the batch.

    One weight from Beta(alpha, alpha) for the batch, as in Manifold Mixup's input mixup.
    """
    weight = float(torch.distributions.Beta(alpha, alpha).sample())
    order = torch.randperm(len(images)).to(images.device)
    return (
        weight * images + (1 - weight) * images[order],
        weight * targets + (1 - weight) * targets[order],
    )


def occlude(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A copy of the images with one box of `size` x `size` zeros inside each."""
    batch, _, height, width = images.shape
    top = torch.randint(height - size + 1, (batch, 1, 1, 1), generator=generator)
    left = torch.randint(width - size + 1, (batch, 1, 1, 1), generator=generator)
    y, x = torch.arange(height).view(1, 1, -1, 1), torch.arange(width).view(1, 1, 1, -1)
    inside = (y >= top) & (y < top + size) & (x >= left) & (x < left + size)
    return images.masked_fill(inside.to(images.device), 0)
