"""A video that compares predicted grey frames with the true ones."""

from pathlib import Path

import numpy as np
from torch import Tensor

from rl_nfm.support.output_files import written
from rl_nfm.support.video import video_writer

FPS = 8
_LEAST_SIDE = 128
_GAP = 16
_SEEN, _OWN = (90, 90, 90), (213, 94, 0)


def write_comparison(path: Path, truth: Tensor, predicted: Tensor, seen: int) -> None:
    """Write an MP4: a column for each sequence, the true frame above the predicted one.

    The lines around the frames are grey while predictions are made from true frames, and orange
    once they are made from predictions.

    Args:
        path: ends in .mp4; whole or not there at all.
        truth: [N, T, H, W] of 0 .. 1.
        predicted: of the same frames, the same shape.
        seen: how many of the predictions are made from true frames.

    Raises:
        OSError: it cannot be written.
    """
    count, steps, height, width = truth.shape
    scale = max(1, -(-_LEAST_SIDE // min(height, width)))
    high, wide = height * scale, width * scale
    size = (2 * high + 3 * _GAP, count * (wide + _GAP) + _GAP)
    size = (size[0] + size[0] % 2, size[1] + size[1] % 2)  # the codec's colours need even sides
    pictures = np.stack([(part.float().cpu().numpy() * 255).round() for part in (truth, predicted)])
    large = pictures.astype(np.uint8).repeat(scale, -2).repeat(scale, -1)
    with written(path) as partial, video_writer(partial, size, FPS) as append:
        for step in range(steps):
            canvas = np.empty((*size, 3), np.uint8)
            canvas[:] = _SEEN if step < seen else _OWN
            for row, column in np.ndindex(2, count):
                top, left = _GAP + row * (high + _GAP), _GAP + column * (wide + _GAP)
                picture = large[row, column, step]
                canvas[top : top + high, left : left + wide] = picture[..., None]
            append(canvas)
