"""The first convolution of a network that reads images.

An image has 1 to 4 channels, and cuDNN's half-precision kernels want multiples of 8: on an H200
three 3x3 convolutions of 4 channels took 4.3 of the 13.5 ms of an update, and the stems of one
channel 4.4 of 48. On a GPU in half precision the same convolution therefore runs over blocks of
pixels: one of stride s over images is one of stride 1 over blocks of s x s pixels, whose pixels are
its channels, padded with zeros to a multiple of 8.

Shapes: N images, C channels, H x W pixels, O output channels, k x k kernel.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_HALF = (torch.bfloat16, torch.float16)
_MULTIPLE = 8
"""Channels of half precision that fill the 16 bytes in which tensor cores are fed."""


class PixelConv(nn.Conv2d):
    """`nn.Conv2d` with a square kernel, for images."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] to [N, O, H', W']."""
        if not (input.is_cuda and input.dtype in _HALF and self.in_channels % _MULTIPLE):
            return super().forward(input)
        (stride, *_), (padding, *_) = self.stride, self.padding
        assert isinstance(padding, int)
        blocks, weight = as_blocks(input, self.weight, stride=stride, padding=padding)
        return F.conv2d(blocks, weight, self.bias)


def as_blocks(x: Tensor, weight: Tensor, *, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    """Input and weight of the equal convolution over blocks of pixels, both channels_last.

    Args:
        x: [N, C, H, W].
        weight: [O, C, k, k].
        stride: s, of the convolution over pixels.
        padding: of the same.

    Returns:
        [N, D, h, w] and [O, D, ceil(k / s), ceil(k / s)]; D is s * s * C or the next multiple of 8.
    """
    cells = -(-weight.shape[-1] // stride)
    x = x.permute(0, 2, 3, 1)
    missing: list[int] = []
    for size in (x.shape[2], x.shape[1]):
        outputs = (size + 2 * padding - weight.shape[-1]) // stride + 1
        missing += [padding, (outputs - 1 + cells) * stride - size - padding]
    if any(missing):
        x = F.pad(x, (0, 0, *missing))
    more = cells * stride - weight.shape[-1]
    return _gather(x, stride), _gather(
        F.pad(weight, (0, more, 0, more)).permute(0, 2, 3, 1), stride
    )


def _gather(x: Tensor, side: int) -> Tensor:
    """Blocks of [N, H, W, C] as [N, channels of a block, H / side, W / side], channels_last."""
    n, height, width, channels = x.shape
    blocks = x.reshape(n, height // side, side, width // side, side, channels)
    blocks = blocks.transpose(2, 3).flatten(3).contiguous()
    missing = -blocks.shape[-1] % _MULTIPLE
    return (F.pad(blocks, (0, missing)) if missing else blocks).permute(0, 3, 1, 2)
