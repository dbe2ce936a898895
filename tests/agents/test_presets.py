"""Every preset is parsed, names its source, and runs a few steps with every encoder it may meet."""

import dataclasses

import pytest

from agents.config import make_config, to_plain
from agents.presets import preset_names, preset_path, read_preset
from agents.saving.run_folder import read_metrics
from agents.training.train import train
from rl_nfm.encoders import encoder_names
from rl_nfm.nfm import NFM_PRESETS
from rl_nfm.nfm.module import make_schedule

# What makes a published setting small enough for a test, without touching its structure.
TINY = {
    "steps": 96,
    "replay": {"capacity_steps": 2000, "min_steps": 40, "batch_size": 2},
    "env": {"num_envs": 2},
    "learner": {
        "steps_per_update": 32,
        "num_quantiles": 2,
        "num_target_quantiles": 2,
        "num_action_quantiles": 2,
    },
    "head": {"hidden_size": 8},
    "run": {"log_every_steps": 48, "eval_episodes": 0, "save_replay": False},
}


def shrunk(config):
    values = to_plain(config)
    for key, value in TINY.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    values["learner"]["precision"] = "fp32"
    for name in ("nature", "impala", "hadamax", "resnet", "nfm"):
        if name in values:
            values[name]["width"] = 4
        if name in ("resnet", "nfm") and name in values:
            values[name]["depth"] = 10
    for name in ("lstm", "rim", "brims"):
        if name in values:
            values[name]["hidden_size"] = 12
    replay = values["replay"]
    if replay["sequence_steps"] > 1:
        replay.update(sequence_steps=6, overlap_steps=3)
        replay["burn_in_steps"] = min(3, replay["burn_in_steps"])
    return make_config(values)


@pytest.mark.parametrize("name", preset_names())
def test_preset_runs(name, tmp_path):
    config = read_preset(name)
    assert preset_path(name).read_text().startswith("#"), "a header names source and deviations"
    folder = train(shrunk(config), out=tmp_path / "run")
    assert read_metrics(folder / "metrics.jsonl")[-1]["updates"] >= 1


def test_published_choices_that_were_once_missed():
    """SABER clips no gradient and takes the loss as priority; R2D2 learns from raw rewards; the
    paper's NFM reads behind each of four stages in each of two passes."""
    rainbow, r2d2 = read_preset("rainbow_iqn").learner, read_preset("r2d2").learner
    assert (rainbow.max_grad_norm, rainbow.priority) == (None, "loss")
    assert (r2d2.reward_clip, r2d2.value_rescaling_eps) == (None, 1e-3)
    nfm = getattr(read_preset("nfm_paper"), "nfm").chosen_nfm  # noqa: B009
    assert nfm == NFM_PRESETS["paper"]
    assert sum(visit.reads for visit in make_schedule(nfm, 4)) == 8
    assert (nfm.passes, nfm.top_k, nfm.key_size, nfm.value_size, nfm.heads) == (2, 4, 32, 32, 4)


def test_saved_config_reads_back_to_the_same():
    config = read_preset("quickstart")
    assert make_config(to_plain(config)) == dataclasses.replace(
        config, **{n: type(getattr(config, n))() for n in encoder_names() if n != "nfm"}
    )
