"""Atari games: names and published scores, protocols, and the environments of ale-py."""

from envs.atari.environment import AtariVecEnv, make_atari
from envs.atari.games import game_names
from envs.atari.protocols import ATARI_FIELDS, PROTOCOLS, AtariProtocol, make_protocol
from envs.atari.suites import SUITES, atari5_median, games_of

__all__ = [
    "ATARI_FIELDS",
    "PROTOCOLS",
    "SUITES",
    "AtariProtocol",
    "AtariVecEnv",
    "atari5_median",
    "game_names",
    "games_of",
    "make_atari",
    "make_protocol",
]
