"""How runs end: signals in the middle of anything, the last line, runs that learnt nothing."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from agents.config import make_config, to_plain
from agents.presets import read_preset
from agents.saving import checkpoint
from agents.saving.run_folder import RunFolder, read_metrics
from agents.training import train

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
WAITING = """
import time
from agents.training.stop import StopRequest
asked = StopRequest()
with asked.listening():
    print("ready", flush=True)
    while not asked():
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(60)  # busy with something that takes its time
"""


def quick(**changes):
    """The debug preset on the memory task, which needs no emulator."""
    values = {**to_plain(read_preset("debug")), "game": "memory_cue"}
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    values["env"] = {"num_envs": 4, **changes.get("env", {})}
    return make_config(values)


def wait_for_metrics(run, process):
    end = time.time() + 120
    while not read_metrics(run / "metrics.jsonl"):
        assert time.time() < end
        assert process.poll() is None
        time.sleep(0.05)


def test_a_signal_before_the_first_step_is_a_request_too(tmp_path, monkeypatch):
    """It comes as soon as the folder is there, before the line that names it."""
    original = RunFolder.begin

    def interrupted(folder, config, steps):
        os.kill(os.getpid(), signal.SIGTERM)
        original(folder, config, steps)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "begin", interrupted)
        with pytest.raises(train.Stop) as stop:
            train.train(quick(steps=100_000), out=tmp_path / "run")
    assert stop.value.folder == tmp_path / "run"
    assert signal.getsignal(signal.SIGTERM) is before
    train.resume(tmp_path / "run", lambda old: make_config({**to_plain(old), "steps": 8}))
    assert [line["steps"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [8]


def test_a_signal_ends_an_evaluation_between_steps(tmp_path):
    """One that would take hours: the run stops within seconds, with a checkpoint of that moment."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "agents.cli", "train", "debug", "--game", "memory_cue"]
    command += ["--steps", "100000", "--run.log-every-steps", "40", "--run.eval-every-steps", "60"]
    command += ["--run.eval-episodes", "100000000", "--out", str(run)]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        wait_for_metrics(run, process)
        time.sleep(1.0)  # well inside the evaluation
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 128 + signal.SIGTERM, output
    assert checkpoint.open_checkpoint(checkpoint.find(run)).steps == 60
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["steps"] for line in lines] == [40, 60]
    assert "eval_return_mean" not in lines[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_leaves_workers_to_the_run(number, tmp_path):
    """As Ctrl-C of a terminal and some batch systems send it: environments in processes too."""
    pytest.importorskip("minigrid", reason="needs the extra gymnasium (MiniGrid)")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "agents.cli", "train", "minigrid", "--steps", "100000"]
    command += ["--env.vectorization", "async", "--env.num-envs", "2", "--device", "cpu"]
    command += ["--run.log-every-steps", "20", "--out", str(run)]
    with subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        wait_for_metrics(run, process)
        os.killpg(process.pid, number)
        output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 128 + number, output
    assert "after a checkpoint" in output
    assert "Traceback" not in output
    assert checkpoint.open_checkpoint(checkpoint.find(run)).steps >= 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once(number):
    with subprocess.Popen(
        [sys.executable, "-c", WAITING], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(number)
        assert process.wait(timeout=20) == -number


def test_a_finished_run_may_have_ended_beyond_its_last_step(tmp_path, capsys):
    """Rounds of seven games do not add up to 100 steps: 105 are done."""
    train.train(quick(steps=100, env={"num_envs": 7}), out=tmp_path / "run")
    train.resume(tmp_path / "run", lambda old: old)
    assert "all 100 steps are done" in capsys.readouterr().out
    with pytest.raises(ValueError, match="steps: 98 is not allowed: 105 are done already"):
        train.resume(tmp_path / "run", lambda old: make_config({**to_plain(old), "steps": 98}))


def test_a_replay_with_nothing_to_learn_from_teaches_nothing(tmp_path):
    """Four rows around a resume, of which each complete one begins with the end of an episode."""
    config = quick(
        steps=41,  # the last row begins an episode, as does the first after the resume
        env={"num_envs": 1},
        replay={"capacity_steps": 4, "min_steps": 1},
        learner={"n_steps": 1, "steps_per_update": 1},
    )
    train.train(config, out=tmp_path / "run")
    train.resume(tmp_path / "run", lambda old: make_config({**to_plain(old), "steps": 48}))
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["steps"] == 48


def test_training_in_a_thread_leaves_signals_alone(tmp_path):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    found = []

    def work() -> None:
        found.append(train.train(quick(steps=100), out=tmp_path / "run"))
        found.append([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [tmp_path / "run", handlers]
    assert checkpoint.open_checkpoint(checkpoint.find(tmp_path / "run")).steps == 100


def test_the_last_stretch_is_logged_where_the_end_is_a_checkpoint_too(tmp_path):
    run = {"log_every_steps": 60, "checkpoint_every_steps": 100}
    folder = train.train(quick(steps=200, run=run), out=tmp_path / "run")
    assert [x["steps"] for x in read_metrics(folder / "metrics.jsonl")] == [60, 120, 180, 200]


def test_a_run_that_made_no_update_says_so(tmp_path, capsys):
    train.train(quick(steps=40), out=tmp_path / "a")
    assert "this run made no update: learning begins at replay.min_steps (80)" in (
        capsys.readouterr().out
    )
    train.train(quick(steps=160), out=tmp_path / "b")
    assert "no update" not in capsys.readouterr().out


def test_a_replay_that_never_holds_min_steps_is_refused():
    message = r"replay.capacity_steps: 100 is not allowed: 4 environments fill 100 .*\(120\)"
    with pytest.raises(ValueError, match=message):
        quick(replay={"capacity_steps": 100, "min_steps": 120})
    # whole rows alone count: 33 of 3 environments
    with pytest.raises(ValueError, match="3 environments fill 99 of it"):
        quick(replay={"capacity_steps": 100, "min_steps": 100}, env={"num_envs": 3})
    quick(replay={"capacity_steps": 100, "min_steps": 100})


def test_actions_are_random_until_learning_begins(tmp_path):
    """With noisy layers and an epsilon of 0, environments that see the same would act the same."""
    config = quick(
        head={"noisy": True},
        exploration={"epsilon_start": 0.0, "epsilon_final": 0.0, "epsilon_decay_steps": 1},
        env={"num_envs": 40},
        replay={"min_steps": 800},
        steps=800,
    )
    train.train(config, out=tmp_path / "run")
    saved = checkpoint.open_checkpoint(checkpoint.find(tmp_path / "run"), replay=True)
    chunk = next(name for name in saved.meta.files if name.startswith("replay-"))
    actions = saved.tensors(chunk.removesuffix(".safetensors"))["action"][:20].flatten()
    counts = actions.int().bincount(minlength=4).tolist()
    assert len(actions) == 800
    # 200 each by chance, with a standard deviation of 12
    assert all(140 < count < 260 for count in counts)
