"""Whole runs on a CUDA device; run with `pytest -m gpu`."""

import dataclasses

import pytest
import torch

from agents import load
from agents.presets import read_preset
from agents.saving import checkpoint
from agents.saving.restoring import restore
from agents.saving.run_folder import read_metrics
from agents.training import train
from rl_nfm.encoders import encoder_names

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("encoder", encoder_names())
def test_train_resume_and_load_on_another_device(encoder, tmp_path):
    config = dataclasses.replace(read_preset("debug"), encoder=encoder, device="cuda")
    folder = train.train(config, out=tmp_path / "run")
    train.resume(folder, lambda old: dataclasses.replace(old, steps=400))
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["steps"] for line in lines] == [100, 200, 300, 400]
    assert load(folder, device="cpu").network is not None


def test_a_run_with_its_replay_in_host_memory_learns_and_goes_on(tmp_path):
    config = read_preset("debug")
    replay = dataclasses.replace(config.replay, storage="host")
    config = dataclasses.replace(config, replay=replay, device="cuda")
    folder = train.train(config, out=tmp_path / "run")
    train.resume(folder, lambda old: dataclasses.replace(old, steps=400))
    last = read_metrics(folder / "metrics.jsonl")[-1]
    assert last["steps"] == 400
    assert last["loss"] > 0


def test_the_schedule_reaches_a_restored_optimiser(tmp_path):
    config = dataclasses.replace(read_preset("debug"), device="cuda")
    folder = train.train(config, out=tmp_path / "run")
    trainer = train.Trainer(config, torch.device("cuda"))
    saved = checkpoint.open_checkpoint(checkpoint.find(folder), replay=True)
    restore(saved, trainer.learner, trainer.replay, trainer.others)
    assert trainer.learner.optimizer.param_groups[0]["lr"] is trainer.learner.learning_rate
    trainer.turns.close()
