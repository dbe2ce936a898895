"""What holds before any test is imported, checks of shapes, and ranks of a run as processes."""

import contextlib
import faulthandler
import inspect
import multiprocessing
import os
import pickle
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import beartype
import cloudpickle
import jaxtyping
import pytest
import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

if not torch.cuda.is_available():
    # Read when Triton is imported: its kernels then run in an interpreter, on CPU tensors.
    os.environ["TRITON_INTERPRET"] = "1"


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """The type checker that pyproject.toml names to jaxtyping.

    Jaxtyping has one function checked before a call, of which it makes the result Any, and one
    after it, for the arguments and the result. Only the second one is, so that the errors that a
    function itself raises about its arguments are those that its callers get, as outside of tests.
    """
    before = inspect.signature(function).return_annotation is Any
    return function if before else beartype.beartype(function)


class _OnlyEager(type(jaxtyping.config)):
    """Shapes are checked of real tensors; a compiler or tracer would take the checks for code."""

    @property
    def jaxtyping_disable(self) -> bool:
        """What jaxtyping asks before each check."""
        return (
            torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or is_in_torch_dispatch_mode()  # make_fx, fake tensors, counters of operations
        )


del jaxtyping.config.jaxtyping_disable
jaxtyping.config.__class__ = _OnlyEager


SERVER = multiprocessing.get_context("forkserver")
"""Forks come from a process that has done nothing but import: a test process has threads and
compiled code of whatever ran before, and what a fork of it finds half done can hang."""
SERVER.set_forkserver_preload(["tests.agents.training.test_ranks", "torch._dynamo"])


class Forks:
    """Processes that see what those begun by torchrun see; each does `work`, gives its result.

    Args:
        size: how many.
        work: what all of them do; it must not lean on what a test has patched.
    """

    def __init__(self, size: int, work: Callable[[], object]):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "TORCHELASTIC_RUN_ID": "forks",
        }
        self.receivers, self.processes = [], []
        for rank in range(size):
            receiver, sender = SERVER.Pipe(duplex=False)
            variables = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            arguments = (cloudpickle.dumps(work), variables, sender)
            self.processes.append(SERVER.Process(target=_do, args=arguments, daemon=True))
            self.processes[-1].start()
            sender.close()  # so that a rank which ends without a word is heard
            self.receivers.append(receiver)

    @property
    def pids(self) -> list[int]:
        """Of the ranks, in their order."""
        return [process.pid for process in self.processes]

    def wait(self, seconds: float = 240.0) -> list[Any]:
        """The results, once all have ended; a rank that gave none gave None."""
        deadline = time.monotonic() + seconds
        results = []
        for receiver in self.receivers:
            if not receiver.poll(max(0.0, deadline - time.monotonic())):
                for process in self.processes:  # where they stand goes to stderr
                    with contextlib.suppress(ProcessLookupError):  # it has ended
                        os.kill(process.pid, signal.SIGABRT)
                raise AssertionError("the ranks take too long")
            try:
                results.append(pickle.loads(receiver.recv_bytes()))
            except EOFError:
                results.append(None)
        for process in self.processes:
            process.join()
        return results

    def end(self) -> None:
        """Kill what is left."""
        for process in self.processes:
            process.kill()
            process.join()


def _do(work: bytes, variables: dict[str, str], sender: Connection) -> None:
    """In a rank: the work, and its result to the test."""
    faulthandler.enable()
    torch.set_num_threads(1)
    os.environ.update(variables)
    sender.send_bytes(pickle.dumps(cloudpickle.loads(work)()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what takes longest first."""
    items.sort(key=lambda item: item.get_closest_marker("longest") is None)


@pytest.fixture
def in_ranks():
    """`in_ranks(2, work)`: begin it in two processes; `.wait()` for the list of their results."""
    begun: list[Forks] = []

    def begin(size: int, work: Callable[[], object]) -> Forks:
        begun.append(Forks(size, work))
        return begun[-1]

    yield begin
    for forks in begun:
        forks.end()
