"""Our encoders inside Stable-Baselines3: `features_extractor_class=EncoderExtractor`.

    DQN("CnnPolicy", env, policy_kwargs=dict(
        features_extractor_class=EncoderExtractor,
        features_extractor_kwargs=dict(encoder="nfm", width=16)))

SB3 hands an extractor floats it has already divided by 255, so pixels are never scaled twice.
The other way round needs no adapter: `agents.load(path)` has SB3's `predict`.
"""

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

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
            observation_space: images, channels first [C, H, W].
            encoder: a registered name.
            normalized_image: SB3's own word for images it does not divide by 255 itself; they
                must then come as floats in [0, 1].
            options: of the encoder's config.

        Raises:
            ValueError: unknown encoder or option, one with a state, or no image space.
        """
        del normalized_image
        if len(observation_space.shape) != 3:
            raise ValueError(
                f"observation_space: {observation_space} is not allowed: images [C, H, W]"
            )
        built = make_encoder(encoder, obs_shape=observation_space.shape, **options)  # pyright: ignore
        if not isinstance(built, FeedForwardEncoder):
            raise ValueError(f"encoder: {encoder!r} has a state; SB3's extractors have none")
        super().__init__(observation_space, built.feature_dim)
        self.encoder = built

    def forward(self, observations: Tensor) -> Tensor:
        """Features [B, D] of floats in [0, 1], [B, C, H, W]."""
        return self.encoder.embed(observations)
