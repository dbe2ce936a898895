"""Begin a training run, or go on with one."""

from collections.abc import Callable
from pathlib import Path

from agents.config import Config, check_resumable
from agents.saving import checkpoint
from agents.saving.run_folder import RunFolder
from agents.training.stop import Stop
from agents.training.trainer import Trainer
from rl_nfm.support.device import choose_device

__all__ = ["Stop", "Trainer", "resume", "train"]


def train(config: Config, *, out: Path | None = None) -> Path:
    """Begin a new run; returns its folder.

    Raises:
        ValueError: see `RunFolder.create`, `choose_device`, `check_memory`; or learning diverged.
        Stop: a signal asked the run to end, which it did with a checkpoint.
    """
    device = choose_device(config.device)
    if out is not None:
        RunFolder.check_free(out)
    trainer = Trainer(config, device)
    folder = RunFolder.create(config, out)
    with folder.held(), trainer.memory_told():
        return trainer.run(folder, None)


def resume(path: Path, override: Callable[[Config], Config]) -> Path:
    """Go on with a run from its last checkpoint, or from its beginning where it has none.

    Args:
        path: the run's folder.
        override: gives the config to go on with from the saved one.

    Raises:
        ValueError: no run, a damaged checkpoint, or a change that does not fit; see `train` too.
        Stop: as for `train`.
    """
    folder = RunFolder.open(path)
    with folder.held():
        found = checkpoint.list_checkpoints(folder.checkpoints)
        last = checkpoint.open_checkpoint(found[-1], replay=True) if found else None
        config = override(folder.config())
        if last is not None:
            # Not with config.yaml, which may have been edited since.
            check_resumable(last.config, config)
            if config.steps < last.steps:
                raise ValueError(
                    f"steps: {config.steps} is not allowed: {last.steps} are done already"
                )
        trainer = Trainer(config, choose_device(config.device))
        with trainer.memory_told():
            return trainer.run(folder, last)
