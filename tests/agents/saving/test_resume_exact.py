"""An update after a resume is, bit for bit, the update of the run that was never interrupted."""

import dataclasses

import pytest
import torch

from agents.config import make_config, to_plain
from agents.presets import read_preset
from agents.saving import checkpoint
from agents.saving.restoring import restore
from agents.training import train
from rl_nfm.encoders import encoder_names

CPU = torch.device("cpu")


def config_of(encoder):
    plain = to_plain(read_preset("debug"))
    return make_config({**plain, "encoder": encoder, "steps": 100})


@pytest.mark.parametrize("encoder", encoder_names())
def test_one_update_after_restore_equals_the_one_without_interruption(tmp_path, encoder):
    config = config_of(encoder)
    trainer = train.Trainer(config, CPU)
    folder = train.RunFolder.create(config, tmp_path / "run")
    with folder.held():
        trainer.run(folder, None)
    saved = checkpoint.open_checkpoint(checkpoint.find(tmp_path / "run"), replay=True)
    other = train.Trainer(dataclasses.replace(config, seed=7), CPU)
    restore(saved, other.learner, other.replay, other.others)
    other.env.close()
    assert trainer.learner.updates > 0
    for step in (trainer.step, other.step):
        step.set_schedule(0.5)  # as the loop does before every update
    for _ in range(2):
        state = torch.get_rng_state()
        trainer.step()
        torch.set_rng_state(state)
        other.step()
    pairs = zip(
        trainer.learner.online.named_parameters(), other.learner.online.parameters(), strict=True
    )
    for (name, a), b in pairs:
        assert torch.equal(a, b), f"{name}: off by {(a - b).abs().max()}"


def test_random_numbers_go_on_where_they_were(tmp_path):
    config = config_of("nature")
    trainer = train.Trainer(config, CPU)
    folder = train.RunFolder.create(config, tmp_path / "run")
    with folder.held():
        trainer.run(folder, None)
    saved = checkpoint.open_checkpoint(checkpoint.find(tmp_path / "run"), replay=True)
    kept = saved.tensors("training")["rng.cpu"]
    for of_rank in (True, False):  # without the part of its own, a rank draws its own numbers
        torch.manual_seed(1)
        drawn_from = torch.get_rng_state()
        restore(saved, trainer.learner, trainer.replay, trainer.others, of_rank=of_rank)
        assert torch.equal(torch.get_rng_state(), kept if of_rank else drawn_from)
