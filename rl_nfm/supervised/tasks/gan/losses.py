"""Losses of InfoMax-GAN: hinge (Miyato et al. 2018) and local-global InfoNCE (Lee et al. 2021).

Shapes: B images, R size of a projection, L places of the local features.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

SELF_SCORE = -10.0
"""Score of an image's own places among the negatives: in the published code they are not left out
but given this score, which bounds what pushing all other scores down can gain."""


def hinge_discriminator(real: Float[Tensor, " B"], fake: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """The discriminator's loss: real images should score above 1, fake ones below -1."""
    return F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()


def hinge_generator(fake: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """The generator's loss: its images should score high."""
    return -fake.mean()


def info_nce(local: Float[Tensor, "B R L"], whole: Float[Tensor, "B R"]) -> Float[Tensor, ""]:
    """Cross-entropy of finding a local feature's own image among the other images' features.

    For each image and each of its places, the score of the pair, a scalar product, stands against
    those of the image's global feature with all places of all other images; the mean over images
    and places.

    Args:
        local: projected local features.
        whole: projected global features.
    """
    batch, _, places = local.shape
    scores = (whole @ local.transpose(0, 1).flatten(1)).unflatten(1, (batch, places))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    own = scores.diagonal().T  # [B, L]
    # The own places together: L times exp(SELF_SCORE).
    negatives = scores.logsumexp(2).diagonal_scatter(
        scores.new_full((batch,), SELF_SCORE + math.log(places))
    )
    all_negatives = negatives.logsumexp(1, keepdim=True)  # [B, 1]
    return (own.logaddexp(all_negatives) - own).mean()
