"""The process of one run: `rl-nfm` with arguments, which ends when the sweep that began it dies.

`python -m agents.sweeping.child PARENT ARGUMENTS...`, where PARENT is the sweep's process. Linux
sends the run a SIGTERM upon the parent's death, so it ends with a checkpoint; elsewhere it trains
to its end, and a sweep started again waits for it.
"""

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1
"""<sys/prctl.h>: the signal that a process gets when its parent dies."""


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(argv[0]):  # it died before
            return 128 + signal.SIGTERM
    sys.argv[1:] = argv[1:]
    runpy.run_module("agents.cli", run_name="__main__")  # as a process of its own would
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
