"""A long run in small: everything that could grow has 50 times the chance to."""

import os
from pathlib import Path

import pytest
import torch

from agents.saving import checkpoint
from agents.training import train

LAPS, CAPACITY = 50, 200


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the memory")
@pytest.mark.parametrize("encoder", ["nature", "rim"])
def test_memory_stays_flat_while_the_replay_wraps_50_times(tmp_path, faults, monkeypatch, encoder):
    """Updates, evaluations, checkpoints by the thread, metrics and curves at every lap."""
    every = {
        "log_every_steps": 40,
        "eval_every_steps": CAPACITY,
        "checkpoint_every_steps": CAPACITY // 2,
    }
    config = faults.tiny(
        encoder=encoder,
        steps=LAPS * CAPACITY,
        replay={"capacity_steps": CAPACITY, "sequence_steps": 4 if encoder == "rim" else 1},
        learner={"steps_per_update": 16},
        run=every,
    )
    trainer = train.Trainer(config, torch.device("cpu"))
    folder = train.RunFolder.create(config, tmp_path / "run")
    sizes: list[int] = []
    count = trainer.replay.count_row

    def watched():
        count()
        if trainer.replay.added_rows % trainer.replay.rows == 0:
            sizes.append(resident_bytes())

    monkeypatch.setattr(trainer.replay, "count_row", watched)
    with folder.held():
        trainer.run(folder, None)
    assert trainer.replay.added_rows == LAPS * trainer.replay.rows
    assert checkpoint.open_checkpoint(checkpoint.find(folder.path), replay=True)
    assert len(list(folder.checkpoints.iterdir())) == 2
    early, late = sorted(sizes[5:15])[5], sorted(sizes[-10:])[5]
    assert late < 1.05 * early, [round(size / 2**20) for size in sizes]
