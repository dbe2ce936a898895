"""Training runs: metrics, determinism, resume after SIGKILL, signals, full disks."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.config import make_config, to_plain
from agents.learning import compiling
from agents.learning.captured import Captured
from agents.playing.evaluate import play
from agents.presets import read_preset
from agents.replay import buffer
from agents.saving import checkpoint, writer
from agents.saving.restoring import restore
from agents.saving.resumable import check_resumable
from agents.saving.run_folder import RunFolder, read_metrics
from agents.training import evaluation, train, trainer
from agents.training.record import Counters, Episode
from rl_nfm.support import storage

TIMING = ("steps_per_second", "updates_per_second")


def debug(**changes):
    values = to_plain(read_preset("debug"))
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    return make_config(values)


def untimed(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return [
        {k: v for k, v in line.items() if k not in TIMING and not k.startswith("time/")}
        for line in lines
    ]


def test_same_seed_gives_the_same_metrics_and_another_seed_others(tmp_path):
    config = debug(head={"noisy": True}, run={"eval_episodes": 0})
    a = train.train(config, out=tmp_path / "a")
    b = train.train(config, out=tmp_path / "b")
    c = train.train(dataclasses.replace(config, seed=2), out=tmp_path / "c")
    assert untimed(a) == untimed(b)
    assert untimed(a) != untimed(c)
    lines = untimed(a)
    assert [line["steps"] for line in lines] == [100, 200, 300]
    assert lines[-1]["updates"] == 27  # (300 - 80) / 8, rounded down to whole updates


def test_resume_continues_steps_updates_schedules_and_curves(tmp_path):
    """A run of 200 steps that goes on to 300 has the counters of one of 300 steps."""
    config = debug(steps=200, learner={"learning_rate_final": 0.0})
    folder = train.train(config, out=tmp_path / "run")
    before = untimed(folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"steps": 204, "torn')
    train.resume(folder, lambda old: dataclasses.replace(old, steps=300))
    lines = untimed(folder)
    assert lines[:2] == before
    assert [line["steps"] for line in lines] == [100, 200, 300]
    assert lines[-1]["updates"] == 27
    assert lines[-1]["learning_rate"] == pytest.approx(6.25e-5 * (1 - 298 / 300))
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/updates")] == [100, 200, 300]
    assert RunFolder.open(folder).config().steps == 300


def test_restore_puts_everything_back(tmp_path):
    config = debug()
    folder = train.train(config, out=tmp_path / "run")
    saved = checkpoint.open_checkpoint(checkpoint.find(folder), replay=True)
    a = train.Trainer(config, torch.device("cpu"))
    assert restore(saved, a.learner, a.replay, a.others)
    b = train.Trainer(dataclasses.replace(config, seed=7), torch.device("cpu"))
    restore(saved, b.learner, b.replay, b.others)
    for name, value in a.replay.row_stores.items():
        assert torch.equal(value, b.replay.row_stores[name])
    assert a.replay.added_rows == 150
    assert a.replay.episode_start[0].all()
    assert a.replay.frame.any()
    torch.set_rng_state(storage.load_tensors(saved.path / "training.safetensors")["rng.cpu"])
    a.step()
    torch.set_rng_state(storage.load_tensors(saved.path / "training.safetensors")["rng.cpu"])
    b.step()
    for p, q in zip(a.learner.online.parameters(), b.learner.online.parameters(), strict=True):
        assert torch.equal(p, q)
    a.env.close()
    b.env.close()


def test_only_changed_chunks_are_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "CHUNK_BYTES", 7100 * 2 * 20)  # twenty rows of two environments
    folder = train.train(debug(steps=100), out=tmp_path / "run")
    first = checkpoint.find(folder)
    kept = {p.name: p.stat().st_ino for p in first.glob("replay-*")}
    assert len(kept) == 3  # 50 rows
    train.resume(folder, lambda old: dataclasses.replace(old, steps=200))
    second = {p.name: p.stat().st_ino for p in checkpoint.find(folder).glob("replay-*")}
    assert len(second) == 5  # 50 rows
    same = [name for name in kept if name in second]
    assert len(same) == 2, "two chunks were full, the third went on"
    assert all(kept[name] == second[name] for name in same), "hard links, not copies"


def test_replay_left_out_is_filled_again(tmp_path):
    folder = train.train(debug(run={"save_replay": False}), out=tmp_path / "run")
    assert not list(checkpoint.find(folder).glob("replay-*"))
    train.resume(folder, lambda old: dataclasses.replace(old, steps=400))
    assert untimed(folder)[-1]["steps"] == 400


def start(folder, *arguments):
    command = [sys.executable, "-m", "agents.cli", "train", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def wait_for(condition, process, seconds=120):
    end = time.time() + seconds
    while time.time() < end and not condition():
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.05)
    assert condition()


def test_killed_run_goes_on_and_never_goes_back(tmp_path):
    folder = tmp_path / "run"
    first = ["debug", "--out", str(folder), "--steps", "600", "--run.log-every-steps", "20"]
    with start(folder, *first) as process:
        wait_for(lambda: (folder / "config.yaml").is_file(), process)
        process.kill()  # before the first checkpoint: begins at step 0 again
    goes_on = ["--resume", str(folder)]
    with start(folder, *goes_on) as process:
        wait_for(lambda: checkpoint.list_checkpoints(folder / "checkpoints"), process)
        process.kill()
    with start(folder, *goes_on) as process:
        output = process.communicate()[0].decode()
        assert process.returncode == 0, output
    steps = [line["steps"] for line in read_metrics(folder / "metrics.jsonl")]
    assert steps == list(range(20, 601, 20))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_run_with_a_checkpoint(tmp_path, number):
    folder = tmp_path / "run"
    with start(folder, "debug", "--out", str(folder), "--steps", "100000") as process:
        wait_for(lambda: read_metrics(folder / "metrics.jsonl"), process)
        process.send_signal(number)
        output = process.communicate()[0].decode()
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    steps = checkpoint.open_checkpoint(checkpoint.find(folder)).steps
    assert read_metrics(folder / "metrics.jsonl")[-1]["steps"] == steps


def test_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    folder = train.train(debug(steps=100), out=tmp_path / "run")
    before = checkpoint.find(folder)

    def full(*_arguments, **_keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "write_tensors", full)
    with pytest.raises(ValueError, match=r"checkpoint: cannot be written .*No space left.*whole"):
        train.resume(folder, lambda old: dataclasses.replace(old, steps=200))
    monkeypatch.undo()
    assert checkpoint.find(folder) == before
    assert checkpoint.open_checkpoint(before, replay=True).steps == 100
    assert not list((folder / "checkpoints").glob(".*"))


def test_a_run_is_never_overwritten_or_trained_twice(tmp_path):
    folder = train.train(debug(steps=100), out=tmp_path / "run")
    with pytest.raises(ValueError, match="is not empty; a run is never overwritten"):
        train.train(debug(), out=folder)
    message = "another process is training"
    with RunFolder.open(folder).held(), pytest.raises(ValueError, match=message):
        train.resume(folder, lambda old: dataclasses.replace(old, steps=200))


def test_resume_refuses_what_does_not_fit(tmp_path):
    old = debug()
    check_resumable(old, dataclasses.replace(old, steps=900, device="cpu"))
    for change in ({"game": "alien"}, {"head": {"hidden_size": 64}}, {"env": {"num_envs": 5}}):
        with pytest.raises(ValueError, match=f"{next(iter(change))}.*cannot change"):
            check_resumable(old, debug(**change))
    folder = train.train(debug(steps=200), out=tmp_path / "run")
    with pytest.raises(ValueError, match="steps: 100 is not allowed: 200 are done"):
        train.resume(folder, lambda old: dataclasses.replace(old, steps=100))
    with pytest.raises(ValueError, match="not a run"):
        train.resume(tmp_path, lambda old: old)


def test_after_a_restore_acting_has_the_restored_weights_and_captures_anew(monkeypatch):
    """With a copy of the weights of its own, as on a GPU."""
    trainer = train.Trainer(debug(learner={"acting_lag": 1}), torch.device("cpu"))
    forgotten = []
    monkeypatch.setattr(Captured, "forget", lambda graph: forgotten.append(graph.name))
    acting = trainer.collector.weights.network
    assert acting is not trainer.learner.online
    with torch.no_grad():
        for parameter in trainer.learner.online.parameters():
            parameter.add_(1.0)
    trainer.collector.load_state({})
    pairs = zip(acting.parameters(), trainer.learner.online.parameters(), strict=True)
    assert all(torch.equal(ours, restored) for ours, restored in pairs)
    assert set(forgotten) == {"acting", "adding to the replay"}
    trainer.turns.close()


def test_exploration_schedule():
    """rltime's: epsilon^(1 + 7 i / 3) for i = 0..3, never below the floor."""
    changes = {"epsilon_start": 0.4, "epsilon_final": 0.1, "epsilon_decay_steps": 100}
    exploration = {**changes, "epsilon_power": 7.0, "epsilon_min": 0.01}
    config = debug(env={"num_envs": 4}, exploration=exploration)
    trainer = train.Trainer(config, torch.device("cpu"))
    expected = [max(0.01, 0.25 ** (1 + 7 * i / 3)) for i in range(4)]  # half of 0.4 -> 0.1: 0.25
    steps = config.replay.min_steps
    torch.testing.assert_close(trainer.epsilon(steps + 50), torch.tensor(expected))
    assert trainer.epsilon(steps)[0] == pytest.approx(0.4)
    assert trainer.epsilon(steps - 1).tolist() == [1.0] * 4, "at random until learning begins"
    trainer.turns.close()


