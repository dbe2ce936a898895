"""Where the runs of a sweep take place: `Executor`, and its form for the processes of one machine.

The other form is `agents.sweeping.cluster`. Both hand out `concurrent.futures.Future`, of which one
loop (`agents.sweeping.sweep`) waits for the next that is over.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from agents.sweeping.runs import PlannedRun, RunStop, execute
from rl_nfm.support.device import cores


class Executor(Protocol):
    """Carries out runs, as many at a time as there is room for."""

    threads: int
    """Cores of one run."""
    at_once: int
    """Runs side by side."""

    def submit(self, run: PlannedRun) -> "Future[int]":
        """Begin or resume a run when there is room; the future gives its process's exit code."""
        ...

    def end(self, run: PlannedRun) -> None:
        """Let one run end with a checkpoint, or never begin."""
        ...

    def stop(self) -> None:
        """Begin no more runs, and let those that are running end with a checkpoint."""
        ...

    def kill(self) -> None:
        """End the running ones at once, without a checkpoint."""
        ...


class LocalExecutor:
    """Processes on this machine; see `Executor`.

    Args:
        at_once: how many; none: one per core. They share the cores evenly.
    """

    def __init__(self, at_once: int | None = None):
        self.at_once = cores() if at_once is None else at_once
        self.threads = max(1, cores() // self.at_once)
        self._requests: dict[str, RunStop] = {}
        self._pool = ThreadPoolExecutor(self.at_once, thread_name_prefix="run")

    def submit(self, run: PlannedRun) -> "Future[int]":
        """See `Executor.submit`."""
        request = self._requests[run.name] = RunStop()
        return self._pool.submit(execute, run, self.threads, request)

    def end(self, run: PlannedRun) -> None:
        """See `Executor.end`."""
        self._requests[run.name].gently.set()

    def stop(self) -> None:
        """See `Executor.stop`."""
        for request in self._requests.values():
            request.gently.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def kill(self) -> None:
        """See `Executor.kill`."""
        for request in self._requests.values():
            request.at_once.set()
