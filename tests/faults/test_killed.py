"""SIGKILL at random moments: what is on disk is whole, and a run never goes back."""

import itertools
import json
import random
import time
from pathlib import Path

import pytest
import torch

from agents.config import Config
from agents.saving import checkpoint
from agents.training import train
from rl_nfm.support import storage

KILLS = [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]


def write_for_ever(target: Path) -> None:
    for value in itertools.count(read(target) + 1 if storage.present(target) else 0):
        data = {"x": torch.full((300_000,), float(value))}
        storage.save_directory(
            target, kind="k", meta={"value": value}, tensors={"a": data, "b": data}
        )


def read(target: Path) -> int:
    found = storage.present(target)
    assert found is not None
    value = storage.load_meta(found, kind="k")["value"]
    for stem in ("a", "b"):
        x = storage.load_tensors(found / f"{stem}.safetensors")["x"]
        assert torch.equal(x, torch.full((300_000,), float(value)))
    return value


@pytest.mark.parametrize("kills", KILLS)
def test_a_directory_is_whole_whenever_its_writer_is_killed(tmp_path, faults, kills):
    target, clock, newest = tmp_path / "one", random.Random(kills), -1
    for _ in range(kills):
        with faults.child(lambda: write_for_ever(target)) as process:
            faults.wait_for(lambda: storage.present(target), process)
            time.sleep(clock.uniform(0, 0.05))
            process.kill()
            process.join()
        value = read(target)
        assert value >= newest
        newest = value
    storage.tidy(target)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert read(target) == newest


@pytest.mark.parametrize("kills", KILLS)
def test_a_run_killed_again_and_again_goes_on(tmp_path, faults, kills):
    """A checkpoint every 8 steps, so most kills fall into a write, by the thread or the loop."""
    often = {"log_every_steps": 8, "checkpoint_every_steps": 8, "eval_every_steps": 16}
    config: Config = faults.tiny(steps=160, run=often)
    folder = tmp_path / "run"
    clock, newest = random.Random(kills), 0

    def go_on() -> None:
        if (folder / "config.yaml").is_file():
            train.resume(folder, lambda old: old)
        else:
            train.train(config, out=folder)

    for _ in range(kills):
        with faults.child(go_on) as process:
            # Resumed, it could be at the end before it is looked at; so from the begin of writing.
            faults.wait_for(lambda: checkpoint.list_checkpoints(folder / "checkpoints"), process)
            time.sleep(clock.uniform(0, 0.3))
            process.kill()
            process.join()
        checkpoint.tidy(folder / "checkpoints")
        last = checkpoint.open_checkpoint(checkpoint.find(folder), replay=True)
        assert last.steps >= newest
        newest = last.steps
    train.resume(folder, lambda old: old)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["steps"] for line in lines] == list(range(8, 161, 8))
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["best", "step_000000160"]
