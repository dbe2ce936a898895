"""How large the networks of a config are."""

from typing import Any

from agents.config import Config
from agents.saving import checkpoint
from envs import step_spec
from rl_nfm.backbones.matching import count_parameters
from rl_nfm.encoders import Encoder
from rl_nfm.encoders.cost import encoder_macs

NUM_ACTIONS = 18
"""For the sizes: the same in every game, as in `rl-nfm encoders`."""


def build_encoder(config: Config) -> Encoder:
    """The encoder of a config, as it is built for a game with all 18 actions."""
    return checkpoint.build_network(config, obs_shape(config), NUM_ACTIONS).encoder.eval()


def obs_shape(config: Config) -> tuple[int, int, int]:
    """(C, H, W) of an observation under the config's protocol."""
    return step_spec(config.game, config.protocol).obs_shape


def describe(config: Config) -> dict[str, Any]:
    """Parameters and MACs of a config's encoder, and the parameters of the whole network."""
    network = checkpoint.build_network(config, obs_shape(config), NUM_ACTIONS).eval()
    return {
        "parameters": count_parameters(network.encoder),
        "macs": encoder_macs(network.encoder, obs_shape(config)),
        "network_parameters": count_parameters(network),
    }