def test_evaluations_have_their_own_epsilon_and_seeds_that_no_training_has(tmp_path, monkeypatch):
    told = []

    def watched(*arguments, **options):
        told.append(options)
        return play(*arguments, **options)

    monkeypatch.setattr(evaluation, "play", watched)
    run = {"eval_episodes": 1, "eval_every_steps": 4, "eval_epsilon": 0.25}
    env = {"max_num_frames_per_episode": 40, "num_envs": 2}
    train.train(debug(steps=4, env=env, run=run), out=tmp_path / "a")
    assert [options["epsilon"] for options in told] == [0.25]
    assert told[0]["num_envs"] == 2, "as many as in training, so that nothing is captured anew"
    assert told[0]["seed"] not in range(1000), "seeds that runs are likely to have"


def test_the_last_100_returns_are_the_latest():
    counters = Counters()
    for i in range(50):
        counters.count_episodes([Episode(i, 3.0 * i + k, 1) for k in range(3)])
    assert counters.last_returns == [*range(50, 150)]
    assert (counters.episodes, len(counters.new_returns)) == (150, 150)


def test_metrics_of_the_glossary_are_emitted(tmp_path):
    """docs/metrics.md and metrics.jsonl name the same numbers."""
    from pathlib import Path

    text = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    text = text.split("## TensorBoard")[0]  # the tags there: tests/agents/saving/test_board.py
    documented = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    config = debug(
        steps=400,
        env={"max_num_frames_per_episode": 100},
        run={"eval_episodes": 2, "eval_every_steps": 200},
        learner={"auxiliary": {"future_frame": 0.5}},
    )
    lines = read_metrics(train.train(config, out=tmp_path / "run") / "metrics.jsonl")
    assert {key for line in lines for key in line} == documented
    assert json.dumps(lines[-1])


