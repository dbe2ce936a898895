"""What a run goes on with: its own config, random numbers of its own, weights that are numbers."""

import dataclasses
import shutil

import numpy as np
import pytest

from agents import cli
from agents.playing.evaluate import env_seed
from agents.saving import checkpoint
from agents.saving.run_folder import read_metrics
from agents.training import train
from envs import make_env


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("discount: 0.99", "discount: 0.5", "learner.discount"),
        ("reward_clip: 1.0", "reward_clip: null", "learner.reward_clip"),
        ("game: memory_cue", "game: pong", "game"),
        ("seed: 1", "seed: 2", "seed"),
    ],
)
def test_an_edited_config_file_may_change_what_a_flag_may(run, old, new, field, capsys):
    text = (run / "config.yaml").read_text()
    assert old in text
    (run / "config.yaml").write_text(text.replace(old, new))
    assert cli.main(["train", "--resume", str(run), "--steps", "128"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"rl-nfm: {field}: cannot change when a run goes on")
    assert err.count("\n") == 1
    (run / "config.yaml").write_text(text.replace("steps: 96", "steps: 128"))
    train.resume(run, lambda config: config)
    assert checkpoint.open_checkpoint(checkpoint.find(run)).steps == 128


def test_each_continuation_has_random_numbers_of_its_own():
    """The same no-ops and sticky draws came back after every resume; a resumed game differs now."""
    seeds = [env_seed(seed, steps) for seed in range(20) for steps in (0, 4, 8, 10**9)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 - 4096 for seed in seeds)
    assert env_seed(7) == env_seed(7, 0)
    games = []
    for steps in (0, 4, 0):
        env = make_env("memory_cue", num_envs=16, protocol=None, seed=1)
        games.append(env.reset(seed=env_seed(1, steps))[0])
        env.close()
    assert not np.array_equal(games[0], games[1])
    assert np.array_equal(games[0], games[2])


def test_the_seed_of_a_continuation_reaches_the_environments(run, monkeypatch):
    asked = []
    trainer = train.Trainer
    build = trainer.__init__

    def watched(self, *arguments, **options):
        build(self, *arguments, **options)
        reset = self.env.reset
        self.env.reset = lambda seed=None: (asked.append(seed), reset(seed=seed))[1]

    monkeypatch.setattr(trainer, "__init__", watched)
    for steps in (112, 128):
        train.resume(run, lambda old, steps=steps: dataclasses.replace(old, steps=steps))
    assert asked == [env_seed(1, 96), env_seed(1, 112)]


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(tmp_path, capsys):
    run = tmp_path / "run"
    flags = ["--replay.min-steps", "40", "--learner.learning-rate", "1e10", "--out", str(run)]
    assert cli.main(["train", "debug", "--steps", "400", *flags]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert "not finite" in err
    for path in checkpoint.list_checkpoints(run / "checkpoints"):
        assert str(path) in err
        checkpoint.open_checkpoint(path, replay=True).tensors("network")
    assert all(
        line.get("loss") is not None or line["updates"] == 0
        for line in read_metrics(run / "metrics.jsonl")
    )


def test_a_run_whose_checkpoints_are_gone_says_so_and_keeps_its_metrics(run, capsys):
    before = (run / "metrics.jsonl").read_text()
    shutil.rmtree(run / "checkpoints")
    assert cli.main(["train", "--resume", str(run), "--steps", "32"]) == 0
    kept = run / "metrics.before.jsonl"
    assert f"note: no checkpoint: the run begins anew; its metrics until now: {kept}" in (
        capsys.readouterr().out
    )
    assert kept.read_text() == before


@pytest.mark.parametrize(
    ("content", "field"), [("game: pong\n", "game"), (None, "learner.discount")]
)
def test_a_report_refuses_a_config_that_is_not_that_of_the_training(run, content, field, capsys):
    file = run / "config.yaml"
    file.write_text(content or file.read_text().replace("discount: 0.99", "discount: 0.5"))
    assert cli.main(["report", str(run), "--out", str(run.parent / "report")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rl-nfm: {file}: {field} is not that of the training (see ")
    assert not (run.parent / "report").exists()
