"""What the pictures of play are put together from: text, strips and bars in plain arrays."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

Image = UInt8[np.ndarray, "_ _ 3"]
"""Height, width and RGB."""
Color = tuple[int, int, int]

WHITE: Color = (255, 255, 255)
GRAY: Color = (128, 128, 128)
BACKGROUND: Color = (24, 24, 24)
# Okabe and Ito's colours, which colour-blind readers can tell apart, and two more.
COLORS: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (255, 255, 255),
    (150, 75, 255),
)
LINE = 20
"""Height of a line of text."""
_LOWEST_LINE = 12
"""Where lines are many."""
_FONT, _SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.4


def canvas(height: int, width: int, color: Color = (0, 0, 0)) -> Image:
    """An empty image."""
    return np.full((height, width, 3), color, np.uint8)


def write(
    image: Image, text: str, x: int, y: int, *, color: Color = WHITE, scale: float = _SCALE
) -> None:
    """Put text whose left end of the baseline is at (x, y)."""
    cv2.putText(image, text, (x, y), _FONT, scale, color, 1, cv2.LINE_AA)


def text_width(text: str, scale: float = _SCALE) -> int:
    """Pixels that `write` takes."""
    return cv2.getTextSize(text, _FONT, scale, 1)[0][0]


def strip(text: str, width: int) -> Image:
    """One line of text."""
    image = canvas(LINE, width)
    write(image, text, 2, 14)
    return image


def stack(rows: Sequence[Image]) -> Image:
    """Images below each other, filled up with black to the widest."""
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0))) for r in rows])


def value_bars(
    size: tuple[int, int], names: Sequence[str], values: Float[np.ndarray, " A"], chosen: int
) -> Image:
    """A bar to the right for each value, from the lowest (none) to the highest (whole).

    Of more actions than have room, the chosen one and those of the highest values are shown; names
    take a third of the width at most.

    Args:
        size: (height, width).
        names: of the A actions.
        values: one for each name.
        chosen: index of the action that is marked.
    """
    image = canvas(*size)
    most = max(1, size[0] // _LOWEST_LINE)
    best = sorted(range(len(names)), key=lambda index: (index != chosen, -values[index]))
    shown = sorted(best[:most])
    room = min(LINE, size[0] // len(shown))
    short = [_shortened(names[index], size[1] // 3) for index in shown]
    left = max(map(text_width, short)) + 10
    low, high = float(values.min()), float(values.max())
    right = size[1] - 70
    scale, baseline = (_SCALE, room - 5) if room == LINE else (0.8 * _SCALE, room - 3)
    for line, (index, name) in enumerate(zip(shown, short, strict=True)):
        y, value = line * room, float(values[index])
        color = COLORS[0] if index == chosen else (170, 170, 170)
        share = (value - low) / (high - low) if high > low else 0.0
        end = left + 2 + round(share * (right - left - 2))
        image[y + 2 : y + room - 2, left:end] = color
        write(image, name, 4, baseline + y, color=color, scale=scale)
        write(image, f"{value:.4g}", right + 6, baseline + y, color=color, scale=scale)
    return image


def _shortened(text: str, width: int) -> str:
    """The text, or so much of its beginning as fits."""
    if text_width(text) <= width:
        return text
    fitting = (text[:end] + ".." for end in range(len(text) - 1, 0, -1))
    return next((part for part in fitting if text_width(part) <= width), "")
