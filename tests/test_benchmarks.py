"""The scripts that measure speed: what they count, and how they start one another."""

import dataclasses
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def test_the_floor_of_an_update_has_the_products_counted_by_hand(benchmark, monkeypatch):
    """Plain DQN, 32 images: the online network forward and back, the target forward.

    The first convolution has no gradient of its input. What is counted is never compiled.
    """
    floor, made = benchmark("floor"), []

    def ours(config, device):
        made.append(config.learner.compile)
        config = dataclasses.replace(
            config, learner=dataclasses.replace(config.learner, compile=False)
        )
        return benchmark("update").ours(config, device)

    monkeypatch.setattr(floor, "ours", ours)
    products, moved, update, flops = floor.measure(floor.config_for("dqn", None, True), 1)
    assert made == [False, True], "the counted update and the timed one"
    first = 20 * 20 * 32 * 8 * 8 * 4
    network = first + 9 * 9 * 64 * 4 * 4 * 32 + 7 * 7 * 64 * 3 * 3 * 64 + 3136 * 512 + 512 * 9
    assert flops == 2 * 32 * (4 * network - first)
    assert min(products, moved, update) > 0


def test_every_name_that_is_offered_is_a_benchmark(benchmark):
    files = [path.stem for path in (SCRIPTS / "benchmarks").glob("[!_]*.py")]
    assert "update" in files
    for name in files:
        if name != "rims_jax" or importlib.util.find_spec("jax"):
            assert callable(benchmark(name).main), name


def test_a_whole_run_starts_each_contender_by_a_command_that_exists(benchmark):
    command = benchmark("end_to_end").command_of("rainbow_8", 10)
    done = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert command[0] == sys.executable
    assert "usage: benchmark.py end_to_end" in done.stdout


@pytest.mark.parametrize(("precision", "wanted"), [("bf16", "1.80"), ("fp32", "1.00")])
def test_wanted_ratios_depend_on_the_precision(precision, wanted, benchmark, capsys):
    measured = {"sb3_dqn": [0.1], "rainbow_8": [0.05]}
    benchmark("update").report(measured, torch.device("cpu"), 1, precision)
    assert capsys.readouterr().out.rstrip().endswith(f"2.00    {wanted}")
