"""Replays and auxiliary losses of an installed package, trained with by their names."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.installed import installed

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL)
OPTIONS = ["--learner.auxiliary", "small_features", "0.01", "--replay.storage", "median"]


def train(folder, *options):
    command = ["train", "debug", "--game", "memory_cue", "--out", str(folder / "run"), *options]
    return subprocess.run(
        [sys.executable, "-m", "agents.cli", *command],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def test_an_installed_package_brings_a_replay_and_a_loss_and_a_broken_one_is_left_out(tmp_path):
    loss, replay = (next(e for e in EXAMPLES if word in e) for word in ("small_features", "median"))
    installed(tmp_path, "rl_nfm.auxiliaries", "loss", loss)
    installed(tmp_path, "rl_nfm.replays", "replay", replay)
    trained = train(tmp_path, "--replay.storage", "median")
    assert trained.returncode == 0, trained.stderr
    without = subprocess.run(
        [sys.executable, "-m", "agents.cli", "evaluate", str(tmp_path / "run"), "--episodes", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert without.returncode == 0, f"an evaluation needs no replay: {without.stderr}"
    shutil.rmtree(tmp_path / "run")
    half = replay.replace('"median"', '"half"')
    installed(tmp_path, "rl_nfm.replays", "half", f"{half}\nraise RuntimeError('not today')")
    trained = train(tmp_path, *OPTIONS)
    assert trained.returncode == 0, trained.stderr
    metrics = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert "loss/small_features" in json.loads(metrics[-1])
    assert "replay storage plug-in half (plugin_half) is left out: RuntimeErr" in trained.stderr
    refused = train(tmp_path, "--replay.storage", "half")
    assert refused.returncode == 2
    assert "replay.storage: 'half' is unknown" in refused.stderr
    assert "median" in refused.stderr.splitlines()[-1], "allowed"
    assert "needs that package installed" in refused.stderr
