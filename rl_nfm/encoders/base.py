"""The encoder contract: what agent, SB3 adapter and command line rely on.

Nobody outside this package asks of what type an encoder is. `rl_nfm.encoders.registry` maps names
to encoders.

Shapes: T time steps, B batch, N images (T * B), C stacked frames, H x W pixels, D features,
c channels of h x w feature maps, n modules of a recurrent encoder.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor, nn

from rl_nfm.nfm import NeuralFunctionModule
from rl_nfm.nfm.record import ReaderAttention, record_attention
from rl_nfm.support.modules import in_eval_mode

State = tuple[Float[Tensor, "_ ..."], ...]
"""Recurrent state: tensors of shape [B, ...]; empty for a feed-forward encoder."""

Extras = Mapping[str, Shaped[Tensor, "_ _"]]
"""`last_action` int64, `last_reward` float and `episode_step` int64, all [T, B]."""


Shown = Literal["attention", "activity"]
"""attention: which layers Neural Function Modules read from; activity: which modules of a recurrent
encoder are updated at each step."""


class Recording:
    """What an encoder has shown of its last forward."""

    def __init__(self) -> None:
        self.readers: dict[tuple[int, int], ReaderAttention] = {}
        """Attention by pass and place of the reader, in the order of reading."""
        self.activity: Bool[Tensor, "T B n"] | None = None
        """Which modules were updated; None for an encoder without activity."""


class Encoder(nn.Module):
    """Turns a sequence of stacked frames into a sequence of features.

    Subclasses set `feature_dim` and implement `forward`; a recurrent one also overrides
    `initial_state`. Feed-forward encoders derive from `FeedForwardEncoder` instead.
    """

    feature_dim: int
    has_activity: bool = False
    """Whether `forward` sets `recording.activity` while there is a recording."""

    def __init__(self) -> None:
        super().__init__()
        self.recording: Recording | None = None
        """Set inside `record`."""

    @property
    def shows(self) -> frozenset[Shown]:
        """What `record` can keep: attention wherever a Neural Function Module is inside."""
        reads = any(isinstance(module, NeuralFunctionModule) for module in self.modules())
        kinds: dict[Shown, bool] = {"attention": reads, "activity": self.has_activity}
        return frozenset(kind for kind, has in kinds.items() if has)

    @contextlib.contextmanager
    def record(self) -> Iterator[Recording]:
        """While the block lasts, each forward leaves what it attended to in the recording."""
        with contextlib.ExitStack() as stack:
            self.recording = Recording()
            stack.callback(setattr, self, "recording", None)
            if "attention" in self.shows:
                self.recording.readers = stack.enter_context(record_attention(self)).readers
            yield self.recording

    @property
    def recurrent(self) -> bool:
        """Whether the encoder carries a state from step to step."""
        return len(self.initial_state(1)) > 0

    def initial_state(self, batch_size: int) -> State:
        """State before the first step, zeros, each tensor [B, ...]."""
        del batch_size
        return ()

    def forward(
        self,
        obs: UInt8[Tensor, "T B C H W"],
        state: State = (),
        reset: Bool[Tensor, "T B"] | None = None,
        extras: Extras | None = None,
    ) -> tuple[Float[Tensor, "T B D"], State]:
        """Encode a sequence.

        Args:
            obs: uint8 [T, B, C, H, W].
            state: as `initial_state` gives it; `()` means zeros.
            reset: bool [T, B]; the state is zeroed before step t where true. None: nowhere.
            extras: see `Extras`; an encoder may ignore it.

        Returns:
            features [T, B, D] and the state after the last step.
        """
        raise NotImplementedError

    def forward_with_maps(
        self,
        obs: UInt8[Tensor, "T B C H W"],
        state: State = (),
        reset: Bool[Tensor, "T B"] | None = None,
        extras: Extras | None = None,
    ) -> tuple[Float[Tensor, "T B D"], State, Float[Tensor, "T B c h w"]]:
        """As `forward`, and the feature maps from before pooling.

        Returns:
            features [T, B, D], the state after the last step, and maps [T, B, c, h, w].

        Raises:
            ValueError: the encoder has no feature maps.
        """
        raise ValueError(f"{type(self).__name__} has no feature maps")


class FeedForwardEncoder(Encoder):
    """An encoder without state, which folds T into B.

    Implements `feature_maps`, and `pool` where its features are more than the flattened maps; or,
    where it has no maps, `embed` alone.
    """

    def feature_maps(self, pixels: Float[Tensor, "N C H W"]) -> Float[Tensor, "N c h w"]:
        """The maps of pixels in [0, 1], before they are pooled."""
        raise ValueError(f"{type(self).__name__} has no feature maps")

    def pool(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N D"]:
        """The features of maps; unless overridden, the maps flattened."""
        return maps.flatten(1)

    def embed(self, pixels: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        """The features of pixels in [0, 1]."""
        return self.pool(self.feature_maps(pixels))

    def forward(
        self,
        obs: UInt8[Tensor, "T B C H W"],
        state: State = (),
        reset: Bool[Tensor, "T B"] | None = None,
        extras: Extras | None = None,
    ) -> tuple[Float[Tensor, "T B D"], State]:
        """See `Encoder.forward`."""
        del reset, extras
        check_observations(obs)
        features = self.embed(self._scaled(obs))
        return self._unfolded(features, obs), state

    def forward_with_maps(
        self,
        obs: UInt8[Tensor, "T B C H W"],
        state: State = (),
        reset: Bool[Tensor, "T B"] | None = None,
        extras: Extras | None = None,
    ) -> tuple[Float[Tensor, "T B D"], State, Float[Tensor, "T B c h w"]]:
        """See `Encoder.forward_with_maps`."""
        del reset, extras
        check_observations(obs)
        maps = self.feature_maps(self._scaled(obs))
        return self._unfolded(self.pool(maps), obs), state, maps.unflatten(0, obs.shape[:2])

    def _scaled(self, obs: UInt8[Tensor, "T B C H W"]) -> Float[Tensor, "N C H W"]:
        """Pixels in [0, 1], in the parameters' type outside autocast."""
        dtype = next((p.dtype for p in self.parameters()), torch.float32)
        return scale_pixels(obs.flatten(0, 1), dtype)

    def _unfolded(self, features: Float[Tensor, "N D"], obs: Tensor) -> Float[Tensor, "T B D"]:
        """Features of each step of each sequence.

        Raises:
            ValueError: not as many features as the encoder said, for images of another size.
        """
        if features.shape[1] != self.feature_dim:
            raise ValueError(
                f"observations: images of {tuple(obs.shape[2:])} give {features.shape[1]} "
                f"features, but this encoder was built for a size that gives {self.feature_dim}"
            )
        return features.unflatten(0, obs.shape[:2])


