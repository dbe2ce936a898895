"""Games x methods, probability of improvement over a baseline, sizes, public curves, Atari-5."""

import dataclasses
import json
import math

import numpy as np
import pytest

from agents.commands import games as games_command
from agents.commands import report as report_command
from agents.config import write_config
from agents.presets import read_preset
from agents.reporting.comparison import atari5_rows, games_by_methods
from agents.reporting.references import ITERATION_STEPS, references
from agents.reporting.report import write_report
from envs import (
    PROTOCOLS,
    SUITES,
    atari5_median,
    human_normalized_score,
    random_and_human_score,
)
from envs.atari.suites import ATARI5_WEIGHTS


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two games, three methods, three seeds; a run's episodes return its level."""
    folder = tmp_path_factory.mktemp("sweep")
    debug = dataclasses.replace(read_preset("debug"), steps=1000)
    levels = {"nature": 300.0, "resnet": 500.0, "resnet_matched": 400.0}
    for game, factor in (("ms_pacman", 1.0), ("qbert", 3.0)):
        for method, level in levels.items():
            for seed in range(3):
                run = folder / game / method / f"seed-{seed}"
                run.mkdir(parents=True)
                encoder = method.split("_")[0]
                config = dataclasses.replace(debug, game=game, encoder=encoder, seed=seed)
                write_config(config, run / "config.yaml")
                score = factor * level + 100 * seed
                lines = [
                    {"steps": 100 * i, "episode_returns": [score], "eval_return_mean": score}
                    for i in range(1, 11)
                ]
                text = "".join(json.dumps(line) + "\n" for line in lines)
                (run / "metrics.jsonl").write_text(text)
    return folder


def test_probability_of_improvement_over_a_baseline(sweep, tmp_path):
    write_report([sweep], tmp_path, against="resnet_matched")
    tables = json.loads((tmp_path / "report.json").read_text())["tables"]
    rows = {row["first"]: row for row in tables["last_tenth"]["improvements"]}
    assert set(rows) == {"nature", "resnet"}
    assert {row["second"] for row in rows.values()} == {"resnet_matched"}
    # Ms. Pacman: 500, 600, 700 against 400, 500, 600: 6 wins and 2 ties of 9; Q*bert: 1500, 1600,
    # 1700 against 1200, 1300, 1400: all 9.
    assert rows["resnet"]["probability"] == pytest.approx((7 / 9 + 1) / 2)
    assert rows["nature"]["probability"] == pytest.approx((2 / 9 + 0) / 2)


def test_returns_below_ten_have_two_decimals():
    rows = [
        {"game": game, "method": method, "mean": mean}
        for game, method, mean in (("cue", "a", 0.274), ("cue", "b", 9.99), ("pong", "a", -12.34))
    ]
    assert games_by_methods([*rows, {**rows[0], "mean": 0.25}]) == [
        {"game": "cue", "a": "0.26 ± 0.02 (2)", "b": "9.99 (1)"},
        {"game": "pong", "a": "-12.3 (1)", "b": "-"},
    ]


def test_single_seeds_beside_a_baseline_are_noted(sweep, tmp_path):
    runs = [sweep / "qbert" / method / "seed-1" for method in ("nature", "resnet")]
    write_report(runs, tmp_path, against="nature")
    content = json.loads((tmp_path / "report.json").read_text())
    assert [table["improvements"] for table in content["tables"].values()] == [[]]
    text = (tmp_path / "report.md").read_text()
    assert text.count("no probability of improvement over nature: it takes two seeds") == 1


def test_an_unknown_baseline_is_refused(sweep, tmp_path):
    with pytest.raises(ValueError, match="against: 'resnet_match' is unknown; did you mean"):
        write_report([sweep], tmp_path / "report", against="resnet_match")
    assert not (tmp_path / "report").exists()


def test_report_has_games_by_methods_and_sizes(sweep, tmp_path, capsys):
    words = [str(sweep), "--out", str(tmp_path), "--against", "nature"]
    assert report_command.main(words) == 0
    text = capsys.readouterr().out
    assert "| game | nature | resnet | resnet_matched |" in text
    assert "| ms_pacman | 400.0 ± 100.0 (3) | 600.0 ± 100.0 (3) | 500.0 ± 100.0 (3) |" in text
    assert "| nature | 2,132 | 479,296 |" in text
    assert (tmp_path / "profiles_last_tenth.png").is_file()
    assert (tmp_path / "profiles_last_evaluations.png").is_file()
    runs = (tmp_path / "runs.csv").read_text().splitlines()
    assert len(runs) == 1 + 2 * 18  # both scores of every seed


