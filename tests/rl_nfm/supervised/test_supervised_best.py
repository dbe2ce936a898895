"""The best validation: kept, reported, and stopped for; trained weights evaluated again."""

import json

import pytest
import torch

from rl_nfm.supervised.cli import main
from rl_nfm.supervised.loop.evaluate import load_trained
from rl_nfm.supervised.loop.reporting import read_metrics
from rl_nfm.supervised.loop.trial import Trial
from rl_nfm.supervised.registry import task_entry, task_names
from rl_nfm.supervised.tasks.adding import AddingTask
from rl_nfm.support.storage import load_meta

TINY = ["--model", "gru", "--hidden-size", "7", "--updates-per-epoch", "3", "--batch-size", "5"]
TINY += ["--train-steps", "6", "--test-steps", "9", "--test-examples", "11", "--device", "cpu"]


@pytest.fixture
def scripted(monkeypatch):
    """Validation errors of the evaluations, one after the other; the real figures stay."""
    real, errors = AddingTask.evaluate, []

    def evaluate(self, model):
        figures = real(self, model)
        return {**figures, "validation": errors.pop(0)} if errors else figures

    monkeypatch.setattr(AddingTask, "evaluate", evaluate)
    return errors


def run(folder, *flags):
    assert main(["adding", *TINY, "--out", str(folder), *flags]) == 0
    return json.loads((folder / "result.json").read_text())["trials"][0]


def test_the_best_validation_is_reported_and_its_weights_are_kept(tmp_path, scripted, capsys):
    scripted += [0.5, 0.2, 0.2, 0.3]
    trial = run(tmp_path / "a", "--epochs", "4")
    rows = read_metrics(tmp_path / "a" / "trial0")
    assert trial["best_epoch"] == 2, "the first of equal ones"
    assert trial["metrics"] == {k: v for k, v in rows[1].items() if k != "epoch"}
    best, last = (load_trained(tmp_path / "a", weights=weights) for weights in ("best", "last"))
    assert (best.epoch, last.epoch) == (2, 4)
    assert best.evaluate()["mse_9"] == rows[1]["mse_9"]
    assert last.evaluate()["mse_9"] == rows[3]["mse_9"] != rows[1]["mse_9"]
    capsys.readouterr()
    file = tmp_path / "figures.json"
    assert main(["evaluate", str(tmp_path / "a"), "--json", str(file)]) == 0
    assert "best weights, of epoch 2" in capsys.readouterr().out
    assert json.loads(file.read_text())["mean"]["mse_9"] == rows[1]["mse_9"]


def test_the_test_at_the_end_is_of_the_best_weights(tmp_path, scripted, monkeypatch):
    scripted += [0.5, 0.2, 0.3]
    monkeypatch.setattr(
        AddingTask, "test", lambda self, model: {"again": self.evaluate(model)["mse_9"]}
    )
    trial = run(tmp_path / "a", "--epochs", "3")
    rows = read_metrics(tmp_path / "a" / "trial0")
    assert trial["metrics"]["again"] == rows[1]["mse_9"] != rows[2]["mse_9"]


def test_training_stops_when_patience_is_over_and_goes_on_with_more_of_it(tmp_path, scripted):
    scripted += [0.5, 0.2, 0.3, 0.3]
    trial = run(tmp_path / "a", "--epochs", "9", "--patience-epochs", "2")
    assert (trial["epochs"], trial["best_epoch"]) == (4, 2)
    whole = [*read_metrics(tmp_path / "a" / "trial0")]
    assert main(["adding", "--resume", str(tmp_path / "a")]) == 0
    assert read_metrics(tmp_path / "a" / "trial0") == whole, "patience is still over"
    scripted += [0.1, 0.4, 0.4, 0.4]
    assert main(["adding", "--resume", str(tmp_path / "a"), "--patience-epochs", "3"]) == 0
    trial = json.loads((tmp_path / "a" / "result.json").read_text())["trials"][0]
    assert (trial["epochs"], trial["best_epoch"]) == (8, 5)


def test_patience_counts_where_there_was_an_evaluation(tmp_path, scripted):
    """The last epoch of a run that stops is evaluated, and its weights are there."""
    scripted += [0.5, 0.2, 0.3, 0.3]
    flags = ["--epochs", "40", "--eval-every-epochs", "4", "--patience-epochs", "5"]
    trial = run(tmp_path / "a", *flags)
    assert (trial["epochs"], trial["best_epoch"]) == (16, 8)
    assert load_trained(tmp_path / "a", weights="last").epoch == 16
    scripted += [0.5, 0.2, 0.3]
    flags[-1] = "1"
    assert run(tmp_path / "b", *flags)["epochs"] == 12, "the first that is no better"


def test_a_run_whose_metrics_are_lost_keeps_its_best_epoch(tmp_path, scripted, capsys):
    scripted += [0.5, 0.2, 0.3]
    before = run(tmp_path / "a", "--epochs", "3")
    (tmp_path / "a" / "trial0" / "metrics.jsonl").unlink()
    assert main(["adding", "--resume", str(tmp_path / "a")]) == 0
    after = json.loads((tmp_path / "a" / "result.json").read_text())["trials"][0]
    assert "has lost metrics" in capsys.readouterr().out
    assert after == before
    (tmp_path / "a" / "trial0" / "metrics.jsonl").unlink()
    scripted += [0.4, 0.4]
    assert main(["adding", "--resume", str(tmp_path / "a"), "--epochs", "5"]) == 0
    longer = json.loads((tmp_path / "a" / "result.json").read_text())["trials"][0]
    assert (longer["best_epoch"], longer["epochs"]) == (2, 5), "still the best"
    assert longer["metrics"] == before["metrics"]


