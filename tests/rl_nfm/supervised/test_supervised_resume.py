"""A supervised trial that goes on repeats the unbroken one bit for bit, in any memory format."""

import dataclasses

import pytest
import torch
from torch import nn

from rl_nfm.supervised.loop.reporting import read_metrics
from rl_nfm.supervised.loop.seed_batch import SeedBatch
from rl_nfm.supervised.loop.task import LoopConfig, Task
from rl_nfm.supervised.loop.trial import Trial

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


def test_a_batch_of_seeds_goes_on_bit_for_bit(tmp_path):
    def build():
        return nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last)

    def make():
        return SeedBatch(build, [3, 8], learning_rates={"": 0.01}, weight_decay=0.1)

    def update(batch, seed):
        images = torch.randn(2, 4, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
        batch.update(batch(images).square().mean((1, 2, 3, 4)))

    whole, restored = make(), make()
    update(whole, 0)
    whole.save(tmp_path / "a", {}, {})
    restored.load(tmp_path / "a")
    for seed in (1, 2):
        update(whole, seed)
        update(restored, seed)
    for name, value in whole.parameters.items():
        assert torch.equal(value, restored.parameters[name]), name


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
