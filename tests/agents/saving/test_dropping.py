"""A finished run without its replay: everything else as it was, and it says what is missing."""

import dataclasses
import os

import pytest
import torch

from agents.config import make_config, to_plain
from agents.presets import read_preset
from agents.saving import checkpoint
from agents.saving.dropping import drop_replay
from agents.saving.run_folder import RunFolder
from agents.training import train


def small():
    values = to_plain(read_preset("debug"))
    values |= {"game": "memory_cue", "steps": 96}
    values["env"] |= {"num_envs": 4}
    values["replay"] |= {"capacity_steps": 200, "min_steps": 40, "batch_size": 3}
    values["run"] |= {"checkpoint_every_steps": 96, "eval_episodes": 0}
    return make_config(values)


@pytest.fixture
def run(tmp_path):
    return train.train(small(), out=tmp_path / "run")


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix == ".safetensors"}


@pytest.mark.parametrize("links", [True, False])
def test_all_but_the_replay_stays(run, links, monkeypatch):
    if not links:  # as on a file system without hard links
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(1, "no")))
    place = checkpoint.find(run)
    before, rows = contents(place), sum(p.stat().st_size for p in place.glob("replay-*"))
    network = checkpoint.load_network(checkpoint.open_checkpoint(place), torch.device("cpu"))
    assert rows > 0
    assert drop_replay(run) == rows
    assert contents(place) == {k: v for k, v in before.items() if not k.startswith("replay-")}
    found = checkpoint.open_checkpoint(place, replay=True)
    assert (found.steps, found.meta.replay) == (96, None)
    same = checkpoint.load_network(found, torch.device("cpu")).state_dict()
    assert all(torch.equal(same[name], value) for name, value in network.state_dict().items())
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    assert drop_replay(run) == 0


def test_a_run_that_goes_on_without_its_replay_says_so(run, capsys):
    drop_replay(run)
    capsys.readouterr()
    train.resume(run, lambda old: dataclasses.replace(old, steps=192))
    said = capsys.readouterr().out
    assert "holds no replay (run.save_replay was off, or a sweep dropped it" in said
    assert "replay.min_steps (40)" in said
    assert checkpoint.open_checkpoint(checkpoint.find(run), replay=True).meta.replay is not None


def test_a_run_that_goes_on_with_its_replay_says_nothing(run, capsys):
    train.resume(run, lambda old: dataclasses.replace(old, steps=128))
    assert "holds no replay" not in capsys.readouterr().out


def test_a_run_at_work_and_a_damaged_one_are_left_alone(run):
    with RunFolder(run).held(), pytest.raises(ValueError, match="another process is training"):
        drop_replay(run)
    weights = checkpoint.find(run) / "network.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    before = sorted(path.name for path in weights.parent.iterdir())
    with pytest.raises(ValueError, match="truncated or changed"):
        drop_replay(run)
    assert sorted(path.name for path in weights.parent.iterdir()) == before
