"""Pictures of what an encoder shows: what NFM reads from its memory, and which RIMs are active.

`AttentionView` draws one image per observation; videos, stills and TensorBoard show the same one.
The data itself comes from `Encoder.record`, as arrays.
"""

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.learning.network import QNetwork
from envs import as_picture, newest_frame
from rl_nfm.encoders import Extras, Recording
from rl_nfm.nfm.record import ReaderAttention

Image = NDArray[np.uint8]
"""[H, W, 3], RGB."""

PANEL, BARS, TITLE, MARGIN = 224, 48, 20, 8
HISTORY_STEPS = 200
"""Steps of RIM activity in one image."""

_NULL_COLOR = (128, 128, 128)
# Okabe and Ito's colours, which colour-blind readers can tell apart, and two more.
_COLORS = (
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


class AttentionView:
    """Draws what a network attends to in its last forward."""

    def __init__(self, recording: Recording):
        self.recording = recording
        self.activity: deque[NDArray[np.bool_]] = deque(maxlen=HISTORY_STEPS)

    def note_activity(self, *_: Any) -> None:
        """Forward hook: which RIMs of the first game are active at the last step."""
        if self.recording.activity is not None:
            self.activity.append(self.recording.activity[-1, 0].cpu().numpy())

    def draw(self, frame: NDArray[np.uint8]) -> Image:
        """One image over the newest frame, [H, W] or [c, H, W], of the first game."""
        rows = []
        if self.recording.readers:
            rows.append(_draw_readers(list(self.recording.readers.values()), frame))
        if self.activity:
            rows.append(_draw_activity(np.stack(self.activity)))
        width = max(row.shape[1] for row in rows)
        padded = [np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0))) for r in rows]
        return np.vstack(padded)


@contextlib.contextmanager
def attention_view(network: QNetwork) -> Iterator[AttentionView]:
    """A view of every forward while the block lasts.

    Raises:
        ValueError: if the encoder has nothing to show.
    """
    encoder = network.encoder
    if not encoder.shows:
        raise ValueError(
            f"attention: encoder {type(encoder).__name__} has none to show (allowed: nfm, "
            "rim, brims, or a recurrent encoder on the trunk nfm)"
        )
    with encoder.record() as recording:
        view = AttentionView(recording)
        hook = encoder.register_forward_hook(view.note_activity)
        try:
            yield view
        finally:
            hook.remove()


def summary(
    network: QNetwork, obs: Tensor, frame_channels: int = 1
) -> tuple[dict[str, Tensor], Image]:
    """For TensorBoard: attention weights by reader and source, and the image of one observation.

    Args:
        network: whose encoder shows attention.
        obs: uint8 [B, C, H, W].
        frame_channels: of one of the stacked frames.
    """
    nothing = torch.zeros(1, len(obs), dtype=torch.int64, device=obs.device)
    extras: Extras = dict.fromkeys(("last_action", "last_reward", "episode_step"), nothing)
    with torch.no_grad(), network.encoder.record() as recording:
        network.features(obs[None], (), None, extras)
    weights = {}
    for reader in recording.readers.values():
        shares = reader.by_source().flatten(0, -2)
        for index, source in enumerate(reader.sources):
            weights[f"{_reader_name(reader)}/{_source_name(source)}"] = shares[:, index]
    frame = newest_frame(obs[:1], frame_channels)[0].cpu().numpy()
    return weights, _draw_readers(list(recording.readers.values()), frame)


def _source_name(source: tuple[int, int] | None) -> str:
    return "null" if source is None else f"pass {source[0] + 1} layer {source[1] + 1}"


def _reader_name(reader: ReaderAttention) -> str:
    return f"pass {reader.pass_index + 1} layer {reader.place + 1}"


