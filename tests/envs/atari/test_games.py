import numpy as np
import pytest
from ale_py import roms

from envs import game_names, human_normalized_score, random_and_human_score, resolve_game

SEVEN = ["ms_pacman", "frostbite", "alien", "amidar", "hero", "qbert", "crazy_climber"]


@pytest.mark.parametrize(
    ("name", "game"),
    [
        ("ms_pacman", "ms_pacman"),
        ("MsPacman", "ms_pacman"),
        ("ALE/MsPacman-v5", "ms_pacman"),
        ("MsPacmanNoFrameskip-v4", "ms_pacman"),
        ("MsPacmanDeterministic-v0", "ms_pacman"),
        ("mspacman", "ms_pacman"),
        ("Qbert", "qbert"),
        ("ALE/TicTacToe3D-v5", "tic_tac_toe_3d"),
        ("UpNDown", "up_n_down"),
        ("Pitfall2", "pitfall2"),
        ("memory_cue", "memory_cue"),
    ],
)
def test_every_form_of_a_name_is_resolved(name, game):
    assert resolve_game(name) == game


def test_gymnasium_ids_of_all_games_are_resolved():
    for game in game_names():
        pascal = game.title().replace("_", "")
        assert resolve_game(game) == resolve_game(f"ALE/{pascal}-v5") == game


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MsPacmn", "'MsPacmn' is unknown; did you mean 'ms_pacman'?"),
        ("ALE/Qbrt-v5", "'ALE/Qbrt-v5' is unknown; did you mean 'qbert'?"),
        ("memory_cue:x", "'memory_cue:x' is unknown; did you mean 'memory_cue'?"),
        ("zzzz", "'zzzz' is unknown .`rl-nfm games` lists all"),
        ("pacman_ms", "'pacman_ms' is unknown; did you mean 'ms_pacman'?"),
        ("BandZoneTime-v5", "'BandZoneTime-v5' is unknown"),
        ("", "'' is unknown"),
        ("Joust", "'Joust' has no single-player mode"),
        (None, "must be a name, got None"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=f"game: {message}"):
        resolve_game(name)


def test_names_are_all_roms_but_the_four_that_would_end_the_process():
    names = game_names()
    assert set(SEVEN) <= set(names)
    assert set(roms.get_all_rom_ids()) - set(names) == {"combat", "joust", "maze_craze", "warlords"}
    assert list(names) == sorted(names)


def test_scores_are_published_for_57_games_of_which_random_and_human_differ():
    scored = {game: pair for game in game_names() if (pair := random_and_human_score(game))}
    assert len(scored) == 57
    assert set(SEVEN) <= set(scored)
    for game, (random, human) in scored.items():
        assert human > random, game
    # the two columns of the published table, added up
    assert np.sum(list(scored.values()), 0) == pytest.approx([50_864.9, 606_494.2], abs=0.01)


def test_human_normalized_score_by_hand():
    # Ms. Pacman: (3629.45 - 307.3) / (6951.6 - 307.3) = 3322.15 / 6644.3 = 0.5
    assert human_normalized_score("MsPacman", 3629.45) == pytest.approx(0.5)
    # Qbert: (13455 - 163.9) / (13455 - 163.9) = 1; the random agent has 0
    assert human_normalized_score("qbert", 13455.0) == 1.0
    assert human_normalized_score("qbert", 163.9) == 0.0
    # Double Dunk counts below zero: (-14.2 + 18.6) / (-16.4 + 18.6) = 4.4 / 2.2 = 2
    assert human_normalized_score("double_dunk", -14.2) == pytest.approx(2.0)


@pytest.mark.parametrize("game", ["tetris", "memory_cue"])
def test_a_game_without_a_human_has_no_normalised_score(game):
    assert human_normalized_score(game, 3.0) is None
