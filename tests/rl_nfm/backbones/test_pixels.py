"""The first convolution over blocks of pixels equals the one over pixels."""

import pytest
import torch
from torch.nn import functional as F

from rl_nfm.backbones.pixels import PixelConv, as_blocks
from rl_nfm.encoders import make_encoder, scale_pixels


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "size"),
    [
        (1, 7, 2, 3, (84, 84)),  # ImageNet's stem
        (4, 8, 4, 0, (84, 84)),  # Nature's
        (4, 3, 1, 1, (21, 30)),  # IMPALA's
        (3, 3, 2, 1, (9, 14)),
        (5, 8, 4, 0, (38, 41)),  # rows and columns that no window reaches
        (2, 2, 3, 0, (11, 10)),  # and some between the windows
        (8, 1, 1, 0, (4, 3)),
    ],
)
def test_equal_convolutions(channels, kernel, stride, padding, size):
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    weight = torch.randn(6, channels, kernel, kernel, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(x, weight, stride=stride, padding=padding)
    blocks, gathered = as_blocks(x, weight, stride=stride, padding=padding)
    for tensor in (blocks, gathered):
        assert tensor.shape[1] % 8 == 0
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    y = F.conv2d(blocks, gathered)
    assert torch.allclose(y, expected, atol=1e-12)
    grad = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(out, weight, grad)[0] for out in (y, expected))
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_on_the_cpu_it_is_pytorchs():
    conv, x = PixelConv(4, 5, 3, stride=2, padding=1), torch.randn(2, 4, 9, 9)
    assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("encoder", ["nature", "impala", "resnet", "hadamax"])
def test_encoders_in_half_precision_on_a_device(encoder):
    torch.manual_seed(0)
    net = make_encoder(encoder, obs_shape=(4, 84, 84)).eval().cuda()
    net = net.to(memory_format=torch.channels_last)
    obs = torch.randint(0, 256, (1, 3, 4, 84, 84), dtype=torch.uint8, device="cuda")
    with torch.no_grad():
        expected = net(obs)[0]
        with torch.autocast("cuda", torch.bfloat16):
            features = net(obs)[0].float()
            first = next(m for m in net.modules() if isinstance(m, PixelConv))
            pixels = scale_pixels(obs[0])
            blocks = first(pixels)
        exact = F.conv2d(
            pixels.double(), first.weight.double(), first.bias.double() if first.bias is not None
            else None, stride=first.stride, padding=first.padding,
        )  # fmt: skip
    assert blocks.dtype == torch.bfloat16
    assert (blocks - exact).norm() < 0.01 * exact.norm()
    assert (features - expected).norm() < 0.05 * expected.norm()
