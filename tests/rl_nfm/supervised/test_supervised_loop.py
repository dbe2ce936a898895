import json
import re
from pathlib import Path

import pytest
import torch

from agents import cli
from rl_nfm.supervised.cli import main
from rl_nfm.supervised.loop import options
from rl_nfm.supervised.loop.reporting import mean_and_deviation, read_metrics
from rl_nfm.supervised.registry import register_task, task_entry, task_names
from rl_nfm.supervised.tasks import adding

TINY = [
    "--model",
    "gru",
    "--hidden-size",
    "7",
    "--updates-per-epoch",
    "3",
    "--batch-size",
    "5",
    "--train-steps",
    "6",
]
TINY += ["--test-steps", "9", "--test-examples", "11", "--device", "cpu"]


def run(tmp_path, name, *flags):
    out = tmp_path / name
    assert main(["adding", *TINY, "--out", str(out), *flags]) == 0
    return json.loads((out / "result.json").read_text())


def test_result_holds_what_is_needed_to_repeat_the_run(tmp_path):
    result = run(tmp_path, "a", "--trials", "2", "--seed", "3", "--json", str(tmp_path / "j.json"))
    assert [row["seed"] for row in result["trials"]] == [3, 4]
    assert result["config"]["hidden_size"] == 7
    assert result["versions"]["torch"] == torch.__version__
    assert result["trials"][0]["updates"] == 30 * 3  # the small preset's 30 epochs of 3 batches
    assert json.loads((tmp_path / "j.json").read_text()) == result
    one, two = (row["metrics"]["mse_6"] for row in result["trials"])
    assert result["mean"]["mse_6"] == pytest.approx((one + two) / 2)
    assert one != two


def test_resumed_run_repeats_an_unbroken_one_bit_for_bit(tmp_path):
    whole = run(tmp_path, "whole", "--epochs", "4", "--dropout", "0.5")
    run(tmp_path, "broken", "--epochs", "2", "--dropout", "0.5")
    folder = tmp_path / "broken"
    # Rows after the checkpoint, as a kill between the two writes leaves them, must not stay.
    with (folder / "trial0" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "mse_6": 9.0}\n{"epo')
    assert main(["adding", "--resume", str(folder), "--epochs", "4"]) == 0
    resumed = json.loads((folder / "result.json").read_text())
    assert resumed["trials"][0]["metrics"] == whole["trials"][0]["metrics"]
    rows = read_metrics(folder / "trial0")
    assert rows == read_metrics(tmp_path / "whole" / "trial0")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]


def test_evaluation_is_due_every_n_epochs_and_at_the_end(tmp_path):
    run(tmp_path, "a", "--epochs", "5", "--eval-every-epochs", "2")
    assert [row["epoch"] for row in read_metrics(tmp_path / "a" / "trial0")] == [2, 4, 5]


def test_the_training_loss_is_the_mean_over_the_batches_of_an_epoch(tmp_path, monkeypatch):
    losses = iter([1.0, 2.0, 6.0, 3.0, 3.0, 9.0])

    def loss(self, model, batch):
        return 0.0 * sum(p.sum() for p in model.parameters()) + next(losses)

    monkeypatch.setattr(adding.AddingTask, "loss", loss)
    run(tmp_path, "a", "--epochs", "2")
    assert [row["train_loss"] for row in read_metrics(tmp_path / "a" / "trial0")] == [3.0, 5.0]


