"""A supervised trial that goes on repeats the unbroken one bit for bit, in any memory format."""

import dataclasses
import json
import math

import pytest
import torch
from PIL import Image
from torch import nn

from rl_nfm.supervised.cli import main
from rl_nfm.supervised.loop.reporting import mean_and_deviation, read_metrics
from rl_nfm.supervised.loop.seed_batch import SeedBatchTask
from rl_nfm.supervised.loop.task import LoopConfig, Task
from rl_nfm.supervised.loop.trainee import Schedule
from rl_nfm.supervised.loop.trial import Trial, load_weights
from rl_nfm.supervised.report.command import write_report

CPU = torch.device("cpu")


class Convolutions(Task):
    """Two convolutions in channels_last, trained by a fused optimiser."""

    def build_model(self):
        layers = [nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Conv2d(5, 2, 2)]
        return nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def build_optimizer(self, model):
        return torch.optim.Adam(model.parameters(), lr=0.01, fused=True)

    def batches(self, epoch):
        return (torch.randn(4, 3, 6, 5) for _ in range(3))

    def loss(self, model, batch):
        return (model(batch) - 1).square().mean()

    def evaluate(self, model):
        return {"norm": sum(float(p.norm()) for p in model.parameters())}


class Momentum(Convolutions):
    """The same by SGD with momentum, of which torch keeps other moments."""

    def build_optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)


class Counting(Convolutions):
    """Batches that depend on what the task itself has counted."""

    def __init__(self, config, device):
        super().__init__(config, device)
        self.count = torch.zeros(())

    def batches(self, epoch):
        self.count = self.count + 1
        yield torch.full((4, 3, 6, 5), float(self.count))

    def state(self):
        return {"count": self.count}

    def load_state(self, state, meta):
        self.count = state["count"]


@pytest.mark.parametrize("task", [Convolutions, Momentum, Counting])
def test_a_trial_goes_on_bit_for_bit(tmp_path, task):
    config = LoopConfig(epochs=3)
    whole = Trial(task, config, CPU, tmp_path / "whole", 5)
    whole.run()
    Trial(task, dataclasses.replace(config, epochs=2), CPU, tmp_path / "broken", 5).run()
    broken = Trial(task, config, CPU, tmp_path / "broken", 5)
    broken.run()
    for a, b in zip(whole.model.parameters(), broken.model.parameters(), strict=True):
        assert torch.equal(a, b)


class Annealed(Convolutions):
    """A step size that falls to 0 at the last planned epoch."""

    def learning_rate(self, epoch):
        return 0.25 * (1 - epoch / self.config.epochs)


def test_a_run_prolonged_under_other_step_sizes_says_so(tmp_path, monkeypatch):
    def train(task, name, epochs):
        return Trial(task, LoopConfig(epochs=epochs), CPU, tmp_path / name, 5).run()["trial"]

    assert "learning_rates" not in train(Annealed, "whole", 4)
    assert "learning_rates" not in train(Annealed, "prolonged", 2)
    assert "learning_rates" not in train(Annealed, "prolonged", 2)
    # epochs 0 and 1 of 2, epochs 2 and 3 of 4
    expected = [[0, 0.25], [1, 0.125], [3, 0.0625]]
    assert train(Annealed, "prolonged", 4)["learning_rates"] == expected
    assert train(Annealed, "prolonged", 4)["learning_rates"] == expected
    train(Convolutions, "constant", 2)
    assert "learning_rates" not in train(Convolutions, "constant", 4)

    with monkeypatch.context() as patch:  # killed after two epochs, then resumed as it was
        patch.setattr(Trial, "_outcome", lambda self: {"trial": {}})
        patch.setattr(Trial, "_has_stopped", lambda self, history: self.epoch == 2)
        train(Annealed, "killed", 4)
    assert "learning_rates" not in train(Annealed, "killed", 4)


