"""Environments of an installed package, found by its entry points."""

import os
import subprocess
import sys
from pathlib import Path

from tests.installed import installed

ROOT = Path(__file__).parents[2]
MODULE = """
from envs.memory import MEMORY_PROTOCOL, make_memory_cue
from envs.registry import register_env


@register_env("echo_cue", protocol=lambda _: MEMORY_PROTOCOL, canonical=lambda _: "echo_cue")
def make(game, **options):
    "The cue task under another name."
    return make_memory_cue(game, **options)
"""
PROGRAM = """
import envs
env = envs.make_env("echo_cue", num_envs=3)
obs, _ = env.reset()
print(obs.shape, env.action_meanings[0], "echo_cue" in envs.env_keys(), "gone" in envs.env_keys())
"""


def test_an_installed_package_brings_an_environment_and_a_broken_one_is_left_out(tmp_path):
    installed(tmp_path, "rl_nfm.envs", "echo", MODULE)
    installed(tmp_path, "rl_nfm.envs", "gone", "raise RuntimeError('not today')")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    assert found.stdout.split() == ["(3,", "1,", "36,", "36)", "UPLEFT", "True", "False"]
    assert "environment plug-in gone (plugin_gone) is left out: RuntimeError" in found.stderr
