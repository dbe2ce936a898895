"""One run of a sweep: how it is begun and resumed, and how its progress is read.

A run is `rl-nfm train` (or `rl-nfm supervised`) in a process of its own. Its state is read from the
files which that command writes, at every look; nothing else keeps track of it.
"""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from agents.config import CONFIG_FILE
from agents.saving import checkpoint
from agents.saving.dropping import drop_replay
from agents.saving.run_folder import BusyError, RunFolder, read_metrics
from rl_nfm.support.commit import commit
from rl_nfm.support.errors import first_line
from rl_nfm.support.metrics_file import MetricsFile
from rl_nfm.support.storage import CheckpointError
from rl_nfm.support.sweep_folders import LOG_HEADER

_LOCK_POLL_SECONDS = 0.5
_PROCESS_POLL_SECONDS = 0.1
_SETTLE_SECONDS = 600.0
"""What a run that was asked to stop gets for its checkpoint before it is killed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run that a sweep asks for; plain values, so that it can be sent to another machine."""

    kind: Literal["train", "supervised"]
    game: str
    """Game, or supervised task: the first part of the run's place."""
    method: str
    """Encoder (or model) with what was varied: the second part."""
    seed: int
    folder: Path
    begin: tuple[str, ...]
    """Arguments of `rl-nfm` that begin the run."""
    resume: tuple[str, ...]
    """Arguments of `rl-nfm` that go on with it."""
    steps: int
    """Agent steps in all; of a supervised run its epochs, or updates where it counts those."""

    @property
    def name(self) -> str:
        """GAME/METHOD/seed-N, its place in the sweep."""
        return f"{self.game}/{self.method}/seed-{self.seed}"

    @property
    def log(self) -> Path:
        """The file for what the run prints. Not in its folder, which must start empty."""
        return self.folder.with_suffix(".log")


class RunStop:
    """Lets a sweep ask its runs to end, from any thread."""

    def __init__(self) -> None:
        self.gently = threading.Event()
        """End with a checkpoint."""
        self.at_once = threading.Event()
        """Do not wait for it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunProgress:
    """How far a run is."""

    steps: int = 0
    """As of the last line of its metrics."""
    done: bool = False
    """Whether its last checkpoint (or result) is that of the end."""
    steps_per_second: float | None = None
    """As last logged."""
    last_return: float | None = None
    """Mean return of the last 100 training episodes, as last logged."""
    logged_at: float = 0.0
    """When, in seconds of the clock."""


def progress(run: PlannedRun) -> RunProgress:
    """Read the progress of a run from its folder.

    Raises:
        ValueError: a damaged metrics file.
    """
    if run.kind == "supervised":
        return _supervised_progress(run)
    folder = RunFolder(run.folder)
    lines = read_metrics(folder.metrics_path)
    last = lines[-1] if lines else {}
    returns = [line["return_last_100"] for line in lines if line.get("return_last_100") is not None]
    return RunProgress(
        steps=int(last.get("steps", 0)),
        done=saved_steps(run.folder) >= run.steps,
        steps_per_second=last.get("steps_per_second"),
        last_return=returns[-1] if returns else None,
        logged_at=folder.metrics_path.stat().st_mtime if lines else 0.0,
    )


def _supervised_progress(run: PlannedRun) -> RunProgress:
    """Progress at the last evaluation of whichever trial or batch of seeds logged last."""
    if (run.folder / "result.json").is_file():
        return RunProgress(steps=run.steps, done=True)
    files = [*run.folder.glob("metrics.jsonl"), *run.folder.glob("*/metrics.jsonl")]
    if not files:
        return RunProgress()
    logged_at, newest = max((file.stat().st_mtime, file) for file in files)
    lines = MetricsFile(newest, "epoch").read().lines
    steps = int(lines[-1]["epoch"]) if lines else 0
    return RunProgress(steps=min(steps, run.steps), logged_at=logged_at)


def saved_steps(folder: Path) -> int:
    """Agent steps of a run's last checkpoint; -1 where there is none that can be read."""
    found = checkpoint.list_checkpoints(RunFolder(folder).checkpoints)
    try:
        return checkpoint.open_checkpoint(found[-1]).steps if found else -1
    except CheckpointError:
        return -1  # `train --resume` says what is wrong with it


def drop_replay_of(run: PlannedRun) -> str:
    """Delete the replay of a run that is over; returns why that failed, if it did."""
    if run.kind != "train" or not (run.folder / CONFIG_FILE).is_file():
        return ""
    try:
        drop_replay(run.folder)
    except (ValueError, OSError) as error:
        return first_line(error)
    return ""


def execute(run: PlannedRun, threads: int, stop: RunStop, *, folder: Path | None = None) -> int:
    """Begin or resume a run and wait for its end; returns the exit code of its process.

    Paths among its options are seen from `folder` (none: the present one). Asked to stop, by the
    request or by an exception such as that of Ray's cancelling, the run ends with a checkpoint
    first.
    """
    while _is_trained_elsewhere(run.folder):
        # The runs of a killed sweep end by themselves; on another machine that can take a while.
        if stop.gently.wait(_LOCK_POLL_SECONDS):
            break
    if stop.gently.is_set():
        return -signal.SIGTERM
    if progress(run).done:
        return 0
    process = _start(run, threads, folder)
    try:
        while process.poll() is None:
            if stop.gently.wait(_PROCESS_POLL_SECONDS):
                return _end(process, stop)
        return process.returncode
    except BaseException:
        _end(process, stop)
        raise


def _start(run: PlannedRun, threads: int, folder: Path | None) -> "subprocess.Popen[bytes]":
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with run.log.open("ab") as log:
        log.write(f"{LOG_HEADER}{commit()}\n".encode())
        log.flush()
        return subprocess.Popen(
            [sys.executable, "-m", "agents.sweeping.child", str(os.getpid()), *_arguments(run)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **thread_variables(threads)},
            start_new_session=True,  # Ctrl-C in the terminal is for the sweep, which passes it on
        )


def _end(process: "subprocess.Popen[bytes]", stop: RunStop) -> int:
    """Ask the process to end with a checkpoint, and kill it if it takes too long."""
    process.terminate()
    deadline = time.monotonic() + _SETTLE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if stop.at_once.wait(_PROCESS_POLL_SECONDS):
            break
    process.kill()
    return process.wait()


def _arguments(run: PlannedRun) -> tuple[str, ...]:
    begun = any((run.folder / name).is_file() for name in (CONFIG_FILE, "config.json"))
    if begun:
        return run.resume
    if run.folder.is_dir():  # killed while it was made, when there is nothing in it to lose
        if kept := [f for f in run.folder.rglob("*") if f.is_file() and f.name[0] != "."]:
            raise ValueError(f"{kept[0]} is there, but no config of the run; move the folder away")
        shutil.rmtree(run.folder)
    return run.begin


def _is_trained_elsewhere(folder: Path) -> bool:
    if not (folder / CONFIG_FILE).is_file():
        return False
    try:
        with RunFolder(folder).held():
            return False
    except BusyError:
        return True
    except ValueError:
        return False  # the run itself says what is wrong with its lock


def thread_variables(threads: int) -> Mapping[str, str]:
    """Environment variables that limit a run to this number of cores."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def last_line(path: Path, limit: int = 300) -> str:
    """The last line of a log that is not blank."""
    if not path.is_file():
        return "nothing was printed"
    text = path.read_bytes()[-10_000:].decode("utf-8", "replace")
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1].removeprefix("rl-nfm: ")[:limit] if lines else "nothing was printed"