def test_a_game_that_a_method_has_not_played_is_a_dash():
    runs = [
        {"game": "pong", "method": "nfm", "mean": 1.0},
        {"game": "pong", "method": "nfm", "mean": 2.0},
        {"game": "qbert", "method": "rim", "mean": 5.0},
    ]
    assert games_by_methods(runs) == [
        {"game": "pong", "nfm": "1.50 ± 0.71 (2)", "rim": "-"},
        {"game": "qbert", "nfm": "-", "rim": "5.00 (1)"},
    ]


def test_atari5_is_the_regression_on_logarithms():
    human = dict.fromkeys(SUITES["atari5"], 1.0)
    # log10(101) times the sum of the weights, without an intercept
    expected = (101 ** sum(ATARI5_WEIGHTS.values()) - 1) / 100
    assert atari5_median(human) == pytest.approx(expected)
    assert atari5_median({**human, "pong": 99.0}) == atari5_median(human)
    assert atari5_median({**human, "phoenix": None}) is None
    assert atari5_median(dict.fromkeys(SUITES["atari5"], -0.5)) == 0.0
    one = atari5_median({**dict.fromkeys(SUITES["atari5"], 0.0), "battle_zone": 0.5})
    assert one == pytest.approx((math.pow(51, 0.38197512) - 1) / 100)
    rows = [{"game": g, "method": "nfm", "hns": 1.0} for g in SUITES["atari5"]]
    assert len(atari5_rows(rows)) == 1
    assert atari5_rows(rows[1:]) == []


def test_public_curves_are_those_of_the_same_protocol():
    dopamine = vars(PROTOCOLS["dopamine"])
    curves = references("ms_pacman", dopamine)
    assert [curve.name for curve in curves] == [
        "IQN, nature (Dopamine)",
        "compact Rainbow, nature (Dopamine)",
        "IQN, impala (Dopamine)",
        "compact Rainbow, impala (Dopamine)",
    ]
    assert {(curve.scores, curve.runs) for curve in curves} == {("training", 5)}
    assert curves[0].returns.shape == (5, 12)
    assert curves[0].steps[0] == ITERATION_STEPS
    assert references("ms_pacman", vars(PROTOCOLS["machado"])) == []
    assert references("adventure", dopamine) == []


def test_public_curves_cover_the_suites_and_learn():
    dopamine = vars(PROTOCOLS["dopamine"])
    missing = [game for game in SUITES["atari57"] if not references(game, dopamine)]
    assert missing == ["defender", "surround"]
    for game in SUITES["mission"]:
        scores = random_and_human_score(game)
        assert scores is not None
        for curve in references(game, dopamine):
            assert curve.returns[:, -1].mean() > curve.returns[:, 0].mean() > scores[0]
            assert np.isfinite(curve.returns).all()


def test_public_scores_of_atari_100k_cover_its_games():
    protocol = vars(PROTOCOLS["atari100k"])
    assert {g for g in SUITES["atari57"] if references(g, protocol)} == set(SUITES["atari26"])
    der, drq, spr = references("ms_pacman", protocol)
    assert (der.returns, der.runs) == ([[1204.1]], None)  # van Hasselt et al. 2019
    assert (drq.runs, spr.runs) == (100, 100)
    assert {r.steps.item() for r in (der, drq, spr)} == {100_000}
    normalized = [
        [human_normalized_score(game, r.returns.item()) for r in references(game, protocol)]
        for game in SUITES["atari26"]
    ]
    # Agarwal et al. 2021: mean and median human-normalised score of their runs of DrQ and SPR
    assert np.mean(np.array(normalized, float)[:, 1:], 0) == pytest.approx([0.465, 0.616], abs=5e-4)
    assert np.median(normalized, 0)[1:] == pytest.approx([0.313, 0.396], abs=1e-3)
    # DER by the same scores in the table of SPR's paper
    assert np.mean(normalized, 0)[0] == pytest.approx(0.285, abs=1e-3)
    assert np.median(normalized, 0)[0] == pytest.approx(0.161, abs=1e-3)


def test_list_of_games(capsys):
    assert games_command.main(["atari5", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["game"] for row in rows] == sorted(SUITES["atari5"])
    assert rows[0] == {
        "game": "battle_zone",
        "random": 2360.0,
        "human": 37187.5,
        "suites": ["atari5", "atari26", "atari57"],
    }
    assert games_command.main([]) == 0
    text = capsys.readouterr().out
    assert "adventure" in text
    assert "104 games" in text
    with pytest.raises(ValueError, match="suite: 'atari75' is unknown; did you mean 'atari5'"):
        games_command.main(["atari75"])