def test_zero_epochs_report_the_untrained_model(tmp_path):
    result = run(tmp_path, "a", "--epochs", "0")
    assert result["trials"][0]["updates"] == 0
    assert result["mean"]["mse_6"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hidden-sizes", "3"], "hidden-sizes"),
        (["--hidden-size", "0"], "hidden_size: 0"),
        (["--preset", "huge"], "preset: 'huge' is unknown .allowed: small, paper"),
        (["--preset"], "need a value"),
        (["--num-rims", "3", "--model", "lstm"], "num_rims: has no effect on model 'lstm'"),
        (["--resume", "nowhere"], "nowhere holds no supervised run"),
        (["--learning-rate", "1e30", "--epochs", "2"], "loss of epoch . is (nan|inf)"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    tiny = [] if "--resume" in flags else TINY
    with pytest.raises(ValueError, match=message):
        main(["adding", *tiny, *flags])


def test_unknown_task_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'adding'"):
        main(["adding_"])
    with pytest.raises(ValueError, match="already registered"):
        register_task(task_entry("adding"))


def test_a_run_is_not_overwritten_and_not_resumed_differently(tmp_path):
    run(tmp_path, "a", "--epochs", "1")
    with pytest.raises(ValueError, match="already holds a run; continue it with --resume"):
        run(tmp_path, "a", "--epochs", "1")
    with pytest.raises(ValueError, match="hidden_size: 8 differs from the resumed run's 7"):
        main(["adding", "--resume", str(tmp_path / "a"), "--hidden-size", "8"])
    with pytest.raises(ValueError, match=r"out: .*elsewhere.* differs from the resumed run's"):
        main(["adding", "--resume", str(tmp_path / "a"), "--out", str(tmp_path / "elsewhere")])
    content = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text("{")
    for words in (["adding", "--resume", str(tmp_path / "a")], ["evaluate", str(tmp_path / "a")]):
        with pytest.raises(ValueError, match=r"a/config\.json is damaged, or of no supervised run"):
            main(words)
    (tmp_path / "a" / "config.json").write_text(json.dumps({**content, "task": "copying"}))
    with pytest.raises(ValueError, match="a run of task 'copying', not 'adding'"):
        main(["adding", "--resume", str(tmp_path / "a")])


def test_a_run_never_claims_fewer_epochs_than_it_has_trained(tmp_path):
    run(tmp_path, "a", "--epochs", "2")
    before = (tmp_path / "a" / "result.json").read_text()
    with pytest.raises(ValueError, match=r"epochs: 1 is not allowed: .* trained for 2"):
        main(["adding", "--resume", str(tmp_path / "a"), "--epochs", "1"])
    assert (tmp_path / "a" / "result.json").read_text() == before
    assert json.loads((tmp_path / "a" / "config.json").read_text())["config"]["epochs"] == 2


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_told_in_one_line(out, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    assert cli.main(["supervised", "adding", *TINY, "--out", str(tmp_path / out)]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"rl-nfm: out: .*file.* cannot be made \((File exists|Not a directory)\)\n", error
    )
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("json_file", [".", "missing/x.json"])
def test_a_result_that_cannot_be_written_is_told_before_the_work(json_file, tmp_path):
    with pytest.raises(ValueError, match=r"^json: "):
        run(tmp_path, "a", "--json", str(tmp_path / json_file))
    assert not list(tmp_path.iterdir())


def test_damaged_checkpoint_is_refused(tmp_path):
    run(tmp_path, "a", "--epochs", "1")
    weights = tmp_path / "a" / "trial0" / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"model\.safetensors: truncated or changed"):
        main(["adding", "--resume", str(tmp_path / "a"), "--epochs", "2"])


def test_help_names_every_task_and_option(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in task_names())
    with pytest.raises(SystemExit) as stop:
        main(["adding", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--train-steps" in text
    assert "Length of a training sequence" in text


def test_mean_and_deviation():
    # mean (1 + 2 + 6) / 3 = 3; squared deviations 4 + 1 + 9 = 14, / 2 = 7
    mean, deviation = mean_and_deviation([{"a": 1.0}, {"a": 2.0, "b": 1.0}, {"a": 6.0}])
    assert mean == {"a": 3.0}
    assert deviation["a"] == pytest.approx(7**0.5)
    assert mean_and_deviation([{"a": 1.0}]) == ({"a": 1.0}, {})


def test_adding_targets_are_the_sums_of_the_marked_numbers():
    inputs, targets = adding.make_sequences(64, 7)
    assert inputs.shape == (64, 7, 2)
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        marked = [index for index, (_, mark) in enumerate(row) if mark == 1.0]
        assert len(marked) == 2
        assert marked[0] < 3 <= marked[1]  # one in each half
        assert target == pytest.approx(sum(row[index][0] for index in marked))
    assert (targets.var() - adding.BASELINE_MSE).abs() < 0.1


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options.time, "strftime", lambda form: "20260102-030405")
    config = adding.PRESETS["small"]
    first = options.run_folder(config, task="adding")
    assert first == Path(f"runs/supervised/adding-{config.model}-20260102-030405")
    options.write_config(first, config, task="adding")
    assert options.run_folder(config, task="adding") == Path(f"{first}-1")
    with pytest.raises(ValueError, match="already holds a run"):  # both had looked before
        options.write_config(first, config, task="adding")
