"""From a game name to batches of uint8 frames. Knows numpy, gymnasium and ale-py; no torch.

Every module in this folder is imported, so that an environment is one file that registers itself.
"""

import importlib
import pkgutil

from envs.atari import (
    ATARI_FIELDS,
    PROTOCOLS,
    SUITES,
    AtariProtocol,
    AtariVecEnv,
    atari5_median,
    game_names,
    games_of,
    make_atari,
    make_protocol,
)
from envs.gymnasium import GymProtocol, GymVecEnv
from envs.registry import (
    env_keys,
    env_protocol,
    human_normalized_score,
    make_env,
    random_and_human_score,
    register_env,
    resolve_game,
    step_spec,
)
from envs.spec import EnvProtocol, StepSpec, as_picture, newest_frame, protocol_fields
from envs.vector import GameVecEnv

__all__ = [
    "ATARI_FIELDS",
    "PROTOCOLS",
    "SUITES",
    "AtariProtocol",
    "AtariVecEnv",
    "EnvProtocol",
    "GameVecEnv",
    "GymProtocol",
    "GymVecEnv",
    "StepSpec",
    "as_picture",
    "atari5_median",
    "env_keys",
    "env_protocol",
    "game_names",
    "games_of",
    "human_normalized_score",
    "make_atari",
    "make_env",
    "make_protocol",
    "newest_frame",
    "protocol_fields",
    "random_and_human_score",
    "register_env",
    "resolve_game",
    "step_spec",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