def _draw_readers(readers: list[ReaderAttention], frame: NDArray[np.uint8]) -> Image:
    """A column per reader: where it attends to, how often each slot is chosen; a legend below."""
    sources = sorted({s for reader in readers for s in reader.sources if s is not None})
    colors: dict[Any, tuple[int, int, int]] = {None: _NULL_COLOR}
    colors |= {source: _COLORS[i % len(_COLORS)] for i, source in enumerate(sources)}
    columns = [
        np.vstack(
            [
                _text_strip(f"read by {_reader_name(reader)}", PANEL),
                _draw_map(reader, frame, colors),
                _draw_bars(reader, colors),
            ]
        )
        for reader in readers
    ]
    gap = np.zeros((columns[0].shape[0], MARGIN, 3), np.uint8)
    row = np.hstack([part for column in columns for part in (column, gap)][:-1])
    return np.vstack([row, _legend(colors, row.shape[1])])


def _draw_map(reader: ReaderAttention, frame: NDArray[np.uint8], colors: dict[Any, Any]) -> Image:
    """The most attended source of each position, over the game; fainter where it has less."""
    shares = reader.by_source()[0].numpy()  # [h, w, sources]
    palette = np.array([colors[source] for source in reader.sources], np.float32)
    strength = shares.max(-1, keepdims=True)
    tint = _resize(palette[shares.argmax(-1)], cv2.INTER_NEAREST)
    alpha = _resize(np.repeat(strength, 3, -1), cv2.INTER_NEAREST) * 0.6
    gray = _resize(as_picture(frame).astype(np.float32), cv2.INTER_LINEAR)
    return (gray * (1 - alpha) + tint * alpha).clip(0, 255).astype(np.uint8)


def _resize(image: NDArray[np.float32], interpolation: int) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(image, (PANEL, PANEL), interpolation=interpolation), np.float32)


def _draw_bars(reader: ReaderAttention, colors: dict[Any, Any]) -> Image:
    """A bar per slot: how often it is among the top k, over heads and positions."""
    bars = np.full((BARS, PANEL, 3), 24, np.uint8)
    frequency = reader.top_k_frequency().numpy()
    edges = np.linspace(0, PANEL, len(frequency) + 1).astype(int)
    for index, (slot, share) in enumerate(zip(reader.slots, frequency, strict=True)):
        source = None
        if slot.pass_index is not None and slot.place is not None:
            source = (slot.pass_index, slot.place)
        height = round(float(share) * (BARS - 2))
        if height:
            end = max(edges[index] + 1, edges[index + 1] - (edges[1] > 3))
            bars[BARS - height :, edges[index] : end] = colors[source]
    return bars


def _legend(colors: dict[Any, Any], width: int) -> Image:
    entries = [*((s, c) for s, c in colors.items() if s is not None), (None, _NULL_COLOR)]
    per_row = max(1, width // 150)
    rows = -(-len(entries) // per_row)
    legend = np.zeros((TITLE * rows + MARGIN, width, 3), np.uint8)
    for index, (source, color) in enumerate(entries):
        x, y = index % per_row * 150 + 4, index // per_row * TITLE + 6
        legend[y : y + 12, x : x + 12] = color
        _write(legend, _source_name(source), x + 18, y + 11)
    return legend


def _draw_activity(active: NDArray[np.bool_]) -> Image:
    """Time to the right, a row per RIM, filled where it is updated; [steps, n]."""
    steps, rims = active.shape
    cell, height = 3, 22
    image = np.full((height * rims, HISTORY_STEPS * cell, 3), 24, np.uint8)
    for rim in range(rims):
        row = np.repeat(active[:, rim], cell)
        image[rim * height + 2 : (rim + 1) * height - 2, : steps * cell][:, row] = _COLORS[1]
    shares = "  ".join(f"{i + 1}: {100 * share:.0f} %" for i, share in enumerate(active.mean(0)))
    title = _text_strip(f"active RIMs over {steps} steps   {shares}", image.shape[1])
    return np.vstack([title, image])


def _text_strip(text: str, width: int) -> Image:
    strip = np.zeros((TITLE, width, 3), np.uint8)
    _write(strip, text, 2, 14)
    return strip


def _write(image: Image, text: str, x: int, y: int) -> None:
    white = (255, 255, 255)
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, white, 1, cv2.LINE_AA)
