"""The command `rl-nfm`: train, evaluate, export, report and what lists things.

User errors end with one line and exit code 2. Set RL_NFM_TRACEBACK=1 to see where they arose.
"""

import contextlib
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from types import FrameType

HELP = """usage: rl-nfm COMMAND ...

commands:
  train       train an agent from a preset, or go on with a run
  evaluate    play episodes with a trained agent; scores, video, attention
  sweep       compare encoders over games and seeds: many runs from one command
  export      a trained agent as a small folder to hand on, with scores and a model card
  agents      list the trained agents that come with the package
  report      learning curves and scores over seeds and games
  encoders    list the encoders
  games       list the games, their suites and scores
  supervised  the supervised tasks of NFM, RIMs, modular networks and arithmetic units

`rl-nfm COMMAND --help` tells the rest; `rl-nfm --version` the version.
"""
COMMANDS = {
    "train": "agents.commands.train",
    "evaluate": "agents.commands.evaluate",
    "sweep": "agents.commands.sweep",
    "report": "agents.commands.report",
    "export": "agents.commands.export",
    "agents": "agents.commands.agents",
    "games": "agents.commands.games",
    "encoders": "agents.commands.encoders",
    "supervised": "rl_nfm.supervised.cli",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    try:
        with _terminable():
            return _run(argv)
    except BrokenPipeError:
        return 1
    except (ValueError, OSError) as error:
        if os.environ.get("RL_NFM_TRACEBACK"):
            raise
        _tell(one_line(str(error) or type(error).__name__))
        return 2
    except KeyboardInterrupt:
        _tell("interrupted")
        return 130


def _prepare_streams() -> None:
    """Let every text be written: to nowhere where a stream is closed, escaped where it must be.

    A closed stream would also give its number to the next file, into which others then write.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):  # no one reads it, or the disk is full
        print(f"rl-nfm: {text}", file=sys.stderr)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Inside, a SIGTERM ends the command as an error does, which removes what is half written.

    What trains or sweeps handles the signal itself.
    """
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def one_line(message: str) -> str:
    """Of a message about several mistakes the first three, and how many there are more."""
    lines = [line.strip().rstrip(";") for line in message.splitlines() if line.strip()]
    more = [f"and {len(lines) - 3} more"] if len(lines) > 3 else []
    return "; ".join([*lines[:3], *more])


def _run(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="", flush=True)
        return 0
    command, *argv = words
    if command == "--version":
        print(f"rl-nfm {version('rl-nfm')}", flush=True)
        return 0
    from rl_nfm.support.configuration import nearest

    if command not in COMMANDS:
        raise ValueError(nearest("command", command, list(COMMANDS)))
    return importlib.import_module(COMMANDS[command]).main(argv)


if __name__ == "__main__":
    sys.exit(main())
