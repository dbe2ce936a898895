"""A small finished run to damage, and processes to kill."""

import contextlib
import os
import shutil
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.config import Config, make_config, read_preset, to_plain
from agents.training import train

TINY: dict[str, Any] = {
    "game": "memory_cue",
    "steps": 96,
    "env": {"num_envs": 4, "stack_num": 2},
    "replay": {"capacity_steps": 200, "min_steps": 40, "batch_size": 3},
    "learner": {"steps_per_update": 8},
    "head": {"hidden_size": 8, "num_cosines": 4},
    "run": {
        "log_every_steps": 16,
        "checkpoint_every_steps": 32,
        "eval_every_steps": 48,
        "eval_episodes": 1,
    },
}


def tiny(**changes: Any) -> Config:
    """The debug preset on the memory task, whose episodes last a few steps, smaller still."""
    values = to_plain(read_preset("debug"))
    for change in (TINY, changes):
        for key, value in change.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return make_config(values)


@contextlib.contextmanager
def child(work: Callable[[], object]) -> Iterator[int]:
    """The process id of a fork that does `work`; whatever is left of it is killed at the end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # a fork has none of its parent's threads
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            work()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        os._exit(code)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def wait_for(condition: Callable[[], object], pid: int, seconds: float = 120.0) -> None:
    """Until it holds, while the process lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the process has ended"
        time.sleep(0.002)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained to its end; not to be changed."""
    return train.train(tiny(), out=tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


@pytest.fixture(scope="session")
def faults() -> types.SimpleNamespace:
    return types.SimpleNamespace(tiny=tiny, child=child, wait_for=wait_for)
