"""Many small images as one picture."""

import torch
from torch import Tensor


def tile(images: Tensor, columns: int, *, border: int = 2) -> Tensor:
    """Images side by side, row by row, on grey.

    Args:
        images: uint8 [N, C, H, W].
        columns: images in a row; missing ones of the last row stay grey.
        border: pixels between images, and around them all.

    Returns:
        uint8 [rows (H + border) + border, columns (W + border) + border, C].
    """
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    cells = torch.full(
        (rows * columns, channels, height + border, width + border), 128, dtype=torch.uint8
    )
    cells[:count, :, border:, border:] = images.cpu()
    inner = cells.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    picture = torch.full(
        (inner.shape[0] + border, inner.shape[1] + border, channels), 128, dtype=torch.uint8
    )
    picture[: inner.shape[0], : inner.shape[1]] = inner
    return picture
