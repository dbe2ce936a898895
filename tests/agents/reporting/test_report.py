"""`rl-nfm report`: hand-worked tables, what may be put together, and what is refused."""

import csv
import dataclasses
import json

import cv2
import matplotlib.colors
import numpy as np
import pytest

from agents import cli
from agents.commands.evaluate import score_content
from agents.config import make_config, to_plain, write_config
from agents.playing.scores import Scores
from agents.presets import read_preset
from agents.reporting import figures
from agents.reporting.figures import common_evaluations, looks, running_mean
from agents.reporting.references import references
from agents.reporting.report import write_report
from agents.reporting.results import Curve
from agents.reporting.sources import read_results
from envs import PROTOCOLS

BLOCK = {**dataclasses.asdict(PROTOCOLS["dopamine"]), "epsilon": 0.001, "seed": 1, "num_envs": 8}


def config(**changes):
    values = to_plain(read_preset("debug"))
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return make_config(values)


def make_run(path, lines=((100, [1.0, 3.0]), (300, [5.0])), **changes):
    """A run's folder with (steps, returns) or (steps, returns, evaluation) per line."""
    path.mkdir(parents=True)
    write_config(config(**changes), path / "config.yaml")
    with (path / "metrics.jsonl").open("w") as file:
        for steps, returns, *evaluated in lines:
            line = {"steps": steps, "loss": None, "episode_returns": returns}
            if evaluated:
                line["eval_return_mean"] = evaluated[0]
            file.write(json.dumps(line) + "\n")
    return path


def make_scores(path, returns, *, game="ms_pacman", encoder="nature", **changes):
    """A score file with the keys of the contract, and no more unless asked for."""
    content = {
        "game": game,
        "episodes": len(returns),
        "returns": returns,
        "mean": float(np.mean(returns)),
        "median": float(np.median(returns)),
        "hns": None,
        "protocol": BLOCK,
        "checkpoint_steps": 300,
        "encoder": encoder,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, **changes}))
    return path


def report(paths, out):
    write_report(paths, out)
    return json.loads((out / "report.json").read_text())


def error(paths, tmp_path):
    with pytest.raises(ValueError, match=r".") as raised:
        write_report(paths, tmp_path / "refused")
    assert not (tmp_path / "refused").exists(), "nothing is written"
    return str(raised.value)


