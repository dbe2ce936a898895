"""Signals that ask a run to end."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from rl_nfm.support.ranks import Ranks

EXCHANGE_SECONDS = 1.0


def ending_signals() -> list[signal.Signals]:
    """Those that ask a command to end; a closed terminal is one, unless `nohup` ignores it."""
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *[signal.SIGHUP] * hangs_up]


class Stop(Exception):
    """A signal asked the run to end; its name is the text."""

    def __init__(self, name: str, folder: Path):
        """Keep the run's folder, where it can go on from."""
        super().__init__(name)
        self.folder = folder


class StopRequest:
    """Remembers the first signal; a second one ends the process at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.all_know = False
        """Whether the ranks have told each other; they all learn it at the same point."""

    def __call__(self) -> bool:
        """Whether the run is to end."""
        return self.number is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, `ending_signals` are requests, where the process belongs to this run.

        Python lets only the main thread handle signals; a run in another one belongs to a program
        that decides for itself what its signals mean.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in ending_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self, ranks: Ranks) -> bool:
        """Whether any rank was asked to end; all ranks call it at the same step."""
        (number,) = ranks.agree(self.number or 0)
        self.tell_all(number)
        return number > 0

    def tell_all(self, number: int) -> None:
        """Note what all ranks have just agreed on: a signal's number, or 0."""
        if number:  # otherwise a signal may have come since
            self.number, self.all_know = number, True

    def raise_if_asked(self, folder: Path) -> None:
        """End the run of this folder as the signal wants.

        Raises:
            Stop: naming the signal.
        """
        if self.number is not None:
            raise Stop(signal.Signals(self.number).name, folder)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.number is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.number = number


class Meanwhile:
    """Lets ranks wait for one that works alone for a long time, and still pass on signals.

    Without it they would believe that a rank which evaluates for hours has died.

    Args:
        stop_request: the signals that this rank has received.
        ranks: all of them.
    """

    def __init__(self, stop_request: StopRequest, ranks: Ranks):
        self._stop_request, self._ranks = stop_request, ranks
        self._next = time.monotonic() + EXCHANGE_SECONDS

    def __call__(self) -> bool:
        """Whether to end; the rank that works calls it often."""
        if not self._ranks.alone and time.monotonic() >= self._next:
            self._exchange(working=True)
            self._next = time.monotonic() + EXCHANGE_SECONDS
        return self._stop_request()

    def wait(self) -> None:
        """Return when no rank works any more; a rank calls it as soon as it has no work left."""
        while self._exchange(working=False):
            pass

    def _exchange(self, *, working: bool) -> bool:
        others_work, number = self._ranks.agree(int(working), self._stop_request.number or 0)
        self._stop_request.tell_all(number)
        return others_work > 0