def test_compiling_is_said_when_it_begins(tmp_path, monkeypatch, capsys):
    told = []

    def compiled(loss):
        return lambda *args: told.append(capsys.readouterr().err) or loss(*args)

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(buffer.Replay, "compile", lambda _: None)
    train.train(debug(learner={"compile": True}, run={"eval_episodes": 0}), out=tmp_path / "run")
    assert told[0].endswith(
        "compiling the update: about a minute, less when Inductor's cache has it\n"
    )
    assert "compiling" not in "".join(told[1:])


def test_a_measurement_says_what_it_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch, "compile", lambda loss: loss)
    monkeypatch.setattr(compiling, "FEWEST_UPDATES", 1)
    monkeypatch.setattr(compiling, "MEASURED_UPDATES", 2)
    monkeypatch.setattr(compiling, "LEAST_GAIN", 1e9)
    config = debug(learner={"compile": "cpu"}, run={"eval_episodes": 0})
    said = []
    for name in ("first", "second"):
        train.train(config, out=tmp_path / name)
        said.append(capsys.readouterr().err)
    assert "compiling the update, to see whether it becomes faster" in said[0]
    assert re.search(r"compiled, an update takes \d+\.\d\d of its time: it is not", said[0])
    assert "compil" not in said[1]


def test_a_gradient_step_is_told_how_many_updates_the_run_makes(tmp_path, monkeypatch):
    told = []

    class Step(trainer.GradientStep):
        def __init__(self, *args, updates, **options):
            told.append(updates)
            super().__init__(*args, updates=updates, **options)

    monkeypatch.setattr(trainer, "GradientStep", Step)
    config = debug(run={"eval_episodes": 0})
    folder = train.train(config, out=tmp_path / "run")
    (made,) = {line["updates"] for line in read_metrics(folder / "metrics.jsonl")[-1:]}
    assert told == [pytest.approx(made, abs=2)]