class ManyConvolutions(SeedBatchTask):
    """A batch of seeds, each a convolution in channels_last."""

    @property
    def schedule(self):
        return Schedule(epochs=self.config.epochs, eval_every_epochs=1)

    def build_one(self):
        return nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last)

    def build_optimizer(self, model):
        return model.make_optimizer("adam", {"weight": 0.01, "": 0.1}, weight_decay=0.1)

    def rate_factor(self, epoch):
        return 0.5**epoch

    def batches(self, epoch):
        for seed in (3 * epoch, 3 * epoch + 1):
            yield torch.randn(2, 4, 3, 5, 6, generator=torch.Generator().manual_seed(seed))

    def loss(self, model, batch):
        losses = model(batch).square().mean((1, 2, 3, 4))
        return losses * torch.tensor([self.config.learning_rate, 1.0])

    def evaluate(self, model):
        return {"validation": float(sum(p.norm() for p in model.parameters()))}

    def figures(self, model, history):
        return [{"norm": float(norm)} for norm in model.values["weight"].flatten(1).norm(dim=1)]

    def outcome(self, facts, figures):
        return {**facts, "trials": figures}

    @classmethod
    def report(cls, folder, result):
        return ""


def test_a_batch_of_seeds_goes_on_bit_for_bit_and_keeps_its_best(tmp_path):
    config = LoopConfig(epochs=4, seed=3, trials=2, learning_rate=1.0)

    def trial(name, epochs):
        changed = dataclasses.replace(config, epochs=epochs)
        return Trial(ManyConvolutions, changed, CPU, tmp_path / name, 3)

    whole = trial("whole", 4)
    outcome = whole.run()
    assert (outcome["parameters"], outcome["updates"]) == (2 * 3 * 9 + 2, 8)
    trial("broken", 2).run()
    broken = trial("broken", 4)
    assert broken.run()["trials"] == outcome["trials"]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, broken.model.state_dict()[name]), name
    norms = [row["validation"] for row in read_metrics(tmp_path / "whole")]
    assert outcome["best_epoch"] == norms.index(max(norms)) + 1
    best = trial("other", 0)
    assert load_weights(tmp_path / "whole" / "best", best.model)["epoch"] == outcome["best_epoch"]
    with pytest.raises(ValueError, match="expected 'rl-nfm supervised trial'"):
        load_weights(tmp_path / "whole" / "checkpoint", nn.Linear(2, 2))


def test_a_batch_stops_only_where_no_seed_can_go_on(tmp_path):
    one_of_two = LoopConfig(trials=2, learning_rate=1e300)  # one seed: its loss is infinite
    Trial(ManyConvolutions, one_of_two, CPU, tmp_path / "a", 0).run()

    class Lost(ManyConvolutions):
        def loss(self, model, batch):
            return super().loss(model, batch) * math.nan

    with pytest.raises(ValueError, match="the loss of epoch 1 is nan"):
        Trial(Lost, one_of_two, CPU, tmp_path / "b", 0).run()


def test_a_damaged_row_of_a_trial_costs_that_row_alone(tmp_path, caplog):
    config = LoopConfig(epochs=3)
    Trial(Momentum, config, CPU, tmp_path / "trial", 5).run()
    path = tmp_path / "trial" / "metrics.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(rows[0] + b'{"epoch": 2, \xff\n' + rows[2])
    Trial(Momentum, dataclasses.replace(config, epochs=4), CPU, tmp_path / "trial", 5).run()
    assert [row["epoch"] for row in read_metrics(tmp_path / "trial")] == [1, 3, 4]
    assert "metrics.jsonl: line 2 cannot be read: left out" in caplog.text
    assert (tmp_path / "trial" / "metrics.damaged.jsonl").exists()


