"""Sweeps over supervised tasks: what they run, what they refuse, their table."""

import time

import pytest

from agents.commands import report as report_command
from agents.commands import sweep as command
from agents.sweeping.plan import parse_vary
from agents.sweeping.runs import RunProgress, progress
from agents.sweeping.supervised import SupervisedPlan
from agents.sweeping.sweep import Outcome
from rl_nfm.supervised.registry import task_entry

TINY = ["supervised:adding", "--epochs", "1"]


def plan(**changes):
    values = {"task": "stacked_digits", "models": ("cnn", "nfm"), "seeds": (0, 1), "vary": {}}
    return SupervisedPlan(**{**values, "flags": ("--epochs", "3"), **changes})


def test_runs_of_a_supervised_sweep(tmp_path):
    runs = plan(vary={"learning_rate": ("1e-3", "1e-4")}).runs(tmp_path)
    assert len(runs) == 8
    assert runs[1].name == "stacked_digits/cnn,learning_rate=1e-4/seed-0"
    begin = " ".join(runs[1].begin)
    options = "--learning_rate 1e-4 --model cnn --seed 0 --trials 1 --out"
    assert begin == f"supervised stacked_digits --epochs 3 {options} {runs[1].folder}"
    assert plan(models=()).runs(tmp_path)[0].name == "stacked_digits/nfm/seed-0"


def test_a_run_is_as_far_as_its_last_evaluation(tmp_path):
    run = plan().runs(tmp_path)[0]
    assert run.steps == 3
    assert progress(run) == RunProgress()
    (run.folder / "trial0").mkdir(parents=True)
    (run.folder / "trial0/metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"ep')
    found = progress(run)
    assert (found.steps, found.done) == (2, False)
    assert found.logged_at > time.time() - 600
    (run.folder / "result.json").touch()
    assert progress(run) == RunProgress(steps=3, done=True)


def test_what_a_model_does_not_read_is_not_varied_for_it(tmp_path):
    runs = plan(vary={"nfm.heads": ("2", "4")}, seeds=(5,)).runs(tmp_path)
    assert [run.method for run in runs] == ["cnn", "nfm,nfm.heads=2", "nfm,nfm.heads=4"]
    assert "--nfm.heads" not in runs[0].begin


def test_a_value_that_is_a_list_is_typed_in_brackets(tmp_path):
    vary = parse_vary(["train-counts=[1, 3],[1,5]", "width=8,16"])
    runs = plan(models=("cnn",), seeds=(0,), vary=vary).runs(tmp_path)
    assert len(runs) == 4
    assert runs[3].method == "cnn,train_counts=[1,5],width=16"
    assert " ".join(runs[3].begin).startswith(
        "supervised stacked_digits --epochs 3 --train_counts 1 5 --width 16 --model cnn"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ("cnn", "rn")}, r"model: 'rn' is unknown.* \(allowed: cnn, nfm, cnn_matched\)"),
        ({"flags": ("--epochs", "-1")}, "epochs: -1 is not allowed"),
        ({"flags": ("--epoch", "1")}, "--epoch: unknown"),
        ({"vary": {"width": ("8", "0")}}, "width: 0 is not allowed"),
        ({"models": ("cnn",), "vary": {"nfm.heads": ("2",)}}, r"heads: no model of .* \(cnn\)"),
        ({"models": ("cnn",), "flags": ("--nfm.heads", "2")}, "nfm: has no effect on model 'cnn'"),
    ],
)
def test_what_the_task_does_not_take_is_refused_before_anything_starts(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message) as told:
        plan(**changes).runs(tmp_path)
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


def test_there_is_no_replay_to_keep(tmp_path):
    with pytest.raises(ValueError, match="keep_replay: has no effect on supervised tasks"):
        command.main([*TINY, "--keep-replay", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


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
    told = r"flags: --epochs 4 cannot change within a sweep; .* has (none|--)"
    with pytest.raises(ValueError, match=told):
        plan(flags=("--epochs", "4")).save(tmp_path)
    with pytest.raises(ValueError, match="supervised: adding cannot change"):
        plan(task="adding").save(tmp_path)


@pytest.mark.parametrize("flag", [["--preset", "paper"], ["--preset=paper"]])
def test_a_preset_of_the_task_is_passed_on(flag, tmp_path, monkeypatch):
    begun = []

    def note(work, *_, **__):
        begun.extend(work.begin())
        return Outcome(failed={}, signal=None)

    monkeypatch.setattr(command, "run_all", note)
    assert (
        command.main(["supervised:copying", *flag, "--seeds", "0..1", "--out", str(tmp_path)]) == 0
    )
    assert [run.begin[2 : 2 + len(flag)] for run in begun] == [tuple(flag)] * 2
    assert begun[0].steps == task_entry("copying").presets["paper"].epochs


@pytest.mark.parametrize("flags", [["--models", "lsmt"], ["--vary", "hidden_size=0,4"]])
def test_a_refused_sweep_leaves_nothing(flags, tmp_path):
    out = tmp_path / "sweep"
    for kept in (False, True):
        if kept:
            out.mkdir()
            (out / "mine.txt").touch()
        with pytest.raises(ValueError, match=r"lsmt|hidden_size: 0"):
            command.main([*TINY, *flags, "--out", str(out)])
        assert out.exists() == kept
    assert (out / "mine.txt").exists()


def test_options_of_agents_are_refused(tmp_path):
    with pytest.raises(ValueError, match="games: not allowed with a supervised task"):
        command.main([*TINY, "--out", str(tmp_path), "--games", "pong"])
    with pytest.raises(ValueError, match="models: not allowed with agents"):
        command.main(["debug", "--out", str(tmp_path), "--models", "cnn"])


def test_a_report_of_agents_and_supervised_tasks_together_is_refused(tmp_path):
    sweep, agent = tmp_path / "sweep", tmp_path / "agent"
    for folder in (sweep, agent):
        folder.mkdir()
    (sweep / "sweep.yaml").write_text("supervised: digits\n")
    with pytest.raises(ValueError, match=r"path: .*agent holds agents; report them apart"):
        report_command.main([str(sweep), str(agent)])
    with pytest.raises(ValueError, match="force: has no effect on supervised tasks"):
        report_command.main([str(sweep), "--force"])
    with pytest.raises(ValueError, match=r"no supervised run in .*sweep$"):
        report_command.main([str(sweep)])


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
    text = capsys.readouterr().out
    assert "| 0, 1 |" in text
    assert "| *baseline: nothing learned* |  |  | 0.1667 | 0.1667 |  |" in text
    assert (tmp_path / "report/curves_adding.png").is_file()


@pytest.mark.parametrize(("task", "preset"), [("arithmetic", "small"), ("sort_of_clevr", "paper")])
def test_a_run_trains_one_seed_whatever_the_preset_has(task, preset, tmp_path):
    """Presets of several trials would have run "seed-0" train seed 1 too, which "seed-1" trains."""
    asked = SupervisedPlan(
        task=task, models=(), seeds=(0, 1), vary={}, flags=("--preset", preset)
    ).runs(tmp_path)
    entry = task_entry(task)
    assert entry.presets[preset].trials > 1
    assert [entry.parse(run.begin[2:]).trials for run in asked] == [1, 1]
    assert [entry.parse(run.begin[2:]).seed for run in asked] == [0, 1]
