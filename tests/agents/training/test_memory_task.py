"""A recurrent agent learns what a feed-forward one cannot: the cue is in the first frame only."""

import dataclasses

import pytest

from agents.config import make_config, to_plain
from agents.presets import read_preset
from agents.saving.run_folder import read_metrics
from agents.training.train import train


def learned(config, folder):
    path = train(config, out=folder / "run")
    return read_metrics(path / "metrics.jsonl")[-1]["eval_return_mean"]


def test_lstm_remembers(tmp_path):
    assert learned(read_preset("memory_cue"), tmp_path) >= 0.9


@pytest.mark.slow
def test_rims_remember(tmp_path):
    config = dataclasses.replace(read_preset("memory_cue"), encoder="rim", steps=48000)
    assert learned(config, tmp_path) >= 0.9


def test_feedforward_cannot(tmp_path):
    values = {**to_plain(read_preset("memory_cue")), "encoder": "nature", "steps": 8000}
    del values["lstm"]
    single = {"sequence_steps": 1, "overlap_steps": 0, "batch_size": 128}
    values["replay"] = {**values["replay"], **single}
    assert learned(make_config(values), tmp_path) <= 0.45  # chance: 0.25 of 100 episodes
