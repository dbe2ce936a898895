"""Predict the frame from which the return bootstraps, n steps ahead, from features and action.

An auxiliary task in the manner of action-conditional frame prediction (Oh et al. 2015), with one
linear decoder and a small picture. Chosen here: a picture of at most 12x12 means of pixels scaled
to [0, 1], the mean squared error over them, and the action of the first of the n steps alone.
Positions whose return ends before the bootstrap have no such frame and do not count.

Shapes: T positions, B batch, D features, A actions, c channels of a frame, P = c h w numbers of the
small picture.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from agents.learning.auxiliary.base import AuxiliaryLoss, Latents, register_auxiliary
from agents.replay.batch import Batch
from rl_nfm.encoders import Encoder

MAX_SIDE = 12
"""Pixels of a side of the predicted picture."""


@register_auxiliary("future_frame")
class FutureFrameLoss(AuxiliaryLoss):
    """Mean squared error of a small picture of the newest stacked frame, n steps ahead."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        obs_shape: tuple[int, int, int],
        num_actions: int,
        frame_channels: int = 1,
    ):
        super().__init__(encoder, obs_shape=obs_shape, num_actions=num_actions)
        self.num_actions, self.frame_channels = num_actions, frame_channels
        _, height, width = obs_shape
        self.size = (min(MAX_SIDE, height), min(MAX_SIDE, width))
        pixels = frame_channels * self.size[0] * self.size[1]
        self.decoder = nn.Linear(encoder.feature_dim + num_actions, pixels)

    def forward(self, batch: Batch, latents: Latents, target: Encoder) -> Float[Tensor, "T B"]:
        """See `AuxiliaryLoss.forward`."""
        actions = torch.arange(self.num_actions, device=batch.a_tm1.device)
        action = (batch.a_tm1.unsqueeze(-1) == actions).to(latents.features)  # [T, B, A]
        predicted = self.decoder(torch.cat([latents.features, action], -1))  # [T, B, P]
        error = (predicted.float() - self.picture(batch)).square().mean(-1)
        return error * (batch.discount_t > 0)

    def picture(self, batch: Batch) -> Float[Tensor, "T B P"]:
        """The small pictures to be predicted, in [0, 1]."""
        newest = batch.obs[:, :, -self.frame_channels :]  # [S, B, c, H, W]
        index = batch.bootstrap[..., None, None, None].expand(-1, -1, *newest.shape[2:])
        ahead = newest.gather(0, index).float() / 255.0
        small = F.adaptive_avg_pool2d(ahead.flatten(0, 1), self.size)
        return small.unflatten(0, ahead.shape[:2]).flatten(2)
