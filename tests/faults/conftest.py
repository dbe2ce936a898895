"""A small finished run to damage, and processes to kill."""

import contextlib
import os
import shutil
import time
import types
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import cloudpickle
import pytest
import torch

from agents.training import train
from tests.conftest import SERVER
from tests.small_runs import tiny


@contextlib.contextmanager
def child(work: Callable[[], object]) -> Iterator[BaseProcess]:
    """A process that does `work`; whatever is left of it is killed at the end.

    Like the ranks of a run it is a fork of a clean process, so `work` must not lean on what the
    test has patched. `exitcode` is 0 where `work` returned.
    """
    process = SERVER.Process(target=_do_quietly, args=(cloudpickle.dumps(work),), daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _do_quietly(work: bytes) -> None:
    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    cloudpickle.loads(work)()


def wait_for(condition: Callable[[], object], process: BaseProcess, seconds: float = 120.0) -> None:
    """Until it holds, while the process lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        assert process.is_alive(), "the process has ended"
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
