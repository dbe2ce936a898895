"""The GAN's networks, losses and distances, against executed public code and naive twins.

Numbers of kwotsin/mimicry (a7fda06), alexmlamb/mimicry (be030fb, the NFM authors' fork) and the
package prdc 0.2 are what their code gave when it was run on the same weights and points.
"""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from torch.nn.utils import parametrize

from rl_nfm.backbones.matching import count_parameters
from rl_nfm.nfm import NFM_PRESETS, NeuralFunctionModule
from rl_nfm.supervised.tasks.gan.data import to_side
from rl_nfm.supervised.tasks.gan.distances import (
    Gaussian,
    density_and_coverage,
    frechet_distance,
    neighbour_radii,
)
from rl_nfm.supervised.tasks.gan.losses import hinge_discriminator, hinge_generator, info_nce
from rl_nfm.supervised.tasks.gan.networks import Discriminator, Generator


def generator(width=256, latent_size=128, channels=3, nfm=None):
    return Generator(latent_size=latent_size, width=width, channels=channels, nfm=nfm)


def discriminator(width=128, channels=3, projection_size: int | None = 1024):
    return Discriminator(width=width, channels=channels, projection_size=projection_size)


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (generator, 4_276_739),
        (lambda: generator(32, 16), 68_675),
        (discriminator, 1_615_233),
        (lambda: discriminator(projection_size=None), 1_053_825),
        (lambda: discriminator(16, projection_size=64), 21_937),
    ],
)
def test_parameters_are_as_many_as_mimicrys(build, count):
    assert count_parameters(build()) == count


def test_parameters_with_nfm_are_the_authors_less_those_that_they_do_not_use():
    """Theirs: 21,140,235, in which the first pass has queries and output blocks that never read."""
    query = 256 * 128 + 128
    block = (9 * 384 * 256 + 256) + 2 * 256 + (9 * 256 * 256 + 256) + 1
    with torch.device("meta"):
        net = generator(nfm=NFM_PRESETS["official_gan"])
    assert count_parameters(net) == 21_140_235 - 4 * (query + block)


def fill(module):
    """The same numbers for every machine: sines, smaller for larger rows."""
    for n, parameter in enumerate(module.parameters()):
        steps = torch.arange(parameter.numel(), dtype=torch.float64)
        scale = 0.5 / math.sqrt(parameter[0].numel() if parameter.dim() > 1 else 1)
        values = torch.sin(steps * (0.37 + 0.01 * n) + n) * scale
        parameter.data.copy_(values.view(parameter.shape))
    return module


def test_the_generator_gives_mimicrys_images_on_equal_weights():
    net = fill(generator(6, 5))
    images = net(torch.sin(torch.arange(15.0)).view(3, 5)).detach()
    assert images.shape == (3, 3, 32, 32)
    found = [images.sum(), images.square().sum(), images[0, 0, 0, 0], images[1, 2, 17, 30]]
    expected = [-3345.831055, 1373.674194, -0.131094, -0.439877]
    assert [float(x) for x in found] == pytest.approx(expected, rel=1e-4)


def test_the_generator_with_nfm_gives_its_authors_images_on_equal_weights():
    """Their fork without NFM's effect: -1005.669128, 1179.838745, -0.44141, 0.36571."""
    net = fill(generator(6, 5, nfm=NFM_PRESETS["official_gan"])).eval()
    images = net(torch.sin(torch.arange(15.0)).view(3, 5)).detach()
    found = [images.sum(), images.square().sum(), images[0, 0, 0, 0], images[1, 2, 17, 30]]
    expected = [-1006.399963, 1177.286621, -0.442519, 0.364836]
    assert [float(x) for x in found] == pytest.approx(expected, rel=5e-5)


def test_the_discriminator_gives_mimicrys_scores_and_loss_on_equal_weights():
    net = fill(discriminator(6, projection_size=7))
    images = torch.sin(torch.arange(4 * 3 * 32 * 32.0) * 0.11).view(4, 3, 32, 32)
    with torch.no_grad():
        for _ in range(60):  # power iterations, until the norms stand
            scores, local, whole = net(images)
            projected = net.project(local, whole)
    assert local.shape == (4, 6, 8, 8)
    assert [tuple(x.shape) for x in projected] == [(4, 7, 64), (4, 7)]
    expected = [-30.7153, -30.72432, -30.71484, -30.69966]
    assert scores.tolist() == pytest.approx(expected, rel=1e-4)
    assert float(local.sum()) == pytest.approx(424.0352, rel=1e-4)
    assert float(whole.sum()) == pytest.approx(661.1166, rel=1e-4)
    assert float(info_nce(*projected)) == pytest.approx(5.299377, rel=1e-4)


def test_spectral_norm_is_in_every_layer_of_the_discriminator_and_none_of_the_generator():
    torch.manual_seed(0)
    net = discriminator(6, projection_size=7)
    maps = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(maps) == 11 + 6
    for layer in maps:
        assert parametrize.is_parametrized(layer, "weight")
        for _ in range(50):
            weight = layer.weight.detach()  # each access is one power iteration
        norm = torch.linalg.matrix_norm(weight.flatten(1), 2)
        assert float(norm) == pytest.approx(1.0, abs=1e-3)
    net = generator(4, 3, nfm=NFM_PRESETS["paper"])
    assert not any(parametrize.is_parametrized(m) for m in net.modules())


