"""How far a set of generated images is from a set of real ones, in the features of some network.

The Frechet distance is the one of FID (Heusel et al. 2017), which is defined by Inception's
features: in any other features the number is another one. Density and coverage: Naeem et al. 2020,
equations 3 and 4. All are computed in float64.

Shapes: N real and M generated images, D features.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_CHUNK = 1000


class Gaussian(NamedTuple):
    """Mean and covariance of features."""

    mean: Float[Tensor, " D"]
    covariance: Float[Tensor, "D D"]

    @classmethod
    def of(cls, features: Float[Tensor, "N D"]) -> "Gaussian":
        """The Gaussian that features [N, D] are reduced to; N must be at least 2."""
        features = features.double()
        return cls(features.mean(0), features.T.cov().reshape(2 * features.shape[1:]))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians.

    |mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)); the last trace is that of the root of
    A^(1/2) B A^(1/2), which is symmetric and has the same eigenvalues.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    apart = (a.mean - b.mean).square().sum()
    return float(apart + a.covariance.trace() + b.covariance.trace() - 2 * shared)


def neighbour_radii(features: Float[Tensor, "N D"], nearest: int) -> Float[Tensor, " N"]:
    """Distance of each point to its `nearest`-th nearest other point; N must be larger."""
    features = features.double()
    radii = []
    for first, rows in enumerate(features.split(_CHUNK)):
        distances = torch.cdist(rows, features)
        own = torch.arange(len(rows), device=rows.device)
        distances[own, own + first * _CHUNK] = math.inf
        radii.append(distances.kthvalue(nearest, dim=1).values)
    return torch.cat(radii)


def density_and_coverage(
    real: Float[Tensor, "N D"],
    generated: Float[Tensor, "M D"],
    radii: Float[Tensor, " N"],
    nearest: int,
) -> tuple[float, float]:
    """Density and coverage of generated images.

    Args:
        real: features of real images.
        generated: features of generated images.
        radii: `neighbour_radii(real, nearest)`.
        nearest: k.

    Returns:
        Density, in how many of the real images' balls a generated image lies, on average, over k;
        it may exceed 1. Coverage, the share of the real images' balls that hold a generated image.
    """
    real, generated = real.double(), generated.double()
    inside, covered = 0, 0
    for rows, radius in zip(real.split(_CHUNK), radii.split(_CHUNK), strict=True):
        within = torch.cdist(rows, generated) < radius[:, None]
        inside += int(within.sum())
        covered += int(within.any(1).sum())
    return inside / (nearest * len(generated)), covered / len(real)