@pytest.mark.parametrize("name", ["checkpoint", "best"])
def test_a_checkpoint_left_between_two_renames_is_found(tmp_path, name):
    """As by a kill after the former checkpoint was set aside and before the new one took over."""

    class Validated(Convolutions):
        def evaluate(self, model):
            return {"validation": 1.0}

    config = LoopConfig(epochs=2)
    Trial(Validated, config, CPU, tmp_path, 5).run()
    (tmp_path / name).rename(tmp_path / f".{name}.old")
    trial = Trial(Validated, dataclasses.replace(config, epochs=3), CPU, tmp_path, 5)
    assert trial.epoch == 2
    assert (tmp_path / name).is_dir()
    trial.run()
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_validation_that_is_not_finite_is_never_the_best(tmp_path):
    class Broken(Convolutions):
        def evaluate(self, model):
            self.count = getattr(self, "count", 0) + 1
            return {"validation": [0.5, math.nan, 0.25][self.count - 1], "odd": math.nan}

    trial = Trial(Broken, LoopConfig(epochs=3), CPU, tmp_path, 5)
    outcome = trial.run()
    assert outcome["trial"]["best_epoch"] == 1
    assert load_weights(tmp_path / "best", trial.model)["epoch"] == 1
    mean, _ = mean_and_deviation([outcome["trial"]["metrics"]] * 2)
    assert "odd" not in mean
    assert mean["validation"] == 0.5


def test_other_data_than_a_trial_was_trained_on_are_refused(tmp_path):
    class FromFiles(Convolutions):
        data_digest = "a"

    class FromOthers(Convolutions):
        data_digest = "b"

    outcome = Trial(FromFiles, LoopConfig(epochs=1), CPU, tmp_path, 5).run()
    assert outcome["trial"]["data_digest"] == "a"
    Trial(FromFiles, LoopConfig(epochs=1), CPU, tmp_path, 5)
    for other in (FromOthers, Convolutions):
        with pytest.raises(ValueError, match=r"data_folder: holds other data than .* was trained"):
            Trial(other, LoopConfig(epochs=1), CPU, tmp_path, 5)


def test_a_run_of_a_preset_file_goes_on_without_the_file(tmp_path, capsys):
    preset = tmp_path / "my.yaml"
    preset.write_text("{epochs: 1, train_blanks: 5, test_blanks: 6, test_examples: 10}")
    options = ["copying", "--model", "gru", "--updates-per-epoch", "2", "--preset", str(preset)]
    assert main([*options, "--out", str(tmp_path / "run")]) == 0
    preset.unlink()
    assert main(["copying", "--resume", str(tmp_path / "run"), "--epochs", "2"]) == 0
    assert f"run: {tmp_path / 'run'}" in capsys.readouterr().out


def test_data_that_moved_are_found_and_rows_go_by_the_data_not_by_their_folder(tmp_path):
    def write(folder, value):
        for split, name in (("train", "ant"), ("train", "bee"), ("test", "ant"), ("test", "bee")):
            (folder / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (value, 0, 5)).save(folder / split / name / "0.png")

    write(tmp_path / "a/raw", 3)
    write(tmp_path / "b/raw", 9)
    options = ["classification", "--epochs", "1", "--width", "2", "--model", "resnet"]
    options += ["--data", "folder", "--occlusion", "0"]
    for seed, folder in ((0, "a"), (1, "b")):
        flags = ["--data-folder", str(tmp_path / folder / "raw"), "--seed", str(seed)]
        assert main([*options, *flags, "--out", str(tmp_path / f"run{seed}")]) == 0
    runs = [tmp_path / "run0", tmp_path / "run1"]
    write_report(runs, tmp_path / "report")
    content = json.loads((tmp_path / "report/report.json").read_text())
    rows = content["supervised"]["classification"]["rows"]
    assert [row["seeds"] for row in rows] == [[0], [1]]
    (tmp_path / "a").rename(tmp_path / "moved")
    moved = ["--data-folder", str(tmp_path / "moved/raw"), "--epochs", "2"]
    assert main(["classification", "--resume", str(runs[0]), *moved]) == 0
    other = ["--data-folder", str(tmp_path / "b/raw"), "--epochs", "3"]
    with pytest.raises(ValueError, match="data_folder: holds other data"):
        main(["classification", "--resume", str(runs[0]), *other])
