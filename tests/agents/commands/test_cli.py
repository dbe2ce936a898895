"""The command line as a user types it: one message, exit code 2, nothing lost."""

import io
import json
import os
import signal
import subprocess
import sys
import types
from importlib.metadata import version

import pytest
import torch

from agents import cli
from agents.commands import train as train_command
from agents.config import make_config
from agents.presets import read_preset
from agents.saving import checkpoint
from rl_nfm.encoders import encoder_names
from rl_nfm.support.output_files import written


def run(capsys, *argv):
    code = cli.main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


BAD = [
    (["trian"], "did you mean 'train'"),
    (["train", "quickstrat"], "preset: 'quickstrat' is unknown; did you mean 'quickstart'"),
    (["train"], "a preset as the first word, or --resume RUN, is needed (presets: atari_100k"),
    (["train", "debug", "--gmae", "alien"], "--gmae: unknown option; did you mean --game?"),
    (["train", "debug", "alien"], "'alien': not expected here; options begin with --"),
    (["train", "debug", "--game", "pacman_ms"], "did you mean 'ms_pacman'"),
    (["train", "debug", "--game", "xqzt"], "`rl-nfm games` lists all"),
    (["train", "debug", "--device", "tpu"], "--device: 'tpu' is not allowed (allowed: auto, cpu"),
    (["train", "debug", "--learner.reward-clip", "a"], "'a' is not allowed: must be none or a num"),
    (["train", "debug", "--env.num-envs"], "--env.num-envs: needs a value"),
    (["train", "debug", "--brims.num-rims", "a"], "'a' is not allowed: must be [INT [INT ...]]"),
    (["train", "debug", "--game", "mspackman"], "ms_pacman"),
    (["train", "debug", "--encoder", "nmf"], "did you mean 'nfm'"),
    (["train", "debug", "--impala.width", "8"], "--impala.width: encoder 'impala' is not chosen"),
    (["train", "debug", "--steps", "0"], "steps: 0 is not allowed"),
    (["train", "debug", "--steps", "many"], "--steps: 'many' is not allowed: must be an integer"),
    (["train", "debug", "--steps", "0", "--seed", "-1"], "steps: 0 is not allowed"),
    (["train", "debug", "--env.protocol", "dopamin"], "did you mean 'dopamine'"),
    (["train", "debug", "--env.num-envs", "0"], "env.num_envs: 0 is not allowed"),
    (["train", "debug", "--env.num-threads", "5000"], "rl-nfm: env.num_threads: 5000"),
    (["train", "debug", "--game", "memory_cue", "--env.stack-num", "4"], "env.stack_num: 4"),
    (["train", "debug", "--learner.auxiliary", "future_frame"], "must be NAME NUMBER NAME"),
    (["train", "debug", "--learner.discount", "1.5"], "learner.discount: 1.5 is not allowed"),
    (["train", "debug", "--learner.munchausen", "True"], "munchausen"),
    (
        ["train", "debug", "--replay.sequence-steps", "4"],
        "has no state (as many steps: --replay.sequence-steps 1",
    ),
    (["train", "debug", "--replay.capacity-steps", "20"], "capacity_steps: 20"),
    (["train", "debug", "--replay.capacity-steps", "99000000000"], "lower --replay.capacity-steps"),
    (["train", "debug", "--seed", "-1"], "seed: -1 is not allowed"),
    (["train", "debug", "--out"], "--out: needs a value"),
    (["train", "--resume", "/nonexistent"], "/nonexistent: not a run"),
    (["train", "debug", "--resume", "x"], "--resume: not allowed together"),
    (["train", "missing.yaml"], "missing.yaml: cannot be read"),
    (["train", "debug", "--encoder", "NFM"], "did you mean 'nfm'"),
    (["evaluate", "/nonexistent"], "/nonexistent"),
    (["evaluate", "ms_pacman-nfm"], "did you mean zoo:ms_pacman-nfm?"),
    (["supervised", "no_such_task"], "no_such_task"),
]


