"""Pictures of what an NFM reads from its memory, and of which RIMs are active."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray

from agents.playing.drawing import (
    BACKGROUND,
    COLORS,
    GRAY,
    LINE,
    Color,
    Image,
    canvas,
    stack,
    strip,
    text_width,
    write,
)
from envs import as_picture
from rl_nfm.nfm.record import ReaderAttention, Source

PANEL, MARGIN, COLUMNS = 272, 8, 4
"""Width of a reader's panel, the gap beside it, and how many stand side by side."""
HISTORY_STEPS = 200
"""Steps of RIM activity in one image."""
_PLOT, _AXIS, _LABELS = 76, 34, 30
"""Height of the bars; widths and heights left for the labels of their axes."""
_TICK_STEPS = 50
_SMALL = 0.33

Colors = Mapping[Source, Color]


def source_name(source: Source) -> str:
    """A written layer in words."""
    return "null" if source is None else f"pass {source[0] + 1} layer {source[1] + 1}"


def reader_name(reader: ReaderAttention) -> str:
    """A reader in words."""
    return f"pass {reader.pass_index + 1} layer {reader.place + 1}"


def draw_readers(readers: Sequence[ReaderAttention], frame: UInt8[np.ndarray, "*c H W"]) -> Image:
    """A panel per reader: where it attends to, and how much to each layer; a legend below.

    Args:
        readers: of one forward; the first of their batch is drawn.
        frame: the newest frame of that observation, with or without a dimension for its channels.
    """
    sources = sorted({s for reader in readers for s in reader.sources if s is not None})
    colors: dict[Source, Color] = {s: COLORS[i % len(COLORS)] for i, s in enumerate(sources)}
    colors[None] = GRAY
    panels = [
        stack(
            [
                strip(f"read by {reader_name(reader)}", PANEL),
                _draw_map(reader, frame, colors),
                _draw_bars(reader, colors),
            ]
        )
        for reader in readers
    ]
    gap = canvas(panels[0].shape[0], MARGIN)
    rows = []
    for first in range(0, len(panels), COLUMNS):
        parts = [part for panel in panels[first : first + COLUMNS] for part in (panel, gap)]
        rows.append(np.hstack(parts[:-1]))
    picture = stack(rows)
    return stack([picture, _legend(colors, picture.shape[1])])


def _draw_map(reader: ReaderAttention, frame: NDArray[np.uint8], colors: Colors) -> Image:
    """The most attended layer of each position over the game, which is drawn light.

    The less a position's attention exceeds an even one, the fainter its colour.
    """
    shares = reader.by_source()[0].numpy()  # [h, w, sources]
    palette = np.array([colors[source] for source in reader.sources], np.float32)
    even = 1 / len(reader.sources)
    strength = (shares.max(-1, keepdims=True) - even) / max(1 - even, 1e-6)
    tint = _resize(palette[shares.argmax(-1)], cv2.INTER_NEAREST)
    alpha = _resize(np.repeat(0.15 + 0.5 * strength, 3, -1), cv2.INTER_NEAREST)
    game = _resize(as_picture(frame).astype(np.float32), cv2.INTER_LINEAR)
    light = 90 + game * (165 / 255)
    return (light * (1 - alpha) + tint * alpha).clip(0, 255).astype(np.uint8)


def _resize(image: NDArray[np.float32], interpolation: int) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(image, (PANEL, PANEL), interpolation=interpolation), np.float32)


def _draw_bars(reader: ReaderAttention, colors: Colors) -> Image:
    """A bar per layer: its share of the attention of all positions and heads.

    A white line marks what it would get if every slot were attended to alike.
    """
    shares = reader.by_source()[0].flatten(0, -2).mean(0).tolist()
    image = canvas(_PLOT + _LABELS, PANEL)
    image[:_PLOT, _AXIS:] = BACKGROUND
    even = reader.even_by_source()
    top = next(t for t in (0.25, 0.5, 1.0) if t >= min(1.0, max(*shares, *even.tolist())))
    for tick in (0.0, top / 2, top):
        y = round((1 - tick / top) * (_PLOT - 1))
        image[y, _AXIS - 4 :] = GRAY if tick == 0 else (60, 60, 60)
        write(image, f"{100 * tick:.3g}%", 0, min(max(y + 4, 9), _PLOT), scale=_SMALL)
    edges = np.linspace(_AXIS + 3, PANEL, len(shares) + 1).astype(int).tolist()
    for index, (source, share) in enumerate(zip(reader.sources, shares, strict=True)):
        begin, end = edges[index], edges[index + 1] - 3
        image[_PLOT - 1 - round(share / top * (_PLOT - 1)) : _PLOT - 1, begin:end] = colors[source]
        y = _PLOT - 1 - round(float(even[index]) / top * (_PLOT - 1))
        image[y : y + 1, begin - 2 : end + 2] = 255
        label = "null" if source is None else f"{source[0] + 1}.{source[1] + 1}"
        if text_width(label, _SMALL) <= edges[1] - edges[0]:
            x = (begin + end - text_width(label, _SMALL)) // 2
            write(image, label, x, _PLOT + 12, scale=_SMALL)
    return image


def _legend(colors: Colors, width: int) -> Image:
    """The colours of layers, and what the panels show."""
    per_row = max(1, width // 150)
    legend = canvas(LINE * -(-len(colors) // per_row) + MARGIN, width)
    for index, (source, color) in enumerate(colors.items()):
        x, y = index % per_row * 150 + 4, index // per_row * LINE + 6
        legend[y : y + 12, x : x + 12] = color
        write(legend, source_name(source), x + 18, y + 11)
    text = (
        "maps: the layer most attended to; bars: share of attention by layer (pass.layer), "
        "white line: if all slots were alike"
    )
    return stack([strip(text, width), legend])


def draw_activity(active: Bool[np.ndarray, "T n"]) -> Image:
    """A row for each of n RIMs, with time to the right, filled at the steps where it is updated.

    Args:
        active: whether each RIM is updated at each of T steps, the newest step last.
    """
    steps, rims = active.shape
    cell, height, left = 5, 20, 112
    width = left + HISTORY_STEPS * cell
    image = canvas(height * rims, width)
    for rim in range(rims):
        y = rim * height
        write(image, f"RIM {rim + 1}: {100 * active[:, rim].mean():.0f} %", 4, y + 14)
        image[y + 2 : y + height - 2, left:] = BACKGROUND
        row = np.repeat(active[:, rim], cell)
        image[y + 2 : y + height - 2, left : left + steps * cell][:, row] = COLORS[1]
    axis = canvas(LINE, width)
    now = left + steps * cell
    ticks = [t for t in range(0, steps, _TICK_STEPS) if t == 0 or steps - t > _TICK_STEPS / 5]
    for ago in (*ticks, steps):
        x = now - ago * cell
        axis[:4, max(left, x - 1) : x + 1] = GRAY
        label = "now" if ago == 0 else f"-{ago}"
        write(axis, label, min(x - text_width(label) // 2, width - 30), 16, scale=_SMALL)
    title = f"RIMs updated at each of the last {steps} agent steps, and how often"
    return stack([strip(title, width), image, axis])
