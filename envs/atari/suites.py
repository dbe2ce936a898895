"""Named sets of games that are reported together.

Sources: `mission`, three of the five games of the NFM paper's table 3; `atari5`, Aitchison et al.
2023, "Atari-5: Distilling the Arcade Learning Environment down to Five Games"; `atari26`, Kaiser et
al. 2020 (Atari 100k); `atari57`, the games with published human scores, as in `envs.atari.games`.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from envs.atari.games import game_names, published_scores
from envs.registry import resolve_game

_ATARI_26 = """
    alien amidar assault asterix bank_heist battle_zone boxing breakout chopper_command
    crazy_climber demon_attack freeway frostbite gopher hero jamesbond kangaroo krull
    kung_fu_master ms_pacman pong private_eye qbert road_runner seaquest up_n_down
"""

SUITES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "mission": ("ms_pacman", "alien", "qbert"),
        "atari5": ("battle_zone", "double_dunk", "name_this_game", "phoenix", "qbert"),
        "atari26": tuple(_ATARI_26.split()),
        "atari57": tuple(name for name in game_names() if published_scores(name)),
    }
)
"""Name to games."""

ATARI5_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {
        "battle_zone": 0.38197512,
        "double_dunk": 0.06790995,
        "name_this_game": 0.31080415,
        "phoenix": 0.12412619,
        "qbert": 0.08048518,
    }
)
"""Regression weights of Atari-5, as the authors' code (github.com/maitchison/Atari-5) fits them to
its published data (44 algorithms, r^2 = 0.988, mean error of a median about 10 %)."""


def atari5_median(human_normalized: Mapping[str, float | None]) -> float | None:
    """Atari-5's estimate of the median human-normalised score over 57 games (1: human).

    The logarithm of a score in percent, log10(1 + max(0, 100 HNS)), of the median is the weighted
    sum of those of the five games, without an intercept.

    Args:
        human_normalized: game to score; others than the five are ignored.

    Returns:
        None where a score is missing.
    """
    logs = []
    for game, weight in ATARI5_WEIGHTS.items():
        score = human_normalized.get(game)
        if score is None:
            return None
        logs.append(weight * math.log10(1 + max(0.0, 100 * score)))
    return (10 ** math.fsum(logs) - 1) / 100


def games_of(names: Sequence[str]) -> tuple[str, ...]:
    """The games that a list of games and suites stands for, each once, in their order.

    Raises:
        ValueError: a name that is neither.
    """
    games: list[str] = []
    for name in names:
        try:
            games += SUITES.get(name) or (resolve_game(name),)
        except ValueError as error:
            raise ValueError(f"{error}, and the suites {', '.join(SUITES)}") from None
    return tuple(dict.fromkeys(games))
