"""From a game name to batches of uint8 frames. Knows numpy, gymnasium and ale-py; no torch."""

from envs.atari import AtariVecEnv, make_atari
from envs.games import (
    game_names,
    human_normalized_score,
    random_and_human_score,
    resolve_game,
)
from envs.make import make_env
from envs.memory import MemoryCueVecEnv
from envs.protocols import PROTOCOLS, Protocol, make_protocol
from envs.suites import SUITES, atari5_median, games_of
from envs.vector import GameVecEnv

__all__ = [
    "PROTOCOLS",
    "SUITES",
    "AtariVecEnv",
    "GameVecEnv",
    "MemoryCueVecEnv",
    "Protocol",
    "atari5_median",
    "game_names",
    "games_of",
    "human_normalized_score",
    "make_atari",
    "make_env",
    "make_protocol",
    "random_and_human_score",
    "resolve_game",
]
