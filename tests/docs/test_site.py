"""The documentation: its commands and examples run, its modules exist, and its site builds."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from agents import cli
from agents.presets import preset_names

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

RUN_THE_ADDITIONS = """
from agents import cli

debug = ["train", "debug", "--steps", "120", "--run.checkpoint-every-steps", "120"]
encoder = ["--encoder", "tiny", "--tiny.width", "3"]
loss = ["--learner.auxiliary", "small_features", "0.01"]
replay = ["--replay.storage", "median"]
assert cli.main([*debug, *encoder, *loss, *replay, "--out", "agent"]) == 0
cue = ["--game", "echo_cue", "--steps", "80", "--run.eval-episodes", "0"]
assert cli.main(["train", "memory_cue", *cue, "--out", "cue"]) == 0
assert cli.main(["supervised", "parity", "--epochs", "2", "--out", "parity"]) == 0
frames = ["--train-frames", "8", "--validation-frames", "4", "--test-frames", "5", "--epochs", "1"]
words = ["supervised", "stacked_digits", "--model", "patches", "--patches.stride", "8", *frames]
assert cli.main([*words, "--out", "patches"]) == 0
"""


def blocks(page, language):
    """The fenced blocks of a language in a page of the documentation."""
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)


def build(out, *options):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", *options]
    return subprocess.run(
        [*command, "-d", out / "state", DOCS, out / "html"],
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_every_module_of_the_reference_exists():
    named = re.findall(r"automodule:: (\S+)", (DOCS / "reference.md").read_text())
    assert len(named) > 10
    for module in named:
        assert importlib.import_module(module).__doc__, module


def test_the_examples_of_the_readme_run(tmp_path):
    """In a process of their own, where nothing is registered yet; shorter, and on an agent here."""
    text = (ROOT / "README.md").read_text()
    play, inside_sb3 = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)[:2]
    for long, short in (
        ('"runs/my-run"', '"zoo:ms_pacman-nfm"'),
        ("range(1000)", "range(3)"),
        ("encoder(obs_sequence)", "encoder(torch.zeros(2, 1, 4, 84, 84, dtype=torch.uint8))"),
    ):
        assert long in play
        play = play.replace(long, short)
    assert "100_000" in inside_sb3
    script = tmp_path / "examples.py"
    script.write_text(f"import torch\n{play}{inside_sb3.replace('100_000', '100')}")
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr


def test_every_page_is_in_the_table_of_contents():
    listed = blocks("index.md", "{toctree}")[0].split()[2:]
    assert sorted([*listed, "index"]) == sorted(page.stem for page in DOCS.glob("*.md"))


@pytest.mark.slow
def test_the_commands_of_the_tutorial_run(tmp_path, monkeypatch, capsys):
    """As written, but with few steps and short evaluations."""
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("tutorial.md", "bash") for line in block.splitlines()]
    assert len(lines) == 5
    for line in lines:
        program, *words = shlex.split(line.replace("--steps 24000", "--steps 240"))
        if words[0] == "sweep":
            words += ["--run.eval-episodes", "2", "--run.eval-every-steps", "120"]
        assert program == "rl-nfm"
        assert cli.main(words) == 0, line
    assert "nature" in capsys.readouterr().out
    assert (tmp_path / "report" / "index.html").is_file()


@pytest.mark.slow
def test_the_examples_of_additions_run(tmp_path):
    program = tmp_path / "additions.py"
    program.write_text("\n".join([*blocks("extending.md", "python"), RUN_THE_ADDITIONS]))
    ran = subprocess.run(
        [sys.executable, program.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr
    assert '"loss/small_features"' in (tmp_path / "agent" / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path):
    built = build(tmp_path)
    assert built.returncode == 0, built.stderr
    pages = {page.stem: page.read_text() for page in (tmp_path / "html").glob("*.html")}
    for name in preset_names():
        assert f'href="#{name.replace("_", "-")}"' in pages["presets"]
    assert "agents.playing.policy.load" in pages["reference"]
    for page, text in pages.items():
        loaded = re.findall(r'<(?:script|img)[^>]* src="([^"]*)|<link[^>]* href="([^"]*)', text)
        assert not [a or b for a, b in loaded if (a or b).startswith(("http", "//"))], page
        for target in re.findall(r'href="(?!\w+:)([^"#?]+)', text):
            assert (tmp_path / "html" / target).exists(), f"{page}: {target}"