def test_nfm_stands_behind_the_first_spatial_layer_and_each_block():
    net = generator(4, 3, nfm=NFM_PRESETS["paper"])
    module = net.trunk
    assert isinstance(module, NeuralFunctionModule)
    visits = module.places.schedule
    assert [(v.pass_index, v.place) for v in visits] == [(p, i) for p in (0, 1) for i in range(4)]
    assert all(visit.reads and visit.writes for visit in visits)
    latents, first = torch.randn(2, 3), module.passes[0]
    assert isinstance(first, nn.ModuleList)
    sizes, h = [], latents
    for layer in first:
        h = layer(h)
        sizes.append(tuple(h.shape[2:]))
    assert sizes == [(4, 4), (8, 8), (16, 16), (32, 32)]
    assert net(latents).shape == (2, 3, 32, 32)


def test_hinge_losses_are_those_of_a_loop():
    real, fake = [0.3, 1.7, -2.0], [-1.5, 0.2, 0.0]
    loss = sum(max(0, 1 - x) for x in real) / 3 + sum(max(0, 1 + x) for x in fake) / 3
    found = hinge_discriminator(torch.tensor(real), torch.tensor(fake))
    assert float(found) == pytest.approx(loss)
    assert float(hinge_generator(torch.tensor(fake))) == pytest.approx(1.3 / 3)


@pytest.mark.parametrize(
    ("scale", "shift", "expected"),
    [((3, 3), (0, 0), 6.6288161277771), ((1, 1), (2, -4), 7.888203144073486)],
)
def test_info_nce_is_mimicrys_and_that_of_a_loop(scale, shift, expected):
    """In the second case all scores are about -20, so that the -10 for own places count."""
    local = torch.sin(torch.arange(24.0)).view(3, 2, 4) * scale[0] + shift[0]
    whole = torch.cos(torch.arange(6.0)).view(3, 2) * scale[1] + shift[1]
    total = 0.0
    for i in range(3):
        others = [
            float(whole[i] @ local[j, :, p]) if j != i else -10.0
            for j in range(3)
            for p in range(4)
        ]
        for p in range(4):
            own = float(whole[i] @ local[i, :, p])
            total -= own - math.log(math.exp(own) + sum(map(math.exp, others)))
    assert total / 12 == pytest.approx(expected)
    assert float(info_nce(local, whole)) == pytest.approx(expected)
    doubles = [x.double().requires_grad_() for x in (local, whole)]
    assert torch.autograd.gradcheck(info_nce, doubles)


def test_frechet_distance_is_that_of_scipys_root():
    torch.manual_seed(0)
    points = [torch.randn(40, 5, dtype=torch.float64) @ torch.randn(5, 5).double() for _ in "ab"]
    points[1][:, 3] = points[1][:, 2]  # a singular covariance
    means = [x.mean(0).numpy() for x in points]
    a, b = (np.cov(x.numpy(), rowvar=False) for x in points)
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    found = frechet_distance(Gaussian.of(points[0]), Gaussian.of(points[1]))
    assert found == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(Gaussian.of(points[0]), Gaussian.of(points[0])) == pytest.approx(
        0, abs=1e-9
    )


def test_frechet_distance_of_numbers_is_worked_by_hand():
    """(3 - 0)^2 + (2 - 1)^2 of standard deviations 1 and 2."""
    one, two = (Gaussian(torch.tensor([m]).double(), torch.tensor([[v]]).double()) for m, v in _MV)
    assert frechet_distance(one, two) == pytest.approx(10.0)


_MV = ((0.0, 1.0), (3.0, 4.0))


@pytest.mark.parametrize(
    ("nearest", "density", "coverage"),
    [
        (1, 1.5294117647058822, 0.5217391304347826),
        (3, 1.0196078431372548, 0.6956521739130435),
        (5, 1.0470588235294118, 0.782608695652174),
    ],
)
def test_density_and_coverage_are_prdcs(monkeypatch, nearest, density, coverage):
    monkeypatch.setattr("rl_nfm.supervised.tasks.gan.distances._CHUNK", 7)  # 23 points in 4 parts
    random = np.random.RandomState(0)
    real = torch.from_numpy(random.randn(23, 3))
    made = torch.from_numpy(random.randn(17, 3) * 0.8 + 0.5)
    radii = neighbour_radii(real, nearest)
    assert density_and_coverage(real, made, radii, nearest) == pytest.approx((density, coverage))


@pytest.mark.parametrize(
    ("shape", "inside"),
    [((28, 28), (2, 30, 2, 30)), ((8, 8), (0, 32, 0, 32)), ((9, 5), (2, 29, 8, 23))],
)
def test_images_are_enlarged_by_a_whole_factor_and_padded_with_black(shape, inside):
    images = torch.full((2, 3, *shape), 200, dtype=torch.uint8)
    found = to_side(images)
    assert found.shape == (2, 3, 32, 32)
    top, bottom, left, right = inside
    assert bool((found[:, :, top:bottom, left:right] == 200).all())
    assert int((found == 200).sum()) == 6 * (bottom - top) * (right - left)
    assert int((found == 0).sum()) == found.numel() - int((found == 200).sum())


def test_larger_images_are_refused():
    with pytest.raises(ValueError, match=r"data: images of \(33, 4\) are larger than 32x32"):
        to_side(torch.zeros(1, 1, 33, 4, dtype=torch.uint8))
