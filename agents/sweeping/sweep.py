"""The loop of a sweep: submit unfinished runs, retry failed ones, and show the progress."""

import contextlib
import dataclasses
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Protocol

from agents.sweeping.executors import Executor
from agents.sweeping.progress_table import Board
from agents.sweeping.runs import PlannedRun, drop_replay_of, last_line, progress, saved_steps
from agents.training.stop import ending_signals
from rl_nfm.support.errors import signal_name

_BAD_INPUT = 2
"""Exit code of `rl-nfm` after an error of the user's."""
_LOOK_SECONDS = 0.5
"""Between looks at signals while nothing ends."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a sweep ended."""

    failed: dict[str, str]
    """Name of each run that was given up, to the last line it printed."""
    signal: int | None
    """Which signal ended the sweep before its runs were."""


class Work(Protocol):
    """The runs to do: a fixed list, or those that a search chooses as it goes."""

    def begin(self) -> Sequence[PlannedRun]:
        """The runs to begin now; called again and again."""
        ...

    def is_over(self, run: PlannedRun) -> bool:
        """Whether a run that has ended needs no further work."""
        ...

    def give_up(self, run: PlannedRun) -> None:
        """Called for a run that failed too often."""
        ...


class FixedWork:
    """All runs of a plan; see `Work`.

    Args:
        runs: in the order in which they begin, without those that are done.
        board: knows what is done.
    """

    def __init__(self, runs: Sequence[PlannedRun], board: Board):
        self._runs, self._board = list(runs), board

    def begin(self) -> Sequence[PlannedRun]:
        """See `Work.begin`."""
        runs, self._runs = self._runs, []
        return runs

    def is_over(self, run: PlannedRun) -> bool:
        """See `Work.is_over`."""
        return self._board.is_done(run)

    def give_up(self, run: PlannedRun) -> None:
        """See `Work.give_up`."""


def run_all(
    work: Work, executor: Executor, board: Board, retries: int, *, keep_replay: bool = False
) -> Outcome:
    """Bring every run to its end; those that fail too often are given up, the others go on.

    Args:
        work: says what is to be run.
        executor: where.
        board: shows how far the runs are.
        retries: how often a run that failed goes on from its checkpoint.
        keep_replay: leave the replay in the checkpoints of runs that are over.
    """
    failures: Counter[str] = Counter()
    failed: dict[str, str] = {}
    futures: dict[Future[int], PlannedRun] = {}
    obeyed = 0
    with _signals() as received:
        while True:
            if not received:
                futures |= {executor.submit(run): run for run in work.begin()}
            if not futures:
                break
            wait(futures, _LOOK_SECONDS, FIRST_COMPLETED)
            while obeyed < len(received[:2]):
                _obey(obeyed, received[obeyed], executor, board)
                obeyed += 1
            # not what `wait` returns: it overlooks cancelled ones
            for future in [future for future in futures if future.done()]:
                run = futures.pop(future)
                if received:
                    continue
                if work.is_over(run):
                    if not keep_replay:
                        drop_replays([run], board)
                    continue
                failures[run.name] += 1
                reason = _reason(future, run)
                if failures[run.name] <= retries and not _is_refused(future, run):
                    saved = saved_steps(run.folder) >= 0
                    again = "goes on from its checkpoint" if saved else "is tried again"
                    board.tell(f"{run.name}: failed, {again}: {reason}")
                    futures[executor.submit(run)] = run
                else:
                    failed[run.name] = reason
                    tries = "1 try" if failures[run.name] == 1 else f"{failures[run.name]} tries"
                    board.tell(f"{run.name}: given up after {tries}: {reason}")
                    work.give_up(run)
            board.show(failed)
    board.show(failed, last=True)
    return Outcome(failed=failed, signal=received[0] if received else None)


def drop_replays(runs: Iterable[PlannedRun], board: Board) -> None:
    """Delete the replays of runs that are over; says which of them cannot be deleted."""
    for run in runs:
        if reason := drop_replay_of(run):
            board.tell(f"{run.name}: its replay stays on disk: {reason}")


def _obey(obeyed: int, number: int, executor: Executor, board: Board) -> None:
    """On the first signal the runs end with a checkpoint each, on the second at once."""
    name = signal.Signals(number).name
    if obeyed == 0:
        board.tell(f"{name}: the runs end with a checkpoint each (once more: at once)")
        executor.stop()
    else:
        board.tell(f"{name}: the runs end at once")
        executor.kill()


def _is_refused(future: "Future[int]", run: PlannedRun) -> bool:
    """Whether a run ended by bad input before it did anything: another try would end likewise."""
    if future.cancelled() or future.exception() is not None:
        return False
    return future.result() == _BAD_INPUT and progress(run).steps == 0


def _reason(future: "Future[int]", run: PlannedRun) -> str:
    """Why a run is not finished, in one line."""
    error = None if future.cancelled() else future.exception()
    if error is not None:
        lines = str(error).strip().splitlines()
        return lines[-1] if lines else type(error).__name__
    code = future.result()
    if code < 0:
        return f"killed by {signal_name(-code)}"
    if code == 0:
        return f"it ended early (see {run.log})"
    return f"{last_line(run.log)} (exit code {code}, see {run.log})"


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Inside, `ending_signals` are collected instead of ending the process."""
    received: list[int] = []

    def collect(number: int, _frame: Any) -> None:
        received.append(number)

    before = {number: signal.signal(number, collect) for number in ending_signals()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
