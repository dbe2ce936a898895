"""What is kept of every row, in which type, and what that takes.

Shapes: R rows, E environments, c, H, W of one frame.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from agents.replay.config import ReplayConfig
from agents.replay.priorities import WEIGHT
from rl_nfm.encoders import State

FRAME = "frame"
"""The one store of more than scalars: [H, W], or [c, H, W] where a frame has several channels."""

ROW: Mapping[str, torch.dtype] = {
    FRAME: torch.uint8,  # the newest frame of the observation acted on
    "action": torch.uint8,
    "reward": torch.float32,  # raw, of the step that followed
    "discount": torch.bool,  # false where that step ended the game
    "episode_start": torch.bool,  # the frame is the first of an episode
    "life_loss": torch.bool,  # that step lost a life
    "episode_step": torch.int32,  # steps since the episode began, at this frame
}
"""Everything kept per row and written once, with its type."""

STATE = torch.float32
"""The type of recurrent states."""


def frame_shape(obs_shape: Sequence[int], frame_channels: int) -> tuple[int, ...]:
    """Of one stored frame: (H, W), or (c, H, W) where it has several channels."""
    shape = tuple(obs_shape[-2:])
    return shape if frame_channels == 1 else (frame_channels, *shape)


def make_stores(
    rows: int,
    num_envs: int,
    obs_shape: Sequence[int],
    device: torch.device,
    frame_channels: int = 1,
) -> dict[str, Shaped[Tensor, "R E ..."]]:
    """Zeros for each name of `ROW`."""
    frame = frame_shape(obs_shape, frame_channels)

    def store(name: str, dtype: torch.dtype) -> Tensor:
        shape = (rows, num_envs, *(frame if name == FRAME else ()))
        return _zeros(shape, dtype, device)

    return {name: store(name, dtype) for name, dtype in ROW.items()}


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; those of a CPU take memory (and the time to clear it) only where they are written."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(raw).view(dtype).view(*shape)


def make_states(config: ReplayConfig, state: State, num_envs: int, device: torch.device) -> State:
    """Zeros for the recurrent state of each sequence; the example where none are stored.

    Args:
        config: see `ReplayConfig`.
        state: an example of the encoder's recurrent state, each [1, ...].
        num_envs: E.
        device: where they live.
    """
    if config.initial_state != "stored":
        return state
    sequences = config.rows(num_envs) // config.stride_steps
    return tuple(_zeros((sequences, num_envs, *s.shape[1:]), STATE, device) for s in state)


def replay_bytes(
    config: ReplayConfig,
    *,
    num_envs: int,
    obs_shape: Sequence[int],
    state: State,
    frame_channels: int = 1,
) -> tuple[int, int]:
    """Bytes that the buffer will take: (in all, of which recurrent states)."""
    pixels = math.prod(frame_shape(obs_shape, frame_channels))
    sizes = {name: dtype.itemsize for name, dtype in ROW.items()}
    per_step = sum(sizes.values()) + (pixels - 1) * sizes[FRAME] + WEIGHT.itemsize
    steps = config.rows(num_envs) * num_envs
    kept = state if config.initial_state == "stored" else ()
    per_state = sum(s[0].numel() * STATE.itemsize for s in kept)
    states = steps // config.stride_steps * per_state
    return steps * per_step + states, states
