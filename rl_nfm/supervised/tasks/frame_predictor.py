"""A model that predicts the next frame of a sequence, around any recurrent core.

Encoder and decoder are those of Relational Neural Expectation Maximization (van Steenkiste et al.
2018), which RIMs (Goyal et al. 2019, appendix D.4) took over: three convolutions of 4x4 with stride
2, a layer of 512, and back by nearest-neighbour enlargement and convolutions of 4x4; layer
normalisation everywhere but at the end, ELU on the way in and ReLU on the way out.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.backbones.norms import FusedSequential, GroupNorm

REDUCTION = 8
"""Three convolutions of stride 2."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameSizes:
    """Sizes of a `FramePredictor`."""

    frame: int
    """Side of a frame in pixels, a multiple of 8."""
    width: int
    """Channels of the first convolution; doubled at each further one."""
    features: int
    """Size of a frame's code and of the decoder's first layer."""
    hidden: int
    """Size of the core's output."""
    dropout: float = 0.0
    """Between core and decoder."""


def _halved(inputs: int, outputs: int) -> list[nn.Module]:
    """A convolution of stride 2; GroupNorm of one group is layer normalisation of an image."""
    convolution = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
    return [convolution, GroupNorm(1, outputs), nn.ELU()]


class EnlargingConvolution(nn.Conv2d):
    """Nearest-neighbour enlargement to twice the side and a 4x4 convolution, in one.

    Equal to `nn.Upsample(scale_factor=2)` and a convolution of the same weights on an image padded
    by one row above and left and by two below and right. Neighbouring pixels of the enlarged image
    are equal, so each of the 2x2 output pixels of a place needs at most 3x3 places: a convolution
    of the small image with sums of the weights, five times faster on a CPU.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 4)
        # for each of the two output pixels, the weights that meet the place before, it, the next
        meets = [[[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]], [[0] * 4, [1, 1, 0, 0], [0, 0, 1, 1]]]
        self.register_buffer("meets", torch.tensor(meets, dtype=torch.float32), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, 2 H, 2 W]."""
        assert self.bias is not None
        weight = torch.einsum("psk,qtl,oikl->opqist", self.meets, self.meets, self.weight)
        phases = F.conv2d(input, weight.flatten(0, 2), self.bias.repeat_interleave(4), padding=1)
        return F.pixel_shuffle(phases, 2)


class FramePredictor(nn.Module):
    """Encoder, recurrent core and decoder: logits of the next frame after every frame.

    Args:
        core: batch first, called like nn.LSTM, from `sizes.features` to `sizes.hidden`.
        sizes: of the rest.

    Raises:
        ValueError: a side of the frames that is no multiple of 8.
    """

    def __init__(self, core: nn.Module, sizes: FrameSizes):
        super().__init__()
        if sizes.frame % REDUCTION:
            raise ValueError(
                f"frame_size: {sizes.frame} is not allowed, must be a multiple of {REDUCTION}"
            )
        width, features, side = sizes.width, sizes.features, sizes.frame // REDUCTION
        flat = 4 * width * side * side
        self.encoder = nn.Sequential(
            *_halved(1, width),
            *_halved(width, 2 * width),
            *_halved(2 * width, 4 * width),
            nn.Flatten(),
            nn.Linear(flat, features),
            nn.LayerNorm(features),
            nn.ELU(),
        )
        self.core = core
        self.decoder = FusedSequential(
            nn.Dropout(sizes.dropout),
            nn.Linear(sizes.hidden, features),
            nn.LayerNorm(features),
            nn.ReLU(),
            nn.Linear(features, flat),
            nn.LayerNorm(flat),
            nn.ReLU(),
            nn.Unflatten(1, (4 * width, side, side)),
            EnlargingConvolution(4 * width, 2 * width),
            GroupNorm(1, 2 * width),
            nn.ReLU(),
            EnlargingConvolution(2 * width, width),
            GroupNorm(1, width),
            nn.ReLU(),
            EnlargingConvolution(width, 1),
        )

    def forward(self, frames: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Predict the frame after each frame.

        Args:
            frames: [B, T, S, S] of 0 .. 1.
            state: of the core, after the frames before; None: zeros.

        Returns:
            Logits [B, T, S, S] and the core's state.
        """
        batch, steps = frames.shape[:2]
        codes = self.encoder(frames.flatten(0, 1)[:, None]).unflatten(0, (batch, steps))
        hidden, state = self.core(codes, state)
        logits = self.decoder(hidden.flatten(0, 1)).float()
        return logits[:, 0].unflatten(0, (batch, steps)), state

    def rollout(self, seen: Tensor, steps: int) -> Tensor:
        """Predict from true frames, then `steps` more from the probabilities predicted last.

        Args:
            seen: the true frames [B, T, S, S].
            steps: how many predictions are made from predictions.

        Returns:
            Logits [B, T + steps, S, S] of the frames after the first.
        """
        logits, state = self(seen)
        parts = [logits]
        for _ in range(steps):
            logits, state = self(parts[-1][:, -1:].sigmoid(), state)
            parts.append(logits)
        return torch.cat(parts, dim=1)