def test_a_run_in_a_gymnasium_environment_has_its_curve(tmp_path):
    run = make_run(
        tmp_path / "run", lines=((100, [1.0], 2.0), (300, [3.0], 4.0)), game="gym:CartPole-v1"
    )
    write_report([run], tmp_path / "out")
    picture = (tmp_path / "out/curves_gym_CartPole_v1.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    text = (tmp_path / "out/report.md").read_text()
    assert "Dopamine" not in text


@pytest.mark.parametrize("steps", [300, 200_000])
def test_public_scores_of_evaluations_stand_beside_evaluations(tmp_path, steps):
    run = make_run(
        tmp_path / "run",
        lines=((steps // 2, [1.0], 2.0), (steps, [3.0], 4.0)),
        env={"protocol": "atari100k"},
    )
    write_report([run], tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "SPR" in text
    assert "Dopamine" not in text
    write_report([run], tmp_path / "out", references=False)
    assert "SPR" not in (tmp_path / "out/report.md").read_text()


def test_scores_over_seeds_by_hand(tmp_path):
    returns = {1: [0, 10], 2: [10, 10], 3: [20, 40], 4: [100, 300], 5: [5, 5]}
    files = [make_scores(tmp_path / f"{s}.json", r, train_seed=s) for s, r in returns.items()]
    content = report(files, tmp_path / "out")
    (row,) = content["tables"]["evaluation"]["scores"]
    # means of the seeds 5, 10, 30, 200, 5: together 250; one cut off each end of 5 5 10 30 200
    assert row["over"] == "5 seeds"
    assert (row["mean"], row["median"], row["iqm"]) == (50, 10, 15)
    assert row["hns"] == pytest.approx((50 - 307.3) / (6951.6 - 307.3))
    assert 5 <= row["iqm_low"] < 15 < row["iqm_high"] <= 200
    assert row["steps"] == [300]
    assert [r["mean"] for r in content["tables"]["evaluation"]["runs"]] == [5, 10, 30, 200, 5]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| ms_pacman | nature | 300 | 5 seeds | 50.0 [" in text
    assert "] | 10.0 | -0.039 | 15.0 [5.0, " in text
    # wider than over seeds alone, whose means are 5 to 200: episodes count too
    assert 5 <= row["mean_low"] < 50 < row["mean_high"]
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["game"], line["over"], float(line["iqm"])) == ("ms_pacman", "5 seeds", 15)
    with (tmp_path / "out" / "runs.csv").open(newline="") as file:
        assert [line["seed"] for line in csv.DictReader(file)] == ["1", "2", "3", "4", "5"]


def test_an_interval_over_the_episodes_of_one_run_is_called_so(tmp_path):
    file = make_scores(tmp_path / "s.json", [10, 20, 30, 40, 400])
    tables = report([file], tmp_path / "out")["tables"]["evaluation"]
    (row,), (single,) = tables["scores"], tables["runs"]
    assert row["over"] == "5 episodes of one run"
    assert (row["mean"], row["median"], row["iqm"]) == (100, 30, 30)
    assert (single["mean"], single["median"]) == (100, 30)
    assert row["iqm_low"] < 30 < row["iqm_high"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "5 episodes of one run" in text
    assert "seeds" not in text


def test_one_episode_has_no_interval(tmp_path):
    file = make_scores(tmp_path / "s.json", [10])
    (row,) = report([file], tmp_path / "out")["tables"]["evaluation"]["scores"]
    assert (row["iqm"], row["iqm_low"], row["iqm_high"]) == (10, None, None)
    assert row["mean_low"] is row["mean_high"] is None
    assert "| 10.0 | 10.0 | -0.045 | 10.0 |" in (tmp_path / "out" / "report.md").read_text()


def test_training_counts_its_last_100_episodes(tmp_path):
    run = make_run(tmp_path / "run", [(100, [1000.0] * 50), (200, [2.0] * 60), (300, [4.0] * 40)])
    content = report([run], tmp_path / "out")
    (row,) = content["tables"]["training"]["scores"]
    assert (row["over"], row["steps"]) == ("100 episodes of one run", [300])
    assert row["mean"] == pytest.approx(0.6 * 2 + 0.4 * 4)
    assert content["protocol"]["repeat_action_probability"] == 0.25
    assert "evaluation" not in content["tables"]


def test_aggregates_over_games_by_hand(tmp_path):
    published = {"ms_pacman": (307.3, 6951.6), "qbert": (163.9, 13455.0), "alien": (227.8, 7127.7)}

    def at(game, hns):  # the return with that human-normalised score
        random, human = published[game]
        return [random + hns * (human - random)]

    runs = {"ms_pacman": (0.1, 0.3), "qbert": (0.5, 0.9), "alien": (2.0, 2.0)}
    files = [
        make_scores(tmp_path / f"{game}{seed}.json", at(game, hns), game=game, train_seed=seed)
        for game, seeds in runs.items()
        for seed, hns in enumerate(seeds)
    ]
    files.append(make_scores(tmp_path / "adventure.json", [1.0], game="adventure", train_seed=1))
    content = report(files, tmp_path / "out")
    (row,) = content["tables"]["evaluation"]["aggregates"]
    # of six scores the lowest and the highest are cut; means of games 0.2, 0.7, 2
    assert (row["games"], row["runs"]) == (3, 6)
    assert row["iqm"] == pytest.approx((0.3 + 0.5 + 0.9 + 2.0) / 4)
    assert (row["mean"], row["median"]) == pytest.approx((2.9 / 3, 0.7))
    # resamples with only the lower or only the upper seeds, each with probability 1/16 at least
    assert (row["mean_low"], row["mean_high"]) == pytest.approx((2.6 / 3, 3.2 / 3))
    assert (row["median_low"], row["median_high"]) == pytest.approx((0.5, 0.9))  # of Q*bert
    assert (row["iqm_low"], row["iqm_high"]) == pytest.approx((3.1 / 4, 4.1 / 4))
    assert any("adventure" in note and "no human score" in note for note in content["notes"])
    assert (tmp_path / "out" / "profiles_evaluation.png").is_file()


def test_a_game_that_one_method_has_not_played_is_in_no_aggregate(tmp_path):
    played = {"nature": ("alien", "pong", "qbert"), "resnet": ("alien", "qbert")}
    files = [
        make_scores(tmp_path / f"{name}_{game}.json", [300.0], game=game, encoder=name)
        for name, games in played.items()
        for game in games
    ]
    content = report(files, tmp_path / "out")
    assert [row["games"] for row in content["tables"]["evaluation"]["aggregates"]] == [2, 2]
    assert any("not over pong" in note for note in content["notes"])


def test_no_interval_over_games_where_one_has_a_single_seed(tmp_path):
    files = [
        make_scores(tmp_path / f"{game}{seed}.json", [50.0 * seed], game=game, train_seed=seed)
        for game, seed in (("ms_pacman", 1), ("ms_pacman", 2), ("qbert", 1))
    ]
    content = report(files, tmp_path / "out")
    (row,) = content["tables"]["evaluation"]["aggregates"]
    assert row["iqm_low"] is row["mean_high"] is None
    assert any("one run only" in note for note in content["notes"])


def test_probability_of_improvement(tmp_path):
    returns = {"nature": {1: 10.0, 2: 30.0}, "nfm": {1: 20.0, 2: 30.0}}
    files = [
        make_scores(tmp_path / f"{name}{s}.json", [r], encoder=name, train_seed=s)
        for name, seeds in returns.items()
        for s, r in seeds.items()
    ]
    (row,) = report(files, tmp_path / "out")["tables"]["evaluation"]["improvements"]
    # 10<20, 10<30, 30>20, 30=30: 1.5 of 4
    assert (row["first"], row["second"], row["probability"]) == ("nature", "nfm", 0.375)
    assert (row["low"], row["high"]) == (0, 1)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("repeat_action_probability", {"repeat_action_probability": 0.0}),
        ("full_action_space", {"protocol": "machado"}),
        ("noop_max", {"protocol": "atari100k", "repeat_action_probability": 0.25}),
        ("terminal_on_life_loss", {"terminal_on_life_loss": True}),
        ("max_num_frames_per_episode", {"max_num_frames_per_episode": 18_000}),
        (
            "use_fire_reset",
            {
                "protocol": "atari100k",
                "noop_max": 0,
                "repeat_action_probability": 0.25,
                "terminal_on_life_loss": False,
            },
        ),
    ],
)
def test_protocols_of_runs_are_never_mixed(field, changes, tmp_path):
    a = make_run(tmp_path / "a", seed=1)
    b = make_run(tmp_path / "b", seed=2, env=changes)
    message = error([a, b], tmp_path)
    assert message.startswith(f"{field}: ")
    assert "/a" in message
    assert "/b" in message


def test_what_the_agent_sees_separates_methods_and_no_tables(tmp_path):
    """`rim`, `rltime` and `nfm_paper` see one frame, `rltime_ff` four: one protocol, one table."""
    presets = {"rim": 1, "rltime": 2, "nfm_paper": 3, "rltime_ff": 4}
    runs = []
    for name, seed in presets.items():
        runs.append(make_run(tmp_path / name))
        preset = to_plain(read_preset(name)) | {"game": "qbert", "seed": seed}
        write_config(make_config(preset), runs[-1] / "config.yaml")
    content = report(runs, tmp_path / "out")
    rows = content["tables"]["training"]["scores"]
    assert [row["method"] for row in rows] == [
        "lstm on nature",
        "lstm on nfm",
        "nature",
        "rim on nature",
    ]
    assert "stack_num" not in content["protocol"]
    assert content["protocol"]["noop_max"] == 30
    more = make_run(tmp_path / "more", game="qbert", seed=1)
    single = make_run(tmp_path / "single", game="qbert", seed=2, env={"stack_num": 1})
    results, _ = read_results([more, single])
    assert [r.method for r in results] == ["nature (env.stack_num=4)", "nature (env.stack_num=1)"]


def test_protocols_of_evaluations_are_never_mixed(tmp_path):
    a = make_scores(tmp_path / "a.json", [1.0], train_seed=1)
    b = make_scores(tmp_path / "b.json", [1.0], train_seed=2, protocol={**BLOCK, "epsilon": 0.01})
    assert error([a, b], tmp_path).startswith("epsilon: 0.01 in ")
    unknown = {key: value for key, value in BLOCK.items() if key != "frameskip"}
    b = make_scores(tmp_path / "b.json", [1.0], train_seed=2, protocol=unknown)
    assert error([a, b], tmp_path).startswith("frameskip: 'unknown' in ")
    machado = {**BLOCK, "full_action_space": True}
    c = make_scores(tmp_path / "c.json", [1.0], train_seed=3, protocol=machado)
    assert error([make_run(tmp_path / "run"), c], tmp_path).startswith("full_action_space: True in")
    a = make_run(tmp_path / "ra", [(100, [1.0], 5.0)], seed=1)
    b = make_run(tmp_path / "rb", [(100, [1.0], 5.0)], seed=2, run={"eval_epsilon": 0.05})
    assert error([a, b], tmp_path).startswith("eval_epsilon: 0.05 in ")


def test_the_same_settings_under_another_name_are_the_same_protocol(tmp_path):
    named = {"protocol": "machado", "full_action_space": False}
    a = make_run(tmp_path / "a", seed=1)
    b = make_run(tmp_path / "b", seed=2, env=named)
    content = report([a, b], tmp_path / "out")
    assert content["protocol"]["name"] == ["dopamine", "machado"]
    assert content["tables"]["training"]["scores"][0]["over"] == "2 seeds"


def test_random_play_stands_beside_trained_agents(tmp_path):
    """Its epsilon is 1, which is no other protocol."""
    scores = Scores(
        game="ms_pacman", returns=[1.0, 3.0], lengths=[9, 9], protocol={**BLOCK, "epsilon": 1.0}
    )
    (tmp_path / "r.json").write_text(json.dumps(score_content(scores, None)))
    files = [tmp_path / "r.json", make_scores(tmp_path / "s.json", [5.0, 9.0], train_seed=1)]
    content = report(files, tmp_path / "out")
    assert content["protocol"]["epsilon"] == 0.001
    rows = content["tables"]["evaluation"]["scores"]
    assert [(r["method"], r["mean"], r["steps"]) for r in rows] == [
        ("nature", 7, [300]),
        ("random", 2, []),
    ]


def test_a_seed_counts_once(tmp_path):
    a = make_run(tmp_path / "a", seed=1)
    b = make_run(tmp_path / "b", seed=1)
    assert error([a, b], tmp_path).startswith("seed: 1 twice for nature on ms_pacman (training)")
    file = make_scores(a / "scores.json", [1.0], train_seed=1)
    results, _ = read_results([a, file, tmp_path / "b" / ".." / "a"])
    assert [r.source for r in results] == ["training", "evaluation"], "each path once"


def test_the_best_checkpoint_is_another_method(tmp_path):
    last = make_scores(tmp_path / "last.json", [1.0], train_seed=1, which="last")
    best = make_scores(tmp_path / "best.json", [2.0], train_seed=1, which="best")
    results, _ = read_results([last, best])
    assert [r.method for r in results] == ["nature", "nature of the best checkpoint"]


def test_random_attention_is_another_method(tmp_path):
    plain = make_scores(tmp_path / "plain.json", [1.0], encoder="nfm", train_seed=1)
    noise = make_scores(
        tmp_path / "noise.json", [2.0], encoder="nfm", train_seed=1, random_attention=True
    )
    results, _ = read_results([plain, noise])
    assert [r.method for r in results] == ["nfm", "nfm with random attention"]


def test_runs_of_other_settings_are_no_seeds_of_one_method(tmp_path):
    runs = [
        make_run(tmp_path / "a", seed=1),
        make_run(tmp_path / "b", seed=2, learner={"double": False}),
        make_run(tmp_path / "c", seed=3, run={"log_every_steps": 50}, game="qbert"),
    ]
    results, notes = read_results(runs)
    assert [r.method for r in results] == [
        "nature (learner.double=True)",
        "nature (learner.double=False)",
        "nature (learner.double=True)",
    ]
    many = {"double": False, "n_steps": 7, "discount": 0.5, "kappa": 2.0}
    results, notes = read_results([runs[0], make_run(tmp_path / "d", seed=4, learner=many)])
    assert [r.method for r in results] == ["nature #1", "nature #2"]
    assert "learner.n_steps=7" in notes[1]


def test_settings_of_a_score_file_are_those_of_its_run(tmp_path):
    """What evaluate writes carries the config, so it belongs to its run's method."""
    scores = Scores(game="ms_pacman", returns=[1.0], lengths=[9], protocol=BLOCK)
    runs = [
        make_run(tmp_path / "a", seed=1),
        make_run(tmp_path / "b", seed=2, learner={"kappa": 2.0}),
    ]
    content = {
        **score_content(scores, None),
        "encoder": "nature",
        "train_seed": 2,
        "checkpoint_steps": 300,
        "config": to_plain(config(seed=2, learner={"kappa": 2.0})),
    }
    (runs[1] / "scores.json").write_text(json.dumps(content))
    results, _ = read_results(runs)
    assert [r.method for r in results] == [
        "nature (learner.kappa=1.0)",
        "nature (learner.kappa=2.0)",
        "nature (learner.kappa=2.0)",
    ]


def test_a_run_that_stopped_early_is_left_out_and_named(tmp_path):
    """One seed stopped at 100 of 300 steps; the other is the whole of the row."""
    whole = make_run(tmp_path / "whole", [(100, [1.0]), (300, [5.0])], seed=1)
    short = make_run(tmp_path / "short", [(100, [1000.0])], seed=2)
    content = report([whole, short], tmp_path / "out")
    (row,) = content["tables"]["training"]["scores"]
    assert (row["steps"], row["over"], row["mean"]) == ([300], "2 episodes of one run", 3)
    (note,) = content["notes"]
    assert note == (
        f"{short}: training of nature on ms_pacman left out: at 100 of 300 steps, "
        "where others are at 300"
    )


def test_a_run_of_an_early_version_that_did_not_log_its_last_stretch_is_finished(tmp_path):
    run = make_run(tmp_path / "run", [(100, [1.0]), (250, [5.0])], seed=1)
    (run / "checkpoints" / "step_000000000300").mkdir(parents=True)
    content = report([run], tmp_path / "out")
    assert content["notes"] == []
    (row,) = content["tables"]["training"]["scores"]
    assert (row["steps"], row["mean"]) == ([300], 3)


def test_runs_that_all_go_on_are_scored_at_the_steps_all_have_reached(tmp_path):
    lines = [(100, [1.0] * 100), (200, [3.0] * 50), (250, [99.0])]
    a = make_run(tmp_path / "a", lines, seed=1)
    b = make_run(tmp_path / "b", [(100, [5.0]), (200, [7.0])], seed=2)
    content = report([a, b], tmp_path / "out")
    (row,) = content["tables"]["training"]["scores"]
    # up to step 200: means of the runs, of their last 100 episodes, 2 and 6
    assert (row["steps"], row["over"], row["mean"]) == ([200], "2 seeds", 4)
    notes = "\n".join(content["notes"])
    assert f"{a}: scored at 200 steps" in notes
    assert f"{a}: training of nature on ms_pacman is not finished: at 250 of 300 steps" in notes
    assert f"{b}: training of nature on ms_pacman is not finished: at 200 of 300 steps" in notes


def test_scores_of_an_earlier_checkpoint_are_left_out_and_named(tmp_path):
    steps = {1: 300, 2: 100, 3: 300}
    files = [
        make_scores(tmp_path / f"{seed}.json", [10.0 * seed], train_seed=seed, checkpoint_steps=at)
        for seed, at in steps.items()
    ]
    best = {"which": "best", "checkpoint_steps": 100}
    files.append(make_scores(tmp_path / "4.json", [1.0], train_seed=4, **best))
    content = report(files, tmp_path / "out")
    last, of_best = content["tables"]["evaluation"]["scores"]
    assert (last["mean"], last["steps"], last["over"]) == (20, [300], "2 seeds")
    assert of_best["mean"] == 1, "a best checkpoint has steps of its own"
    assert any(
        "2.json" in n and "at 100 steps, where others are at 300" in n for n in content["notes"]
    )


def test_methods_after_different_numbers_of_steps_are_told(tmp_path):
    a = make_scores(tmp_path / "a.json", [1.0], train_seed=1, checkpoint_steps=300)
    b = make_scores(tmp_path / "b.json", [1.0], encoder="nfm", train_seed=1, checkpoint_steps=100)
    assert report([a], tmp_path / "one")["notes"] == []
    (note,) = report([a, b], tmp_path / "two")["notes"]
    assert note == "Evaluation: scores after different numbers of steps (nature: 300; nfm: 100)"


def test_evaluations_at_other_steps_are_joined_where_all_runs_have_them():
    """Interpolated between a run's own evaluations, never beyond its first and its last."""
    at = {(10, 30): (1.0, 3.0), (20, 40): (10.0, 30.0)}
    curves = [
        Curve(
            episode_steps=np.array([], np.int64),
            episode_returns=np.array([]),
            eval_steps=np.array(steps),
            eval_returns=np.array(returns),
            steps=40,
        )
        for steps, returns in at.items()
    ]
    grid, values = common_evaluations(curves)
    assert grid.tolist() == [20, 30]
    assert values.tolist() == [[2.0, 3.0], [10.0, 20.0]]


def test_torn_and_missing_metrics_are_told(tmp_path):
    torn, missing, empty = (tmp_path / name for name in ("torn", "missing", "empty"))
    make_run(torn, seed=1)
    with (torn / "metrics.jsonl").open("a") as file:
        file.write('{"steps": 400, "episode_ret')
    (make_run(missing, seed=2) / "metrics.jsonl").unlink()
    make_run(empty, [(100, [])], seed=3)
    content = report([torn, missing, empty], tmp_path / "out")
    assert content["tables"]["training"]["scores"][0]["mean"] == 3  # (1 + 3 + 5) / 3
    notes = "\n".join(content["notes"])
    assert "torn after line 2, 1 left out" in notes
    assert "missing/metrics.jsonl: missing or empty" in notes
    assert "empty: no training episode has ended" in notes
    assert "torn after line 2" in (tmp_path / "out" / "report.md").read_text()
    assert error([missing], tmp_path).startswith("nothing to report")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "metrics.jsonl: torn after line 0, 1 left out"),
        (b"\xff\xfe\x00\n", "metrics.jsonl: line 1 cannot be read: left out"),
        (b'{"steps": 100, "episode_returns": ["a"]}\n', "line 1 holds other than numbers"),
        (b'{"steps": 100, "episode_returns": 5}\n', "line 1 holds other than numbers"),
        (b'{"steps": "x", "episode_returns": []}\n', "line 1 cannot be read: left out"),
        (b'{"steps": 100, "eval_return_mean": [1]}\n', "line 1 holds other than numbers"),
    ],
)
def test_damaged_metrics(content, message, tmp_path):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").write_bytes(content)
    assert message in error([run], tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"returns": []}, "returns: must be"),
        ({"returns": [float("nan")]}, "returns: must be"),
        ({"returns": [True]}, "returns: must be"),
        ({"protocol": None}, "no 'protocol'"),
        ({"game": "pacmann"}, "game: 'pacmann' is unknown"),
        ({"game": 5}, "no 'game'"),
        ({"checkpoint_steps": "many"}, "checkpoint_steps: 'many' is not allowed"),
        ({"train_seed": 1.5}, "train_seed: 1.5 is not allowed"),
        ({"config": {"gmae": "alien"}}, "did you mean 'game'"),
    ],
)
def test_damaged_scores(changes, message, tmp_path):
    file = make_scores(tmp_path / "s.json", [1.0])
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    assert message in error([file], tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_running_mean_equals_a_naive_twin(seed):
    rng = np.random.default_rng(seed)
    steps = np.sort(rng.integers(1, 50, size=rng.integers(1, 30)))
    returns = rng.normal(size=len(steps))
    empty = np.array([], np.int64)
    curve = Curve(
        episode_steps=steps,
        episode_returns=returns,
        eval_steps=empty,
        eval_returns=empty.astype(float),
        steps=55,
    )
    grid = np.linspace(0, 60, 25)
    for point, value in zip(grid, running_mean(curve, grid, 7), strict=True):
        before = [(s, r) for s, r in zip(steps, returns, strict=True) if s <= point]
        ended = [r for s, r in before if s > point - 7] or [r for _, r in before[-1:]]
        if point > 55 or not ended:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(np.mean(ended))


def test_curves_are_drawn_in_one_look_per_method(tmp_path):
    runs = [
        make_run(
            tmp_path / f"{name}{seed}",
            [(steps, [float(steps * gain + seed)], steps * gain / 2) for steps in (100, 200, 300)],
            seed=seed,
            encoder=name,
        )
        for name, gain in (("nature", 1), ("resnet", 3))
        for seed in (1, 2)
    ]
    files = write_report(runs, tmp_path / "out")
    assert [f.name for f in files if f.suffix == ".png"] == ["curves_ms_pacman.png"]
    image = cv2.imread(str(tmp_path / "out" / "curves_ms_pacman.png"))
    assert image is not None
    height, width, _ = image.shape
    assert width > 2 * height, "training, and evaluation beside it"
    for look in looks(["nature", "resnet"]).values():
        bgr = np.round(255 * np.array(matplotlib.colors.to_rgb(look.color)[::-1]))
        for half in (image[:, : width // 2], image[:, width // 2 :]):
            assert (np.abs(half - bgr).max(-1) <= 2).sum() > 100
    only_training = write_report([make_run(tmp_path / "x", seed=9)], tmp_path / "out2")[-1]
    image = cv2.imread(str(only_training))
    assert image is not None
    assert image.shape[1] < 2 * image.shape[0]


def test_a_shorter_run_is_averaged_over_the_steps_that_the_title_names(tmp_path, monkeypatch):
    runs = [
        make_run(tmp_path / name, [(steps, [1.0], 2.0)], encoder=name)
        for name, steps in (("nature", 1000), ("resnet", 300))
    ]
    seen = []

    def watched(curve, grid, window_steps):
        seen.append(window_steps)
        return running_mean(curve, grid, window_steps)

    monkeypatch.setattr(figures, "running_mean", watched)
    results, _ = read_results(runs)
    drawn = texts_of(tmp_path / "c.png", monkeypatch, "ms_pacman", results, ["nature", "resnet"])
    assert seen == [100, 100]
    assert "of the last 100 steps" in drawn[1][0]["title"]


def test_methods_look_different_and_known_ones_always_the_same():
    methods = ["nfm", "rim", "resnet_matched", *(str(i) for i in range(21))]
    palette = looks(methods)
    assert len({(look.color, look.linestyle) for look in palette.values()}) == len(methods)
    alone = looks(["a", "rim"])["rim"]
    assert (alone.color, alone.linestyle) == (palette["rim"].color, palette["rim"].linestyle)


def texts_of(path, monkeypatch, *arguments):
    """Everything that is written in a figure of learning curves, by axes."""
    drawn = []
    with monkeypatch.context() as patch:
        patch.setattr(figures, "_save", lambda figure, _: drawn.append(figure))
        figures.learning_curves(path, *arguments)
    (figure,) = drawn
    figure.draw_without_rendering()
    return figure.get_suptitle(), [
        {
            "title": ax.get_title(),
            "legend": ax.get_legend_handles_labels()[1],
            "top": [child.get_xlabel() for child in ax.child_axes],
            "top_scale": [child.get_xlim()[1] / ax.get_xlim()[1] for child in ax.child_axes],
            "bands": len(ax.collections),
        }
        for ax in figure.axes
    ]


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_a_figure_says_what_it_shows(seeds, tmp_path, monkeypatch):
    runs = [
        make_run(tmp_path / f"{seed}", [(100, [300.0], 9.0), (300, [400.0], 8.0)], seed=seed)
        for seed in range(1, seeds + 1)
    ]
    results, _ = read_results(runs)
    title, panels = texts_of(tmp_path / "c.png", monkeypatch, "ms_pacman", results, ["nature"])
    assert title.startswith("ms_pacman\nprotocol dopamine: sticky actions 0.25, minimal actions")
    for panel in panels:
        assert panel["top"] == ["millions of emulator frames"]
        assert panel["top_scale"] == pytest.approx([4e-6])
        assert panel["bands"] == (seeds >= 3)
        assert "human, published: 6,951.6 (above)" in panel["legend"]
        runs_told = {
            1: "nature: 1 run",
            2: "nature: 2 runs, each drawn",
            3: "nature: mean of 3 runs, 95 % bootstrap interval of the mean",
        }
        assert runs_told[seeds] in panel["legend"]
    assert "random, published: 307.3" in panels[0]["legend"], "in sight of 300 to 400"
    assert panels[1]["title"] == "evaluations in training, epsilon 0.001"


@pytest.mark.parametrize(
    ("protocol", "name", "shown"),
    [("dopamine", "Dopamine", [True, False]), ("atari100k", "SPR", [False, True])],
)
def test_public_scores_stand_in_the_panel_of_their_kind(
    protocol, name, shown, tmp_path, monkeypatch
):
    """Dopamine's are of training, those of Atari 100k of evaluations."""
    run = make_run(tmp_path / "run", [(300, [1.0], 2.0)], env={"protocol": protocol})
    results, _ = read_results([run])
    public = references("ms_pacman", vars(PROTOCOLS[protocol]))
    arguments = "ms_pacman", results, ["nature"], public
    _, panels = texts_of(tmp_path / "c.png", monkeypatch, *arguments)
    assert [name in " ".join(panel["legend"]) for panel in panels] == shown


def test_no_panel_is_empty(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", [(100, [], 9.0), (300, [], 8.0)])
    results, _ = read_results([run])
    _, panels = texts_of(tmp_path / "c.png", monkeypatch, "ms_pacman", results, ["nature"])
    assert [panel["title"] for panel in panels] == ["evaluations in training, epsilon 0.001"]
    nothing = make_run(tmp_path / "nothing", [(300, [])], game="qbert")
    out = tmp_path / "out"
    write_report([make_run(tmp_path / "x"), nothing], out)
    assert sorted(path.name for path in out.glob("*.png")) == ["curves_ms_pacman.png"]


def run(capsys, *argv):
    code = cli.main([str(word) for word in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_on_a_real_run(tmp_path, capsys, monkeypatch):
    """Trained and evaluated by the other commands, from another folder."""
    monkeypatch.chdir(tmp_path)
    flags = ["--env.max-num-frames-per-episode", "80", "--steps", "120"]
    assert run(capsys, "train", "debug", "--out", "runs/a", *flags)[0] == 0
    evaluated = run(capsys, "evaluate", "runs/a", "--episodes", 3, "--json", "runs/a/scores.json")
    assert evaluated[0] == 0
    code, out, err = run(capsys, "report", "runs/a", "--out", "report")
    assert code == 0, err
    assert "| ms_pacman | nature | 120 | 4 episodes of one run |" in out, "120 steps: 5 in 4 games"
    assert "3 episodes of one run" in out
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {
        "report.md",
        "report.json",
        "scores.csv",
        "runs.csv",
        "curves_ms_pacman.png",
        "index.html",
    }
    again = run(capsys, "report", "runs/a", "--out", "report")
    assert again == (0, out, ""), "the same numbers, over the report before"


def test_only_a_report_is_replaced_without_force(tmp_path, capsys):
    a = make_run(tmp_path / "a", [(100, [1.0]), (300, [2.0])])
    b = make_run(tmp_path / "b", [(100, [1.0]), (300, [2.0])], game="qbert")
    out = tmp_path / "out"
    assert run(capsys, "report", a, "--out", out)[0] == 0
    assert run(capsys, "report", b, "--out", out)[0] == 0
    assert not (out / "curves_ms_pacman.png").exists(), "nothing of the report before is left"
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "report.md").write_text("my own")
    (other / "curves_mine.png").write_text("my own")
    code, printed, err = run(capsys, "report", a, "--out", other)
    assert (code, printed) == (2, "")
    assert err == (
        f"rl-nfm: out: {other} is not empty and holds no report; --force writes there anyway\n"
    )
    assert (other / "report.md").read_text() == "my own"
    assert run(capsys, "report", a, "--out", other, "--force")[0] == 0
    assert (other / "curves_mine.png").read_text() == "my own"
    assert (other / "report.md").read_text().startswith("# Scores")


BAD = [
    ([], "at least one run is needed"),
    (["{tmp}/nothing"], "nothing: does not exist"),
    (["{tmp}"], "not a run (no config.yaml)"),
    (["{tmp}/text"], "text: damaged, or no JSON"),
    (["{tmp}/run", "--uot", "x"], "--out"),
    (["{tmp}/run", "--out"], "--out"),
    (["{tmp}/run", "--out", "{tmp}/text"], "out: "),
    (["{tmp}/run", "--out", "{tmp}/text/report"], "out: "),
]


@pytest.mark.parametrize(("argv", "message"), BAD, ids=[" ".join(a) or "-" for a, _ in BAD])
def test_bad_input(argv, message, tmp_path, capsys):
    make_run(tmp_path / "run")
    (tmp_path / "text").write_text("# not JSON")
    code, out, err = run(capsys, "report", *(word.format(tmp=tmp_path) for word in argv))
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert len(err.splitlines()) <= 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "text"]


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "--out" in out
    assert "rl-nfm evaluate --json" in " ".join(out.split())
