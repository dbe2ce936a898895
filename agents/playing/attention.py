"""Pictures of what an encoder shows: what NFM reads from its memory, and which RIMs are active.

`AttentionView` draws one image per observation; videos, stills and TensorBoard show the same one.
The data itself comes from `Encoder.record`, as arrays.

Shapes: T steps, B batch, n modules; C, H, W of stacked frames, c of C in one of them.
"""

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from agents.learning.network import QNetwork
from agents.playing.attention_pictures import (
    HISTORY_STEPS,
    draw_activity,
    draw_readers,
    reader_name,
    source_name,
)
from agents.playing.attention_use import AttentionUse
from agents.playing.drawing import Image, stack
from envs import newest_frame
from rl_nfm.encoders import Extras, Recording


class AttentionView:
    """Draws what a network attends to in its last forward."""

    def __init__(self, recording: Recording):
        self.recording = recording
        self.activity: deque[NDArray[np.bool_]] = deque(maxlen=HISTORY_STEPS)
        self.use = AttentionUse()

    def note(self, *_: Any) -> None:
        """Forward hook: how attention is used, and which RIMs of the first game are active."""
        self.use.add(self.recording.readers.values())
        if self.recording.activity is not None:
            self.activity.append(self.recording.activity[-1, 0].cpu().numpy())

    def draw(self, frame: UInt8[np.ndarray, "*c H W"]) -> Image:
        """One image, with the maps drawn over the newest frame of the first game."""
        rows = []
        if self.recording.readers:
            rows.append(draw_readers(list(self.recording.readers.values()), frame))
        if self.activity:
            rows.append(draw_activity(np.stack(self.activity)))
        return stack(rows)


@contextlib.contextmanager
def attention_view(network: QNetwork) -> Iterator[AttentionView]:
    """A view of every forward while the block lasts.

    Raises:
        ValueError: if the encoder has nothing to show.
    """
    encoder = network.encoder
    if not encoder.shows:
        raise ValueError(
            f"attention: this encoder ({type(encoder).__name__}) has none to show (allowed: nfm, "
            "rim, brims, or a recurrent encoder on the trunk nfm)"
        )
    with encoder.record() as recording:
        view = AttentionView(recording)
        hook = encoder.register_forward_hook(view.note)
        try:
            yield view
        finally:
            hook.remove()


def summary(
    network: QNetwork, obs: UInt8[Tensor, "B C H W"], frame_channels: int = 1
) -> tuple[dict[str, Float[Tensor, " _"]], Image]:
    """For TensorBoard: attention weights by reader and source, and the image of one observation.

    Args:
        network: whose encoder shows attention.
        obs: observations; the image shows the first of them.
        frame_channels: c.
    """
    nothing = torch.zeros(1, len(obs), dtype=torch.int64, device=obs.device)
    extras: Extras = dict.fromkeys(("last_action", "last_reward", "episode_step"), nothing)
    with torch.no_grad(), network.encoder.record() as recording:
        network.features(obs[None], (), None, extras)
    weights = {}
    for reader in recording.readers.values():
        shares = reader.by_source().flatten(0, -2)
        for index, source in enumerate(reader.sources):
            weights[f"{reader_name(reader)}/{source_name(source)}"] = shares[:, index]
    frame = newest_frame(obs[:1], frame_channels)[0].cpu().numpy()
    return weights, draw_readers(list(recording.readers.values()), frame)


def activity(
    network: QNetwork,
    obs: UInt8[Tensor, "T B C H W"],
    reset: Bool[Tensor, "T B"],
    extras: Extras,
) -> Bool[Tensor, "T B n"]:
    """Which modules are active at each step of a sequence that begins with a state of zeros.

    Args:
        network: whose encoder shows activity.
        obs: the observations.
        reset: whether the state is set to zero before each of them.
        extras: see `rl_nfm.encoders.Extras`.
    """
    with torch.no_grad(), network.encoder.record() as recording:
        network.features(obs, network.initial_state(obs.shape[1]), reset, extras)
    assert recording.activity is not None
    return recording.activity