def output_shape(network: nn.Module, obs_shape: tuple[int, int, int]) -> torch.Size:
    """What a network makes of one observation (C, H, W), without the batch.

    It runs in eval mode, so that no statistic of it changes.
    """
    with torch.no_grad(), in_eval_mode(network):
        return network(torch.zeros(1, *obs_shape)).shape[1:]


def check_observations(obs: Tensor) -> None:
    """Check that observations are a sequence of batches of stacked frames.

    Raises:
        ValueError: if `obs` is not [T, B, C, H, W], or not of whole numbers.
    """
    if obs.is_floating_point():  # pixels that were scaled before would be scaled again
        raise ValueError(
            f"observations: {obs.dtype} is not allowed: must be uint8, from 0 to 255 (an encoder "
            "scales them itself)"
        )
    if obs.dim() != 5:
        raise ValueError(
            f"observations: shape {tuple(obs.shape)} is not allowed: must be [T, B, C, H, W], time "
            "steps and batch first (one observation of four frames: 1, 1, 4, 84, 84)"
        )


def scale_pixels(
    frames: UInt8[Tensor, "N C H W"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "N C H W"]:
    """Frames as numbers in [0, 1] of a type, channels_last; under autocast of its type."""
    device = frames.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    # One kernel, which rounds once. A compiler makes one by itself, and breaks its graph at `out`.
    if frames.is_cuda and not torch.compiler.is_compiling():
        pixels = torch.empty_like(frames, dtype=dtype, memory_format=torch.channels_last)
        return torch.mul(frames, 1.0 / 255.0, out=pixels)
    # Cast, then change the layout: half the time of both at once on a CPU.
    pixels = frames.to(dtype).contiguous(memory_format=torch.channels_last)
    return pixels.mul_(1.0 / 255.0)
