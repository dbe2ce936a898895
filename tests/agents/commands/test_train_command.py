"""What `rl-nfm train` tells: the folder first, how far it is, and how to go on."""

import dataclasses
import os
import signal
import subprocess
import sys

import pytest

from agents import cli
from agents.config import config_class
from agents.training import train


def test_the_folder_is_told_first_and_the_end_says_what_next(tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--run.eval-episodes", "1", "--run.eval-every-steps", "100"]
    flags += ["--env.max-num-frames-per-episode", "120"]
    assert cli.main(["train", "debug", "--steps", "200", "--out", str(out), *flags]) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines()[0] == f"run: {out}"
    last = printed.err.splitlines()[-1]
    assert last.startswith("200 of 200 steps (100 %), ")
    for known in ("updates/s ", "return ", "evaluation "):
        assert known in last
    assert "\r" not in printed.err
    assert f"rl-nfm evaluate {out}" in printed.out
    assert f"tensorboard --logdir {out}" in printed.out


def test_a_stopped_run_tells_the_command_to_go_on(tmp_path):
    """A real process and a real signal."""
    out = tmp_path / "a run"
    command = [sys.executable, "-m", "agents.cli", "train", "debug", "--steps", "1000000"]
    process = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == f"run: {out}\n"
    os.kill(process.pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"go on: rl-nfm train --resume '{out}'" in printed


@pytest.mark.parametrize("case", ["not empty", "below a file"])
def test_out_is_checked_before_anything_is_built(case, tmp_path, capsys, monkeypatch):
    def build(*arguments, **more):
        raise AssertionError("the replay would have been allocated")

    monkeypatch.setattr(train, "Trainer", build)
    (tmp_path / "file").write_text("mine")
    out = tmp_path if case == "not empty" else tmp_path / "file" / "run"
    assert cli.main(["train", "debug", "--out", str(out)]) == 2
    message = capsys.readouterr().err
    expected = {"not empty": "is not empty", "below a file": "cannot be written (Not a directory)"}
    assert message.startswith(f"rl-nfm: out: {out} {expected[case]}")


def test_the_short_help_names_options_that_there_are(capsys):
    assert cli.main(["train", "--help"]) == 0
    named = [word for word in capsys.readouterr().out.split() if word.startswith("--")]
    fields = {f"--{field.name}" for field in dataclasses.fields(config_class())}
    assert set(named) - fields == {"--out", "--resume", "--help`"}
    assert {"--game", "--encoder", "--steps", "--seed"} <= set(named)
