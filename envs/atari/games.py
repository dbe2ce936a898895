"""Names of games, and the published scores by which returns are normalised.

Every single-player ROM of ale-py is a game here. Human and random scores: the table of dqn_zoo
(`dqn_zoo/atari_data.py`, Atari-57; at least 3 episodes from up to 30 no-ops, at most 108,000
frames), as in Wang et al. 2016 (table 2) and its successors. Mnih et al. 2015 cut episodes after 5
minutes and printed other human scores (Alien: 6,875; here 7,127.7).
"""

import difflib
import re
from functools import cache

from ale_py import roms

# ale-py ends the whole process when it loads one of these.
_MULTIPLAYER_ROMS = frozenset({"combat", "joust", "maze_craze", "warlords"})

_RANDOM_AND_HUMAN = {
    "alien": (227.8, 7127.7),
    "amidar": (5.8, 1719.5),
    "assault": (222.4, 742.0),
    "asterix": (210.0, 8503.3),
    "asteroids": (719.1, 47388.7),
    "atlantis": (12850.0, 29028.1),
    "bank_heist": (14.2, 753.1),
    "battle_zone": (2360.0, 37187.5),
    "beam_rider": (363.9, 16926.5),
    "berzerk": (123.7, 2630.4),
    "bowling": (23.1, 160.7),
    "boxing": (0.1, 12.1),
    "breakout": (1.7, 30.5),
    "centipede": (2090.9, 12017.0),
    "chopper_command": (811.0, 7387.8),
    "crazy_climber": (10780.5, 35829.4),
    "defender": (2874.5, 18688.9),
    "demon_attack": (152.1, 1971.0),
    "double_dunk": (-18.6, -16.4),
    "enduro": (0.0, 860.5),
    "fishing_derby": (-91.7, -38.7),
    "freeway": (0.0, 29.6),
    "frostbite": (65.2, 4334.7),
    "gopher": (257.6, 2412.5),
    "gravitar": (173.0, 3351.4),
    "hero": (1027.0, 30826.4),
    "ice_hockey": (-11.2, 0.9),
    "jamesbond": (29.0, 302.8),
    "kangaroo": (52.0, 3035.0),
    "krull": (1598.0, 2665.5),
    "kung_fu_master": (258.5, 22736.3),
    "montezuma_revenge": (0.0, 4753.3),
    "ms_pacman": (307.3, 6951.6),
    "name_this_game": (2292.3, 8049.0),
    "phoenix": (761.4, 7242.6),
    "pitfall": (-229.4, 6463.7),
    "pong": (-20.7, 14.6),
    "private_eye": (24.9, 69571.3),
    "qbert": (163.9, 13455.0),
    "riverraid": (1338.5, 17118.0),
    "road_runner": (11.5, 7845.0),
    "robotank": (2.2, 11.9),
    "seaquest": (68.4, 42054.7),
    "skiing": (-17098.1, -4336.9),
    "solaris": (1236.3, 12326.7),
    "space_invaders": (148.0, 1668.7),
    "star_gunner": (664.0, 10250.0),
    "surround": (-10.0, 6.5),
    "tennis": (-23.8, -8.3),
    "time_pilot": (3568.0, 5229.2),
    "tutankham": (11.4, 167.6),
    "up_n_down": (533.4, 11693.2),
    "venture": (0.0, 1187.5),
    "video_pinball": (16256.9, 17667.9),
    "wizard_of_wor": (563.5, 4756.5),
    "yars_revenge": (3092.9, 54576.9),
    "zaxxon": (32.5, 9173.3),
}


@cache
def game_names() -> tuple[str, ...]:
    """Every Atari game that can be played, as snake_case ids in alphabetical order."""
    return tuple(sorted(set(roms.get_all_rom_ids()) - _MULTIPLAYER_ROMS))


@cache
def _by_compact_name() -> dict[str, str]:
    """From "mspacman" to "ms_pacman"."""
    return {name.replace("_", ""): name for name in game_names()}


def resolve_game(name: str) -> str:
    """The snake_case id of a game.

    Args:
        name: `ms_pacman`, `MsPacman`, `ALE/MsPacman-v5`, `MsPacmanNoFrameskip-v4`, ... The
            Gymnasium id names the game only: frame skip and sticky actions come from the protocol.

    Raises:
        ValueError: unknown, with the nearest name, or a ROM without a single-player mode.
    """
    if not isinstance(name, str):
        raise ValueError(f"game: must be a name, got {name!r}")
    stem = re.sub(r"-v\d+$", "", name.removeprefix("ALE/"))
    stem = stem.removesuffix("NoFrameskip").removesuffix("Deterministic")
    compact = stem.lower().replace("_", "")
    game = _by_compact_name().get(compact)
    if game is not None:
        return game
    for rom in _MULTIPLAYER_ROMS:
        if compact == rom.replace("_", ""):
            raise ValueError(f"game: {name!r} has no single-player mode")
    near = _nearest(compact, stem)
    hint = f"; did you mean {near!r}?" if near else ""
    raise ValueError(f"game: {name[:100]!r} is unknown{hint} (`rl-nfm games` lists all)")


def _nearest(compact: str, stem: str) -> str | None:
    """The game whose name is nearest, in spelling or with its words in another order."""
    words = sorted(re.findall(r"[A-Z]?[a-z0-9]+", stem))
    for game in _by_compact_name().values():
        if sorted(game.split("_")) == [word.lower() for word in words]:
            return game
    near = difflib.get_close_matches(compact, _by_compact_name(), n=1)
    return _by_compact_name()[near[0]] if near else None


def published_scores(game: str) -> tuple[float, float] | None:
    """Mean returns of a random agent and of a human tester; None where none are published.

    Args:
        game: as `resolve_game` gives it.
    """
    return _RANDOM_AND_HUMAN.get(game)