def test_the_python_loader_checks_as_the_command_does(tmp_path):
    run(tmp_path / "a", "--epochs", "1")
    for changes, message in [
        ({"test_steps": -5}, "test_steps: -5 is not allowed"),
        ({"test_stepz": 3}, "test_stepz"),
        ({"weights": "bst"}, "weights: 'bst' is not allowed"),
        ({"hidden_size": 8}, "hidden_size: cannot change in an evaluation"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_trained(tmp_path / "a", **changes)


def test_figures_that_are_not_finite_are_null_in_a_file(tmp_path, monkeypatch):
    run(tmp_path / "a", "--epochs", "1")
    monkeypatch.setattr(AddingTask, "evaluate", lambda *_: {"mse_9": float("nan"), "mse_1": 1.0})
    file = tmp_path / "figures.json"
    assert main(["evaluate", str(tmp_path / "a"), "--json", str(file)]) == 0
    assert "NaN" not in file.read_text()
    assert json.loads(file.read_text())["metrics"] == [{"mse_9": None, "mse_1": 1.0}]


def test_a_killed_run_keeps_the_same_best(tmp_path, scripted):
    scripted += [0.5, 0.2, 0.3]
    run(tmp_path / "whole", "--epochs", "3")
    scripted += [0.5]
    run(tmp_path / "broken", "--epochs", "1")
    scripted += [0.2, 0.3]
    assert main(["adding", "--resume", str(tmp_path / "broken"), "--epochs", "3"]) == 0
    one, two = (load_trained(tmp_path / name) for name in ("whole", "broken"))
    assert one.epoch == two.epoch == 2
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[name])


def test_a_best_that_no_checkpoint_followed_is_trained_again(tmp_path, scripted, monkeypatch):
    """On a GPU the second try need not give the same numbers."""
    scripted += [0.5]
    run(tmp_path / "a", "--epochs", "1")
    scripted += [0.1]
    with monkeypatch.context() as patch:
        patch.setattr(Trial, "_save", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(["adding", "--resume", str(tmp_path / "a"), "--epochs", "3"])
    assert load_trained(tmp_path / "a").epoch == 2
    scripted += [0.2, 0.3]
    assert main(["adding", "--resume", str(tmp_path / "a"), "--epochs", "3"]) == 0
    trial = json.loads((tmp_path / "a" / "result.json").read_text())["trials"][0]
    assert (trial["best_epoch"], trial["metrics"]["validation"]) == (2, 0.2)
    meta = load_meta(tmp_path / "a" / "trial0" / "best", kind="rl-nfm supervised trial")
    assert meta["metrics"]["validation"] == 0.2, "the weights are those of the second try"


def test_an_evaluation_changes_what_is_tested_on_and_nothing_else(tmp_path, capsys):
    run(tmp_path / "a", "--epochs", "1")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "a"), "--test-steps", "14"]) == 0
    said = capsys.readouterr().out
    assert "mse_14" in said
    assert "mse_9" not in said
    for flags in (["--help"], ["--test-steps", "14", "-h"]):
        assert main(["evaluate", str(tmp_path / "a"), *flags]) == 0
        said = capsys.readouterr().out
        assert said.startswith("usage: rl-nfm supervised evaluate RUN")
        assert "\n  --test-steps 9\n" in said
        assert "--learning-rate" not in said
    assert "mse_17" in load_trained(tmp_path / "a", test_steps=17).evaluate()
    for flags, message in [
        (["--learning-rate", "1"], r"learning_rate: cannot change .*device, test_steps"),
        (["--hidden-size", "8"], "hidden_size: cannot change in an evaluation"),
        (["--test-steps", "1"], "test_steps: 1 is not allowed"),
        (["--trial", "3"], "no trial 3 in it .it has 1."),
        (["--weights", "worst"], "--weights: 'worst' is not allowed"),
    ]:
        with pytest.raises(ValueError, match=message):
            main(["evaluate", str(tmp_path / "a"), *flags])
    with pytest.raises(ValueError, match=r"run: .*nowhere holds no supervised run"):
        main(["evaluate", str(tmp_path / "nowhere")])


def test_options_free_in_evaluation_are_options(tmp_path):
    for name in task_names():
        entry = task_entry(name)
        if entry.task is not None:
            options = vars(next(iter(entry.presets.values())))
            assert set(entry.task.free_in_evaluation) <= set(options), name


def test_classification_holds_out_only_when_asked(tmp_path):
    words = ["classification", "--model", "resnet", "--width", "2", "--epochs", "2"]
    words += ["--occlusion", "2"]
    assert main([*words, "--out", str(tmp_path / "a"), "--validation", "0.25"]) == 0
    trial = json.loads((tmp_path / "a" / "result.json").read_text())["trials"][0]
    assert 0 <= trial["metrics"]["validation"] <= 1
    boxes = load_trained(tmp_path / "a", occlusion=8).evaluate()  # the whole image
    assert boxes["accuracy"] != boxes["accuracy_occluded"]
    with pytest.raises(ValueError, match="patience_epochs: has no effect without validation"):
        main([*words, "--patience-epochs", "1", "--out", str(tmp_path / "b")])


def test_the_run_may_stand_behind_the_options(tmp_path, monkeypatch):
    run(tmp_path / "a", "--epochs", "1")
    monkeypatch.chdir(tmp_path)
    for words in (["--json", "x.json", "a"], ["a", "--json=x.json"], ["--json=x.json", "a"]):
        assert main(["evaluate", "--test-steps", "14", *words]) == 0
        (tmp_path / "x.json").unlink()
    (tmp_path / "cpu").mkdir()  # a value of an option may be the name of a folder
    assert main(["evaluate", "--device", "cpu", "a"]) == 0
