"""A long run in small: everything that could grow has 50 times the chance to."""

import ctypes
import os
from pathlib import Path

import pytest
import torch

from agents.saving import checkpoint
from agents.training import train

LAPS, CAPACITY = 50, 200
SIZES = {
    "nature": {},
    "rim": {"rim": {"trunk": "nature", "hidden_size": 12, "num_rims": 3, "num_active": 2}},
}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks"),
            *("uordblks", "fordblks", "keepcost"),
        )
    )


def heap_bytes() -> int:
    """What malloc has handed out and not got back, all tensors included; 0 without glibc 2.33.

    Unlike resident memory it does not depend on which freed blocks the allocator keeps.
    """
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return 0
    ask.restype = _Mallinfo
    found = ask()
    return found.uordblks + found.hblkhd


@pytest.mark.slow
@pytest.mark.timeout(1800)  # half a minute on a core of its own
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the memory")
@pytest.mark.parametrize("encoder", SIZES)
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
        **SIZES[encoder],
    )
    trainer = train.Trainer(config, torch.device("cpu"))
    folder = train.RunFolder.create(config, tmp_path / "run")
    sizes: list[int] = []
    heaps: list[int] = []
    count = trainer.replay.count_row

    def watched():
        count()
        if trainer.replay.added_rows % trainer.replay.rows == 0:
            # A checkpoint under way holds a copy of networks, optimiser and replay, a tenth of all
            # memory here; on a busy machine it may be under way at any lap's end.
            trainer.loop.saver.wait()
            sizes.append(resident_bytes())
            heaps.append(heap_bytes())

    monkeypatch.setattr(trainer.replay, "count_row", watched)
    with folder.held():
        trainer.run(folder, None)
    # Of sequences the ring holds whole ones only, so it is a little smaller and wraps more often.
    assert trainer.replay.added_rows >= LAPS * trainer.replay.rows
    assert checkpoint.open_checkpoint(checkpoint.find(folder.path), replay=True)
    assert len(list(folder.checkpoints.iterdir())) == 2
    early, late = sorted(sizes[5:15])[5], sorted(sizes[-10:])[5]
    assert late < 1.05 * early, [round(size / 2**20) for size in sizes]
    if all(heaps):
        assert max(heaps[-10:]) < 1.01 * max(heaps[5:15]), [round(heap / 2**10) for heap in heaps]
