"""Observations of stacked frames, put together from single ones.

Shapes: M frames held, `*L` leading dimensions of what is asked for, k frames in a stack, P bytes
of a frame.
"""

from jaxtyping import Bool, Int64, UInt8
from torch import Tensor


def frames_kept(episode_start: Bool[Tensor, " M"], index: Int64[Tensor, "*L k"]) -> Tensor:
    """Which frames but the last belong to the stack, [*L, k - 1]; `index`: theirs, oldest first.

    A frame does unless an episode began after it.
    """
    start = episode_start[index][..., 1:]
    return ~(start.flip(-1).cumsum(-1).flip(-1) > 0)


def pick_frames(
    frames: UInt8[Tensor, "M P"], index: Int64[Tensor, "*L k"], kept: Bool[Tensor, "*L k-1"]
) -> UInt8[Tensor, "*L k P"]:
    """The stacks, with zeros for frames that are not kept."""
    picked = frames.index_select(0, index.reshape(-1)).view(*index.shape, frames.shape[1])
    picked[..., :-1, :].mul_(kept[..., None])
    return picked
