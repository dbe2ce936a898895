"""Checkpoints that a thread writes beside the training."""

import dataclasses
import threading

import pytest
import torch

from agents.saving import checkpoint, writer
from agents.saving.run_folder import read_metrics
from agents.training import train
from rl_nfm.support import storage

CPU = torch.device("cpu")


def untimed(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    timed = ("time/", "steps_per_second", "updates_per_second")
    return [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines]


def everything(folder):
    """All tensors of a run's last checkpoint, by file and name."""
    found = checkpoint.open_checkpoint(checkpoint.find(folder), replay=True)
    stems = [name.removesuffix(".safetensors") for name in found.meta.files]
    return {(stem, k): v for stem in stems for k, v in found.tensors(stem).items()}


@pytest.fixture
def trainer(tmp_path, faults):
    """One that has trained to its end, and its folder."""
    made = train.Trainer(faults.tiny(), CPU)
    folder = train.RunFolder.create(made.config, tmp_path / "run")
    with folder.held():
        made.run(folder, None)
    return made


def test_a_checkpoint_holds_the_moment_it_was_asked_for(trainer, monkeypatch):
    """The thread writes only after training has gone on, and has wrapped the ring."""
    saver, counters = trainer.loop.saver, dataclasses.asdict(trainer.counters)
    saver.save({**counters, "steps": 97}, wait=True)
    expected = everything(trainer.loop.recorder.folder.path)
    goes_on = threading.Event()
    write = storage.Draft.write

    def late(draft, stem, tensors):
        assert goes_on.wait(60)
        write(draft, stem, tensors)

    monkeypatch.setattr(storage.Draft, "write", late)
    saver.save({**counters, "steps": 98})
    for value in [*trainer.learner.online.state_dict().values(), *trainer.replay.state().values()]:
        value.zero_()
    for store in trainer.replay.row_stores.values():
        store.fill_(1)
    torch.rand(5)
    assert checkpoint.find(trainer.loop.recorder.folder.path).name == "step_000000097"
    goes_on.set()
    saver.wait()
    assert checkpoint.find(trainer.loop.recorder.folder.path).name == "step_000000098"
    found = everything(trainer.loop.recorder.folder.path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_metrics_do_not_depend_on_who_writes(tmp_path, faults, monkeypatch):
    config = faults.tiny(head={"noisy": True})
    beside = train.train(config, out=tmp_path / "beside")
    monkeypatch.setattr(writer, "free_bytes", lambda device: 0)  # no room for a copy
    before = train.train(config, out=tmp_path / "before")
    assert untimed(beside) == untimed(before)
    a, b = everything(beside), everything(before)
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("boom")])
def test_an_error_in_the_thread_ends_the_run_in_one_line(tmp_path, faults, monkeypatch, error):
    write, count = storage.Draft.write, 0

    def failing(draft, stem, tensors):
        nonlocal count
        count += stem == "network"
        if count == 2:
            raise error
        write(draft, stem, tensors)

    monkeypatch.setattr(storage.Draft, "write", failing)
    config = faults.tiny(steps=100_000, run={"eval_episodes": 0, "checkpoint_every_steps": 160})
    reason = r"^checkpoint: cannot be written \(.*(error|boom)"
    with pytest.raises(ValueError, match=reason) as told:
        train.train(config, out=tmp_path / "run")
    assert "\n" not in str(told.value)
    kept = checkpoint.find(tmp_path / "run")
    assert str(told.value).endswith(f"; the one before is whole: {kept}")
    assert checkpoint.open_checkpoint(kept, replay=True).steps == 160
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["steps"] < 480, "at once"


def test_a_run_ends_only_when_its_checkpoint_is_written(tmp_path, faults, monkeypatch):
    write = storage.Draft.write

    def slow(draft, stem, tensors):
        threading.Event().wait(0.1)
        write(draft, stem, tensors)

    monkeypatch.setattr(storage.Draft, "write", slow)
    run = train.train(faults.tiny(run={"eval_episodes": 0}), out=tmp_path / "run")
    assert checkpoint.find(run).name == "step_000000096"
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]


def test_weights_that_are_not_finite_never_replace_good_ones(trainer):
    kept = checkpoint.find(trainer.loop.recorder.folder.path)
    with torch.no_grad():
        next(trainer.learner.online.parameters()).view(-1)[0] = float("nan")
    counters = {**dataclasses.asdict(trainer.counters), "steps": 200}
    with pytest.raises(ValueError, match=r"not finite at step 200: not saved; the one before is"):
        trainer.loop.saver.save(counters)
    with pytest.raises(ValueError, match="not finite"):
        trainer.loop.saver.save_best(counters, 1e9)
    assert checkpoint.find(trainer.loop.recorder.folder.path) == kept
    assert checkpoint.open_checkpoint(kept, replay=True).steps == 96


def test_the_best_is_that_on_disk(trainer):
    """Killed after an evaluation of 1.00 and before a checkpoint, a run does not remember it."""
    saver, counters = trainer.loop.saver, dataclasses.asdict(trainer.counters)
    folder = trainer.loop.recorder.folder.checkpoints
    assert saver.save_best(counters, 100.0)
    fresh = writer.CheckpointWriter(
        folder, trainer.config, trainer.learner, trainer.replay, obs_shape=(2, 84, 84)
    )
    assert not fresh.save_best({**counters, "best_return": None}, 99.0)
    assert checkpoint.best_return(folder) == 100.0
    assert not fresh.save_best({**counters, "steps": 200}, 100.0), "the first of equal ones stays"
    assert fresh.save_best(counters, 100.5)
    (folder / "best" / "network.safetensors").write_bytes(b"damaged")
    assert fresh.save_best(counters, 1.0), "one that cannot be read is none"
    (folder / "best").rename(folder / ".best.old")  # killed between two renames
    assert checkpoint.best_return(folder) == 1.0
    assert not fresh.save_best(counters, 0.5)
