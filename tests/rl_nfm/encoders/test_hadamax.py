"""The Hadamax encoder against the authors' network and its formulas, written out in float64."""

import math

import pytest
import torch
from torch import Tensor

from rl_nfm.backbones.matching import count_macs, count_parameters
from rl_nfm.encoders import make_encoder
from rl_nfm.encoders.hadamax import HadamaxEncoder, pad_same


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before", "after"),
    [
        (84, 8, 1, 3, 4),  # 84 outputs need 91 pixels
        (21, 2, 2, 0, 1),  # 11 outputs need 22
        (84, 4, 4, 0, 0),
        (61, 4, 4, 1, 2),  # 16 outputs need 64
        (11, 3, 1, 1, 1),
        (5, 1, 3, 0, 0),  # windows that leave pixels out need none
    ],
)
def test_padding_by_hand(size: int, kernel: int, stride: int, before: int, after: int) -> None:
    row = torch.arange(1.0, size + 1)
    padded = pad_same(row.expand(1, 1, 7, size), kernel, stride, -1.0)[0, 0]
    columns = padded[padded.shape[0] // 2]
    assert columns.tolist() == [-1.0] * before + row.tolist() + [-1.0] * after
    windows = (len(columns) - kernel) // stride + 1
    assert windows == math.ceil(size / stride)


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def naive(encoder: HadamaxEncoder, x: Tensor) -> Tensor:
    """One pixel and one window at a time, in float64, for one image [C, H, W]."""
    parameters = {k: v.double() for k, v in encoder.state_dict().items()}
    for b, (kernel, size, stride) in enumerate(((8, 4, 4), (4, 2, 2), (3, 3, 1))):
        weight, bias = parameters[f"blocks.{b}.conv.weight"], parameters[f"blocks.{b}.conv.bias"]
        scale, shift = parameters[f"blocks.{b}.norm_weight"], parameters[f"blocks.{b}.norm_bias"]
        _, height, width = x.shape
        left = (kernel - 1) // 2
        big = torch.zeros(x.shape[0], height + kernel, width + kernel, dtype=torch.float64)
        big[:, left : left + height, left : left + width] = x
        product = torch.ones(weight.shape[0] // 2, height, width, dtype=torch.float64)
        for half in range(2):
            rows = slice(half * len(product), (half + 1) * len(product))
            for i in range(height):
                for j in range(width):
                    window = big[:, i : i + kernel, j : j + kernel]
                    h = (weight[rows] * window).sum((1, 2, 3)) + bias[rows]
                    h = (h - h.mean()) / (h.var(unbiased=False) + 1e-6).sqrt()
                    product[:, i, j] *= gelu(h * scale[half] + shift[half])
        tall, wide = math.ceil(height / stride), math.ceil(width / stride)
        above = max(0, (tall - 1) * stride + size - height) // 2
        aside = max(0, (wide - 1) * stride + size - width) // 2
        x = torch.zeros(len(product), tall, wide, dtype=torch.float64)
        for i in range(tall):
            for j in range(wide):
                top, begin = i * stride - above, j * stride - aside
                window = product[:, max(0, top) : top + size, max(0, begin) : begin + size]
                x[:, i, j] = window.amax((1, 2))
    return x.flatten()


@pytest.mark.parametrize("shape", [(2, 13, 10), (3, 9, 14)])
def test_features_equal_the_formulas(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    encoder = make_encoder("hadamax", obs_shape=shape, width=3)
    assert isinstance(encoder, HadamaxEncoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    pixels = torch.rand(2, *shape)
    with torch.no_grad():
        features = encoder.embed(pixels)
    for image, got in zip(pixels, features, strict=True):
        assert torch.allclose(got.double(), naive(encoder, image.double()), atol=1e-5)


def test_the_authors_network_gives_the_same_on_equal_weights() -> None:
    """Jacobkooi/Hadamax (55faca8), executed in float64 with 3, 6 and 6 channels for 32, 64 and 64.

    Features of two places, and the gradient of one pixel, up to the linear layer.
    """
    encoder = make_encoder("hadamax", obs_shape=(4, 21, 26), width=3).double()
    assert isinstance(encoder, HadamaxEncoder)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.4 * drawn)
    pixels = torch.rand(2, 4, 21, 26, generator=generator, dtype=torch.float64).requires_grad_()
    maps = encoder.feature_maps(pixels)
    weights = torch.randn(maps.shape, generator=generator, dtype=torch.float64)
    (grad,) = torch.autograd.grad((maps * weights).sum(), pixels)
    public = """
        0.095918453 0.016731665 -0.040001331 -0.030225036 -0.027699338 -0.008082495
        0.073009091 0.014675776 -0.046466921 -0.030265684 -0.028695840 -0.008066163
        0.000800837 0.000263661 -0.000452265 -0.000853215
    """
    expected = torch.tensor([float(number) for number in public.split()], dtype=torch.float64)
    ours = torch.cat((maps[0, :, 1, 2], maps[1, :, 0, 0], grad[0, :, 10, 12]))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


def test_size_and_cost() -> None:
    """2 (8 8 4 + 1 + 2) 32 + 2 (4 4 32 + 1 + 2) 64 + 2 (3 3 64 + 1 + 2) 64 parameters."""
    encoder = make_encoder("hadamax").eval()
    assert isinstance(encoder, HadamaxEncoder)
    assert count_parameters(encoder) == 2 * (259 * 32 + 515 * 64 + 579 * 64) == 156_608
    # MACs: 84^2 256 64 + 21^2 512 128 + 11^2 576 128
    macs = count_macs(lambda: encoder.embed(torch.zeros(1, 4, 84, 84)))
    assert macs == 7056 * 256 * 64 + 441 * 512 * 128 + 121 * 576 * 128 == 153_427_968
    assert encoder.feature_dim == 11 * 11 * 64


def test_each_half_starts_as_a_layer_of_its_own() -> None:
    """Xavier's normal of 32 outputs, not of the 64 of both: deviation sqrt(2 / (64 (4 + 32)))."""
    torch.manual_seed(0)
    encoder = make_encoder("hadamax")
    weight = encoder.blocks[0].conv.weight.detach()
    for half in weight.chunk(2):
        assert float(half.std()) == pytest.approx(math.sqrt(2 / (64 * 36)), rel=0.05)
