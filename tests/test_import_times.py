"""What is imported when: commands start fast, and a module alone brings nothing of the agent."""

import resource
import subprocess
import sys

import pytest

PLAIN_MODULE = """
from torch import nn
from rl_nfm.nfm import NeuralFunctionModule
NeuralFunctionModule([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)], channels=(4, 4))
"""
COMPILERS = ("torch._dynamo", "torch._inductor", "triton", "sympy")
"""What takes as long to import as PyTorch without them."""


def loaded(code, *modules):
    """Which of the modules a fresh interpreter has after `code`."""
    told = f"{code}\nimport sys\nprint(*(m for m in {modules!r} if m in sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, check=True, timeout=100
    )
    return found.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import agents", ("torch", "cv2", "tensorboard", "matplotlib")),
        ("import agents; agents.load", ("cv2", "tensorboard", "matplotlib", "imageio")),
        ("import agents.cli", ("torch", "numpy", "tyro")),
        ("import agents.training.train, agents.commands.evaluate", COMPILERS),
        ("import rl_nfm.nfm, rl_nfm.rims, rl_nfm.supervised.cli", COMPILERS),
        ("import envs", ("torch", "cv2", "tyro", "yaml")),
        ("import rl_nfm.nfm", ("tyro", "yaml", "tensorboard")),
        (PLAIN_MODULE, ("tyro", "yaml", "tensorboard", "cv2")),
    ],
)
def test_what_is_not_needed_is_not_loaded(code, modules):
    assert loaded(code, *modules) == []


def test_a_run_begins_without_the_compiler(tmp_path):
    """It comes with the optimiser, that is with the first update or the first checkpoint."""
    argv = ["train", "memory_cue", "--steps", "16", "--out", str(tmp_path / "run")]
    code = (
        "from agents.training.loop import Loop\nLoop._finish = lambda self: None\n"
        f"from agents.cli import main\nassert main({argv}) == 0"
    )
    assert loaded(code, *COMPILERS) == []


def test_the_probe_sees_what_is_loaded():
    assert loaded("import yaml", "yaml", "tyro") == ["yaml"]


def seconds_of(*command):
    """Processor time, which is steadier than the clock where others are at work."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], capture_output=True, check=True, timeout=200)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_answers_before_torch_would_have_been_imported():
    torch = min(seconds_of("-c", "import torch") for _ in range(2))
    answer = min(seconds_of("-m", "agents.cli", "--help") for _ in range(2))
    assert answer < 1.5 * torch
