"""A disk that is really full: a small file system in memory, where one may be mounted."""

import contextlib
import dataclasses
import os
import shutil
import subprocess

import pytest

from agents.saving import checkpoint
from agents.training import train
from rl_nfm.supervised.cli import main as supervised


@pytest.fixture
def disk(tmp_path):
    """A file system of 1.5 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here: run as root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place):
    with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
            os.fsync(file.fileno())


def test_a_checkpoint_that_does_not_fit_keeps_the_one_before(disk, faults):
    """The replay grows by 0.9 MB between checkpoints, which needs room for old and new."""
    often = {"checkpoint_every_steps": 32, "log_every_steps": 1000, "eval_episodes": 0}
    config = faults.tiny(steps=4000, replay={"capacity_steps": 4000}, run=often)
    with pytest.raises(ValueError, match=r"^checkpoint: cannot be written .*No space left") as told:
        train.train(config, out=disk / "run")
    assert "\n" not in str(told.value)
    kept = checkpoint.find(disk / "run")
    assert str(told.value).endswith(f"the one before is whole: {kept}")
    last = checkpoint.open_checkpoint(kept, replay=True)
    assert last.steps > 0
    assert [path.name for path in (disk / "run" / "checkpoints").iterdir()] == [kept.name]
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    train.resume(disk / "run", lambda old: dataclasses.replace(old, steps=last.steps + 64))
    assert checkpoint.open_checkpoint(checkpoint.find(disk / "run")).steps == last.steps + 64


def test_metrics_that_cannot_be_written_end_the_run_in_one_line(disk, faults):
    config = faults.tiny(run={"eval_episodes": 0})
    run = train.train(config, out=disk / "run")
    fill(disk)
    with pytest.raises(
        (ValueError, OSError), match=r"No space left.*metrics|metrics.*No s"
    ) as told:
        train.resume(run, lambda old: dataclasses.replace(old, steps=100_000))
    assert "\n" not in str(told.value)
    (disk / "filler").unlink()
    assert checkpoint.open_checkpoint(checkpoint.find(run), replay=True).steps == 96
    train.resume(run, lambda old: dataclasses.replace(old, steps=128))
    assert checkpoint.open_checkpoint(checkpoint.find(run)).steps == 128


def test_curves_that_cannot_be_written_cost_nothing_else(run, faults, caplog):
    """TensorBoard's folder on a full disk of its own (a file in its place here)."""
    shutil.rmtree(run / "tensorboard")
    (run / "tensorboard").symlink_to("/dev/full")
    train.resume(run, lambda old: dataclasses.replace(old, steps=128))
    assert checkpoint.open_checkpoint(checkpoint.find(run)).steps == 128
    warned = [record for record in caplog.records if "tensorboard/ cannot be" in record.message]
    assert len(warned) == 1


def test_a_supervised_run_that_finds_no_room_leaves_none_and_keeps_its_config(disk):
    words = [
        "adding",
        "--model",
        "gru",
        "--epochs",
        "1",
        "--updates-per-epoch",
        "1",
        "--hidden-size",
        "4",
    ]
    words += ["--test-examples", "4", "--device", "cpu"]
    (disk / "run").mkdir()
    fill(disk)
    with pytest.raises(ValueError, match=r"out: .*config\.json cannot be written \(No space left"):
        supervised([*words, "--out", str(disk / "run")])
    assert not any((disk / "run").iterdir())
    (disk / "filler").unlink()
    assert supervised([*words, "--out", str(disk / "run")]) == 0
    before = (disk / "run" / "config.json").read_bytes()
    fill(disk)
    with pytest.raises((ValueError, OSError), match="No space left"):
        supervised(["adding", "--resume", str(disk / "run"), "--epochs", "2"])
    assert (disk / "run" / "config.json").read_bytes() == before
    (disk / "filler").unlink()
    assert supervised(["adding", "--resume", str(disk / "run"), "--epochs", "2"]) == 0
