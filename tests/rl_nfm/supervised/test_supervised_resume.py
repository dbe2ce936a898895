"""A supervised trial that goes on repeats the unbroken one bit for bit, in any memory format."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from rl_nfm.supervised.loop.reporting import read_metrics
from rl_nfm.supervised.loop.seed_batch import SeedBatchTask
from rl_nfm.supervised.loop.task import LoopConfig, Task
from rl_nfm.supervised.loop.trainee import Schedule
from rl_nfm.supervised.loop.trial import Trial, load_weights

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


@pytest.mark.parametrize("task", [Convolutions, Momentum])
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
    one_of_two = LoopConfig(trials=2, learning_rate=math.inf)  # a factor of one seed's loss here
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
