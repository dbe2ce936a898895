"""Names and links that are not ours, deletion in mid-run, two processes on one folder."""

import contextlib
import dataclasses
import datetime
import functools
import shutil
import sys

import pytest

from agents.saving import checkpoint, run_folder
from agents.saving.run_folder import RunFolder, read_metrics
from agents.training import train


def go_on(run, steps=128):
    train.resume(run, lambda old: dataclasses.replace(old, steps=steps))
    assert checkpoint.open_checkpoint(checkpoint.find(run), replay=True).steps == steps


@pytest.mark.parametrize(
    "name", ["step_000000999.bak", "step_000000999.tar", "step_99", "step_x", "old", ".step_x.old"]
)
def test_names_that_are_not_ours_are_left_alone(run, name):
    place = run / "checkpoints" / name
    if name.endswith(".tar"):
        place.write_text("an archive")
    else:
        shutil.copytree(checkpoint.find(run), place)
    assert checkpoint.find(run).name == "step_000000096"
    go_on(run)
    assert place.exists()


def test_a_younger_checkpoint_that_was_put_there_is_taken_and_left(run):
    """Steps are compared as numbers: ten digits come after nine."""
    folder = run / "checkpoints"
    (folder / "step_1000000000").mkdir()
    (folder / "step_999999999").mkdir()
    assert [p.name for p in checkpoint.list_checkpoints(folder)][-2:] == [
        "step_999999999",
        "step_1000000000",
    ]


def test_a_link_to_a_checkpoint_is_read_and_its_target_left(run, tmp_path):
    last = checkpoint.find(run)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(last, elsewhere)
    last.symlink_to(elsewhere)
    go_on(run)
    assert checkpoint.open_checkpoint(elsewhere, replay=True).steps == 96
    assert last.is_symlink()


def test_checkpoints_may_be_a_link_to_another_disk(run, tmp_path):
    shutil.move(run / "checkpoints", tmp_path / "disk")
    (run / "checkpoints").symlink_to(tmp_path / "disk")
    go_on(run)


def test_the_lock_neither_follows_a_link_nor_truncates(run, tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("precious")
    (run / ".lock").unlink()
    (run / ".lock").symlink_to(mine)
    with pytest.raises(ValueError, match=r"\.lock: cannot be opened .*must be a plain file"):
        train.resume(run, lambda old: old)
    assert mine.read_text() == "precious"
    (run / ".lock").unlink()
    (run / ".lock").write_text("note")
    go_on(run)
    assert (run / ".lock").read_text() == "note"


def test_two_runs_begun_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch, faults):
    class Frozen(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(run_folder, "datetime", Frozen)
    monkeypatch.chdir(tmp_path)
    made = [RunFolder.create(faults.tiny(seed=3), None).path for _ in range(3)]
    names = [path.name for path in made]
    assert names[0] == "memory_cue-nature-seed3-20260102-030405"
    assert names[1:] == [f"{names[0]}-2", f"{names[0]}-3"]


def test_a_second_process_on_one_folder_is_refused(tmp_path, faults):
    folder = tmp_path / "run"
    with faults.child(lambda: train.train(faults.tiny(steps=10**6), out=folder)) as process:
        faults.wait_for(lambda: checkpoint.list_checkpoints(folder / "checkpoints"), process)
        with pytest.raises(ValueError, match="another process is training this run"):
            train.resume(folder, lambda old: old)
        with pytest.raises(ValueError, match="is not empty; a run is never overwritten"):
            train.train(faults.tiny(), out=folder)


def test_of_processes_that_begin_in_one_folder_one_trains(tmp_path, faults):
    """Ten at once, all of which find it empty: the config stays that of the one that trains."""
    folder = tmp_path / "run"
    folder.mkdir()

    def begin(seed):
        try:
            RunFolder.create(faults.tiny(seed=seed), folder)
        except ValueError:
            sys.exit(2)

    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(faults.child(functools.partial(begin, seed))) for seed in range(10)
        ]
        for process in children:
            process.join()
        codes = [process.exitcode for process in children]
    assert set(codes) <= {0, 2}
    won = [seed for seed, code in enumerate(codes) if code == 0]
    assert len(won) == 1
    assert RunFolder.open(folder).config().seed == won[0]


@pytest.mark.parametrize("victim", ["checkpoint", "tensorboard"])
def test_deletion_in_mid_run_costs_only_what_was_deleted(tmp_path, faults, victim):
    folder = tmp_path / "run"
    with faults.child(lambda: train.train(faults.tiny(steps=320), out=folder)) as process:
        for _ in range(3):
            known = len(read_metrics(folder / "metrics.jsonl"))
            faults.wait_for(
                lambda known=known: len(read_metrics(folder / "metrics.jsonl")) > known, process
            )
            for path in checkpoint.list_checkpoints(folder / "checkpoints"):
                if victim == "checkpoint":
                    shutil.rmtree(path, ignore_errors=True)
            if victim == "tensorboard":
                shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        process.join()
        assert process.exitcode == 0
    assert checkpoint.open_checkpoint(checkpoint.find(folder), replay=True).steps == 320
    steps = [line["steps"] for line in read_metrics(folder / "metrics.jsonl")]
    assert steps == list(range(16, 321, 16))
    if victim == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        board = EventAccumulator(str(folder / "tensorboard")).Reload()
        assert [event.step for event in board.Scalars("train/updates")] == steps


def test_a_run_whose_folder_is_deleted_ends_in_one_line(tmp_path, faults):
    folder = tmp_path / "run"

    def begin():
        try:
            train.train(faults.tiny(steps=10**6), out=folder)
        except ValueError as error:
            (tmp_path / "message").write_text(str(error))

    with faults.child(begin) as process:
        faults.wait_for(lambda: checkpoint.list_checkpoints(folder / "checkpoints"), process)
        while folder.exists():  # a file may be written into it while it is being deleted
            shutil.rmtree(folder, ignore_errors=True)
        faults.wait_for((tmp_path / "message").exists, process)
        process.join()
        assert process.exitcode == 0
    message = (tmp_path / "message").read_text()
    assert "cannot be written" in message
    assert "\n" not in message
