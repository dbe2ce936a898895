"""The trained agents that come with the package, each the folder that `rl-nfm export` writes.

`zoo:NAME` stands for one of them wherever a run or a checkpoint is asked for.
"""

from pathlib import Path

from rl_nfm.support import storage
from rl_nfm.support.configuration import nearest
from rl_nfm.support.storage import CheckpointError

ZOO = Path(__file__).parents[1] / "zoo"
PREFIX = "zoo:"


def agent_names() -> list[str]:
    """Names of the agents that come with the package."""
    return sorted(path.parent.name for path in ZOO.glob(f"*/{storage.META}"))


def locate(path: Path) -> Path:
    """The folder that `zoo:NAME` stands for; any other path is passed through.

    Raises:
        CheckpointError: no agent of that name comes with the package.
    """
    if not str(path).startswith(PREFIX):
        return path
    name = str(path).removeprefix(PREFIX)
    if name not in agent_names():
        raise CheckpointError(nearest(PREFIX.rstrip(":"), name, agent_names()))
    return ZOO / name