def test_a_signal_removes_what_is_half_written(tmp_path, monkeypatch):
    """As a video is that `timeout` or a batch system ends."""

    def main(argv):
        with written(tmp_path / argv[0]) as partial:
            partial.write_text("half")
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("went on")

    monkeypatch.setitem(sys.modules, "half", types.SimpleNamespace(main=main))
    monkeypatch.setitem(cli.COMMANDS, "half", "half")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        cli.main(["half", "video.mp4"])
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("argv", "message"), BAD, ids=[" ".join(a) or "-" for a, _ in BAD])
def test_bad_input_is_one_message_and_exit_code_2(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *argv)
    assert code == 2, out + err
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1
    assert len(err) < 400
    assert not list(tmp_path.rglob("checkpoints")), "nothing was begun"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_no_cuda_device(capsys, tmp_path):
    code, _, err = run(capsys, "train", "debug", "--device", "cuda", "--out", str(tmp_path / "x"))
    assert (code, "device: 'cuda' is not available" in err) == (2, True)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must be a mapping"),
        ("game: [", "not valid YAML"),
        ("gmae: alien\n", "did you mean 'game'"),
        ("replay: {batch_size: 0}\n", "replay.batch_size: 0 is not allowed"),
        ("nfm: {widht: 4}\n", "did you mean 'width'"),
    ],
)
def test_bad_yaml(text, message, capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    code, _, err = run(capsys, "train", str(path))
    assert (code, message in err) == (2, True), err


def test_numbers_written_as_in_papers_are_numbers(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("learner: {learning_rate: 1e-3}\n")
    assert read_preset(str(path)).learner.learning_rate == 1e-3


def test_unwritable_folder(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, "train", "debug", "--out", str(tmp_path / "file" / "run"))
    assert (code, "cannot be written" in err) == (2, True)


def test_damaged_checkpoints(capsys, tmp_path):
    folder = tmp_path / "run"
    assert run(capsys, "train", "debug", "--steps", "100", "--out", str(folder))[0] == 0
    path = checkpoint.find(folder)
    weights = path / "network.safetensors"
    whole = weights.read_bytes()
    for damage, message in ((whole[:-9], "truncated or changed"), (b"", "truncated or changed")):
        weights.write_bytes(damage)
        for command in (["evaluate", str(folder)], ["train", "--resume", str(folder)]):
            code, _, err = run(capsys, *command)
            assert (code, message in err) == (2, True), err
    weights.unlink()
    assert "missing" in run(capsys, "evaluate", str(path))[2]
    weights.write_bytes(whole)
    (path / "meta.json").write_text('{"kind": "another program", "files": {}}')
    code, _, err = run(capsys, "train", "--resume", str(folder), "--steps", "200")
    assert (code, "another program" in err) == (2, True)


@pytest.mark.parametrize("field", ["obs_shape", "num_actions", "counters", "config"])
def test_tampered_meta_data(field, capsys, tmp_path):
    folder = tmp_path / "run"
    assert run(capsys, "train", "debug", "--steps", "100", "--out", str(folder))[0] == 0
    path = checkpoint.find(folder) / "meta.json"
    meta = json.loads(path.read_text())
    meta[field] = "x"
    path.write_text(json.dumps(meta))
    code, _, err = run(capsys, "evaluate", str(folder))
    assert (code, "meta.json: changed since it was written" in err) == (2, True), err


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"rl-nfm {version('rl-nfm')}\n", "")


def test_help_suffices(capsys):
    assert cli.main(["--help"]) == 0
    assert "supervised" in capsys.readouterr().out
    assert cli.main(["train", "--help"]) == 0
    assert "quickstart" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "quickstart", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in (
        "--steps",
        "--out",
        "--resume",
        "--device",
        "--learner.n-steps",
        "(default: 4000)",
    ):
        assert word in text, word
    assert all(f"--{name}." in text for name in encoder_names()), "options of every encoder"


def test_a_preset_may_hold_groups_that_are_not_read():
    config = make_config({"encoder": "nature", "nfm": {"width": 8}, "nature": {"width": 4}})
    assert config.encoder == "nature"


@pytest.mark.parametrize(
    "argv",
    [["debug"], ["debug", "--seed", "3"], ["--resume", "run"], ["--resume", "run", "--steps", "9"]],
)
def test_freed_memory_is_kept_with_and_without_flags(argv, monkeypatch):
    kept = []
    monkeypatch.setattr(train_command, "keep_freed_memory", kept.append)
    monkeypatch.setattr(train_command.train, "train", lambda config, out: config.device)
    monkeypatch.setattr(
        train_command.train, "resume", lambda path, override: override(read_preset("debug"))
    )
    assert cli.main(["train", *argv]) == 0
    assert kept == [torch.device("cuda" if torch.cuda.is_available() else "cpu")]


@pytest.mark.parametrize(
    ("words", "code"),
    [("--version >&- 2>&-", 0), ("games atari5 2>&-", 0), ("--help > /dev/full", 2)],
)
def test_streams_that_are_closed_or_full(words, code):
    command = f"exec {sys.executable} -m agents.cli {words}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_text_that_a_stream_cannot_hold_is_escaped(monkeypatch, tmp_path):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["--version"]) == 0
    print("± ü")
    assert out.buffer.getvalue().endswith(b"\\xb1 \\xfc\n")


def test_a_folder_whose_name_is_no_text_is_refused(capsys, tmp_path):
    out = tmp_path / os.fsdecode(b"bad\xff")
    code, _, error = run(capsys, "train", "debug", "--out", str(out))
    assert code == 2
    assert "it is no UTF-8" in error
    assert not out.exists()
