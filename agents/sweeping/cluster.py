"""The runs of a sweep as tasks of a Ray cluster; see `agents.sweeping.executors.Executor`.

Ray places the tasks, notices lost machines and begins their tasks elsewhere. A task goes on from
the run's checkpoint, so the sweep's folder must be on storage that all machines share, and this
package installed on each of them.
"""

import dataclasses
import os
import socket
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from agents.sweeping.runs import PlannedRun, RunStop, execute
from rl_nfm.support.commit import commit, release
from rl_nfm.support.errors import first_line

_LOST_MACHINES = 20
"""How often Ray begins a task again whose machine was lost; this is no failure of the run."""

_REACH_SECONDS = 10
_THREADS = "--env.num-threads"


class RayExecutor:
    """Ray tasks; see `Executor`.

    Args:
        address: of the cluster, as Ray takes it: `auto`, `HOST:PORT`, `ray://HOST:PORT`.
        cpus: cores of one run.
        gpus: GPUs of one run, or a share of one.

    Raises:
        ValueError: Ray is not installed, there is no such cluster, or no machine is large enough.
    """

    def __init__(self, address: str, *, cpus: int, gpus: float):
        self._ray = _import_ray()
        _check_reachable(address)
        try:
            self._ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            reason = first_line(error)
            raise ValueError(f"ray: no cluster at {address!r} ({reason})") from None
        self.threads = cpus
        self.at_once = self._room(cpus, gpus)
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": _LOST_MACHINES}
        self._task = self._ray.remote(**options)(_execute)
        self._refs: dict[str, Any] = {}

    def _room(self, cpus: int, gpus: float) -> int:
        """How many runs fit on the machines that the cluster has now."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        counts = [int(node.get("CPU", 0) // cpus) for node in nodes]
        if gpus:
            by_gpu = [int(node.get("GPU", 0) / gpus + 1e-9) for node in nodes]
            counts = [min(pair) for pair in zip(counts, by_gpu, strict=True)]
        if not sum(counts):
            raise ValueError(
                f"ray: no machine of the cluster has {cpus} cores and {gpus:g} GPUs for a run; "
                "see --cpus-per-run and --gpus-per-run"
            )
        return sum(counts)

    def submit(self, run: PlannedRun) -> "Future[int]":
        """See `Executor.submit`."""
        ref = self._refs[run.name] = self._task.remote(run, self.threads, commit(), Path.cwd())
        return ref.future()

    def end(self, run: PlannedRun) -> None:
        """See `Executor.end`."""
        self._ray.cancel(self._refs[run.name])

    def stop(self) -> None:
        """See `Executor.stop`."""
        for ref in self._refs.values():
            self._ray.cancel(ref)

    def kill(self) -> None:
        """See `Executor.kill`."""
        for ref in self._refs.values():
            self._ray.cancel(ref, force=True)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ValueError("ray: is not installed; pip install 'rl-nfm[ray]'") from None
    return ray


def _check_reachable(address: str) -> None:
    """Refuse in seconds what Ray would try to reach for a quarter of an hour.

    Raises:
        ValueError: nothing answers there.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), _REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"ray: no cluster at {address!r} ({first_line(error)})") from None


def _execute(run: PlannedRun, threads: int, code: str, folder: Path) -> int:
    """The work of a task, on its machine.

    Raises:
        ValueError: this machine has other code, or not the folder of the sweep's command.
    """
    if commit() != code and release() not in (commit(), code):  # git may be missing on either
        raise ValueError(f"{socket.gethostname()} has rl-nfm at {commit()}, the sweep at {code}")
    if not folder.is_dir():  # from which paths among the options are seen
        raise ValueError(f"{folder}: is not there on {socket.gethostname()}")
    threads = min(threads, os.cpu_count() or 1)
    return execute(with_threads(run, threads), threads, RunStop(), folder=folder)


def with_threads(run: PlannedRun, threads: int) -> PlannedRun:
    """The run with at most this many emulator threads.

    `ray start --num-cpus` may declare more cores than a machine has; the environments there would
    refuse the cores of a run as a number of threads.
    """

    def limited(words: tuple[str, ...]) -> tuple[str, ...]:
        if _THREADS not in words:
            return words
        position = words.index(_THREADS) + 1
        fitting = str(min(threads, int(words[position])))
        return (*words[:position], fitting, *words[position + 1 :])

    return dataclasses.replace(run, begin=limited(run.begin), resume=limited(run.resume))
