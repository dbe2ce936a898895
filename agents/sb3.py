"""Our encoders inside Stable-Baselines3: `features_extractor_class=EncoderExtractor`.

    DQN("CnnPolicy", env, policy_kwargs=dict(
        features_extractor_class=EncoderExtractor,
        features_extractor_kwargs=dict(encoder="nfm", width=16)))

SB3 hands an extractor floats it has already divided by 255, so pixels are never scaled twice.
The other way round needs no adapter: `agents.load(path)` has SB3's `predict`.
"""

from typing import Any, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from rl_nfm.encoders import FeedForwardEncoder, make_encoder


class EncoderExtractor(BaseFeaturesExtractor):
    """A feed-forward encoder of the registry as SB3 features extractor."""

    def __init__(
        self,
        observation_space: spaces.Box,
        encoder: str = "nature",
        normalized_image: bool = False,
        **options: Any,
    ):
        """Build the encoder.

        Args:
            observation_space: images, channels first [C, H, W], which SB3 makes of uint8 images
                with 1, 3 or 4 channels last by itself: uint8 from 0 to 255.
            encoder: a registered name.
            normalized_image: SB3's own word for images it does not divide by 255 itself (policy
                option `normalize_images=False`): floats from 0 to 1.
            options: of the encoder's config.

        Raises:
            ValueError: unknown encoder or option, one with a state or spectral norm, or no such
                image space.
        """
        _check_image_space(observation_space, normalized_image)
        built = make_encoder(encoder, obs_shape=observation_space.shape, **options)  # pyright: ignore
        if not isinstance(built, FeedForwardEncoder):
            raise ValueError(f"encoder: {encoder!r} has a state; SB3's extractors have none")
        if any(map(is_parametrized, built.modules())):
            raise ValueError(
                "spectral_norm: not allowed; SB3 does not copy its vectors to the target network"
            )
        super().__init__(observation_space, built.feature_dim)
        self.encoder = built

    def forward(self, observations: Tensor) -> Tensor:
        """Features [B, D] of floats in [0, 1], [B, C, H, W]."""
        return self.encoder.embed(observations)


def _check_image_space(space: spaces.Space[Any], normalized_image: bool) -> None:
    """Refuse what would arrive unscaled, or with rows taken for channels."""
    if normalized_image:
        fits = (
            is_image_space(space, normalized_image=True)
            and isinstance(space, spaces.Box)
            and np.issubdtype(space.dtype, np.floating)
            and bool(np.all(space.low >= 0) and np.all(space.high <= 1))
        )
    else:
        fits = is_image_space(space)
    if not fits:
        allowed = "uint8 images from 0 to 255, or floats from 0 to 1 with normalized_image=True"
        raise ValueError(
            f"observation_space: {_words(space)} is not allowed: {allowed} here and "
            "normalize_images=False in the policy"
        )
    if not is_image_space_channels_first(cast("spaces.Box", space)):
        raise ValueError(
            f"observation_space: {_words(space)} has its channels last, SB3's networks take them "
            "first: wrap the vector environment in VecTransposeImage"
        )


def _words(space: spaces.Space[Any]) -> str:
    if not isinstance(space, spaces.Box):
        return str(space)
    return f"Box({space.low.min():g} to {space.high.max():g}, {space.shape}, {space.dtype})"
