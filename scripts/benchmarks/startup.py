"""From the shell to the first step of training, beside `python -c "import torch"`.

Each command is a process of its own, which ends when the observations of its first step are back
and are counted. Commands take turns; a first turn, which fills the system's caches, is not
measured. Time is by the clock, so nothing else should run.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._options import positive

WANTED = 1.3
COMMANDS = ("debug", "debug --env.num-envs 4", "memory_cue")
CUT_SHORT = """
import importlib.abc, importlib.machinery, os, sys

class CutShort(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "agents.training.loop":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            module.Loop._count_episodes = lambda *_: os._exit(42)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, CutShort())
from agents.cli import main
main(sys.argv[1:])
"""
"""Ends the process with code 42 at the first step, without importing anything early."""


def seconds(words: list[str], code: int) -> float:
    """By the clock, until a Python process has ended with this exit code."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode != code:
        raise SystemExit(f"{' '.join(words[2:])}: ended with {done.returncode}: {done.stderr}")
    return took


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=positive, default=5)
    options = parser.parse_args(argv)
    times: dict[str, list[float]] = {name: [] for name in ("import torch", *COMMANDS)}
    for turn in range(1 + options.rounds):
        for name, measured in times.items():
            with tempfile.TemporaryDirectory() as folder:
                if name == "import torch":
                    took = seconds(["-c", name], 0)
                else:
                    out = ["--out", str(Path(folder) / "run")]
                    took = seconds(["-c", CUT_SHORT, "train", *name.split(), *out], 42)
            measured += [took] if turn else []
    base = statistics.median(times["import torch"])
    print(f"{'':30s} {'seconds':>8s} {'over import torch':>18s}")
    for name, measured in times.items():
        median = statistics.median(measured)
        print(f"{name:30s} {median:8.2f} {median / base:18.2f}")
    print(f"wanted for debug: {WANTED}")
