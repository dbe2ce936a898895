"""What an encoder costs."""

import torch

from rl_nfm.backbones.matching import count_macs
from rl_nfm.encoders.base import Encoder
from rl_nfm.support.modules import in_eval_mode


def encoder_macs(encoder: Encoder, obs_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of an encoder for one observation (C, H, W), one step.

    Counted in eval mode, so that no statistic of the encoder changes.
    """
    obs = torch.zeros(1, 1, *obs_shape, dtype=torch.uint8)
    extras = {
        "last_action": torch.zeros(1, 1, dtype=torch.int64),
        "last_reward": torch.zeros(1, 1),
        "episode_step": torch.zeros(1, 1, dtype=torch.int64),
    }
    reset = torch.ones(1, 1, dtype=torch.bool)
    with in_eval_mode(encoder):
        return count_macs(lambda: encoder(obs, encoder.initial_state(1), reset, extras))
