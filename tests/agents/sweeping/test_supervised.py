"""Sweeps over supervised tasks: what they run, what they refuse, their table."""

import json

import pytest

from agents.commands import report as report_command
from agents.commands import sweep as command
from agents.sweeping.supervised import SupervisedPlan

TINY = ["supervised:adding", "--epochs", "1"]


def plan(**changes):
    values = {"task": "stacked_digits", "models": ("cnn", "nfm"), "seeds": (0, 1), "vary": {}}
    return SupervisedPlan(**{**values, "flags": ("--epochs", "3"), **changes})


def test_runs_of_a_supervised_sweep(tmp_path):
    runs = plan(vary={"learning_rate": ("1e-3", "1e-4")}).runs(tmp_path)
    assert len(runs) == 8
    assert runs[1].name == "stacked_digits/cnn,learning_rate=1e-4/seed-0"
    begin = " ".join(runs[1].begin)
    assert begin.startswith("supervised stacked_digits --epochs 3 --seed 0 --out ")
    assert begin.endswith("--learning_rate 1e-4 --model cnn")
    assert plan(models=()).runs(tmp_path)[0].name == "stacked_digits/default/seed-0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "stacked_digit"}, "did you mean 'stacked_digits'"),
        ({"seeds": (1, 1)}, "seeds: 1 is given twice"),
        ({"models": ("cnn", "cnn")}, "models: cnn is given twice"),
        ({"flags": ("--seed", "3")}, "seed: not an option of a sweep"),
        ({"vary": {"out": ("x",)}}, "out: not an option of a sweep"),
    ],
)
def test_wrong_requests_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan(**changes)


def test_other_flags_or_another_task_are_refused_in_the_same_folder(tmp_path):
    plan().save(tmp_path)
    plan(seeds=(2,)).save(tmp_path)
    with pytest.raises(ValueError, match=r"flags: .* cannot change within a sweep"):
        plan(flags=("--epochs", "4")).save(tmp_path)
    with pytest.raises(ValueError, match="supervised: adding cannot change"):
        plan(task="adding").save(tmp_path)


def test_options_of_agents_are_refused(tmp_path):
    with pytest.raises(ValueError, match="games: not allowed with a supervised task"):
        command.main([*TINY, "--out", str(tmp_path), "--games", "pong"])
    with pytest.raises(ValueError, match="models: not allowed with agents"):
        command.main(["debug", "--out", str(tmp_path), "--models", "cnn"])


def write_result(folder, seed, accuracy):
    run = folder / f"seed-{seed}"
    run.mkdir(parents=True)
    row = {"seed": seed, "parameters": 1234, "metrics": {"accuracy": accuracy}}
    (run / "result.json").write_text(json.dumps({"task": "digits", "trials": [row]}))


def test_the_table_is_mean_and_deviation_over_seeds(tmp_path, capsys):
    sweep = tmp_path / "sweep"
    for seed, accuracy in enumerate((0.5, 0.7, 0.9)):
        write_result(sweep / "digits/cnn", seed, accuracy)
    write_result(sweep / "digits/nfm", 0, 0.8)
    (sweep / "sweep.yaml").write_text("supervised: digits\n")
    assert report_command.main([str(sweep), "--out", str(tmp_path / "report")]) == 0
    text = capsys.readouterr().out
    assert "| cnn | 3 | 1,234 | 0.7000 ± 0.2000 |" in text
    assert "| nfm | 1 | 1,234 | 0.8000 |" in text
    (sweep / "digits/cnn/seed-0/result.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        report_command.main([str(sweep), "--out", str(tmp_path / "report")])


@pytest.mark.slow
def test_a_supervised_sweep_runs_and_is_reported(tmp_path, capsys):
    words = [*TINY, "--out", str(tmp_path / "sweep"), "--models", "lstm", "--seeds", "0", "1"]
    assert command.main(words) == 0
    results = sorted((tmp_path / "sweep").glob("adding/lstm/seed-*/result.json"))
    assert len(results) == 2
    before = [path.stat().st_mtime_ns for path in results]
    assert command.main(words) == 0
    assert [path.stat().st_mtime_ns for path in results] == before
    assert report_command.main([str(tmp_path / "sweep"), "--out", str(tmp_path / "report")]) == 0
    assert "| lstm | 2 |" in capsys.readouterr().out
