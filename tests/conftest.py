"""Before any test module is imported, and the ranks of a run as forks."""

import contextlib
import os
import pickle
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    # Read when Triton is imported: its kernels then run in an interpreter, on CPU tensors.
    os.environ["TRITON_INTERPRET"] = "1"


class Forks:
    """Forks that see what processes begun by torchrun see; each does `work` and gives its result.

    Args:
        size: how many.
        work: what all of them do.
        folder: for their results.
    """

    def __init__(self, size: int, work: Callable[[], object], folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.results = [folder / f"result-{port}-{rank}" for rank in range(size)]
        self.codes: dict[int, int] = {}
        common = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "TORCHELASTIC_RUN_ID": "forks",
        }
        self.pids = [
            self._fork(work, path, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank, path in enumerate(self.results)
        ]

    def wait(self, seconds: float = 300.0) -> list[Any]:
        """The results, once all forks have ended; a rank that gave none gave None."""
        deadline = time.monotonic() + seconds
        while len(self.codes) < len(self.pids):
            assert time.monotonic() < deadline, "the ranks take too long"
            for pid in set(self.pids) - self.codes.keys():
                if (ended := os.waitpid(pid, os.WNOHANG))[0]:
                    self.codes[pid] = os.waitstatus_to_exitcode(ended[1])
            time.sleep(0.01)
        return [pickle.loads(x.read_bytes()) if x.exists() else None for x in self.results]

    def end(self) -> None:
        """Kill what is left."""
        for pid in set(self.pids) - self.codes.keys():
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _fork(self, work: Callable[[], object], path: Path, variables: dict[str, str]) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            torch.set_num_threads(1)  # a fork has none of its parent's threads
            os.environ.update(variables)
            result = pickle.dumps(work())
            path.with_suffix(".partial").write_bytes(result)
            path.with_suffix(".partial").rename(path)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)


@pytest.fixture
def in_ranks(tmp_path: Path):
    """`in_ranks(2, work)`: begin it in two forks; `.wait()` for the list of their results."""
    begun: list[Forks] = []

    def begin(size: int, work: Callable[[], object]) -> Forks:
        begun.append(Forks(size, work, tmp_path))
        return begun[-1]

    yield begin
    for forks in begun:
        forks.end()
