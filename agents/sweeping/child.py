"""The process of one run: `rl-nfm` with arguments, which ends when the sweep that began it dies.

`python -m agents.sweeping.child PARENT ARGUMENTS...`, where PARENT is the sweep's process. Linux
tells the run of the parent's death, so it ends with a checkpoint; elsewhere it trains to its end,
and a sweep started again waits for it.

Linux tells it more than once where the parent had threads, each of which dies by itself: a second
SIGTERM would end the run at once, so the news come by another signal, which counts once.
"""

import ctypes
import os
import runpy
import signal
import sys
from types import FrameType

_PR_SET_PDEATHSIG = 1
"""<sys/prctl.h>: the signal that a process gets when its parent dies."""


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    if sys.platform == "linux":
        signal.signal(signal.SIGUSR1, _end)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
        if os.getppid() != int(argv[0]):  # it died before
            return 128 + signal.SIGTERM
    sys.argv[1:] = argv[1:]
    runpy.run_module("agents.cli", run_name="__main__")  # as a process of its own would
    return 0


_told: list[int] = []


def _end(number: int, _frame: FrameType | None) -> None:
    """End as SIGTERM asks for, at the first news alone."""
    if not _told:
        _told.append(number)
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
