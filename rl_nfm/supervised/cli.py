"""`rl-nfm supervised TASK ...`: finds the task and hands it the rest of the flags."""

import importlib
from collections.abc import Sequence

from rl_nfm.supervised.registry import task_entry, task_names
from rl_nfm.support.configuration import nearest

HELP = """usage: rl-nfm supervised TASK --model MODEL [--preset NAME|FILE] [--json FILE]
                         [--out DIR] [--resume DIR] [--seed N] [--trials N]
                         [--device auto|cpu|cuda] [task options]
       rl-nfm supervised report RUN... [--out DIR]
       rl-nfm supervised evaluate RUN [options of what is tested on]

The supervised tasks NFM, RIMs, modular networks and arithmetic units were published with.
`rl-nfm supervised TASK --help` lists a task's models and options;
`rl-nfm sweep supervised:TASK --models A B --seeds 0..2 --out DIR` trains several side by side.

tasks:
"""
COMMANDS = {
    "report": "rl_nfm.supervised.report.command",
    "evaluate": "rl_nfm.supervised.loop.evaluate",
}


def main(argv: Sequence[str]) -> int:
    """Run one task, or one of the commands over finished runs.

    Args:
        argv: the task's name and its flags.

    Raises:
        ValueError: what the user typed is unknown or not allowed.
        OSError: a file or folder cannot be read or written.
    """
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, task_names()), default=0)
        rows = [f"  {name:{width}}  {task_entry(name).summary}" for name in task_names()]
        print(HELP + "\n".join(rows))
        return 0
    if argv[0] in COMMANDS:
        return importlib.import_module(COMMANDS[argv[0]]).main(argv[1:])
    if argv[0] not in task_names():
        raise ValueError(nearest("task", argv[0], [*task_names(), *COMMANDS]))
    return task_entry(argv[0]).main(argv[1:])
