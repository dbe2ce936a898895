"""Named sets of games that are reported together.

Sources: `mission`, the three games of the NFM paper's table; `atari5`, Aitchison et al. 2023,
"Atari-5: Distilling the Arcade Learning Environment down to Five Games"; `atari26`, Kaiser et al.
2020 (Atari 100k); `atari57`, the games with published human scores, as in `envs.games`.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from envs.games import game_names, random_and_human_score, resolve_game

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
        "atari57": tuple(name for name in game_names() if random_and_human_score(name)),
    }
)
"""Name to games."""


def games_of(names: Sequence[str]) -> tuple[str, ...]:
    """The games that names of games and suites mean, each once, in their order.

    Raises:
        ValueError: a name that is neither.
    """
    games: list[str] = []
    for name in names:
        games += SUITES.get(name) or (resolve_game(name),)
    return tuple(dict.fromkeys(games))
