"""Begin a training run, or go on with one.

Under torchrun every process of the run calls these; see `rl_nfm.support.ranks`.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

from agents.config import Config
from agents.replay.storage import storages
from agents.saving import checkpoint, shards
from agents.saving.resumable import check_resumable
from agents.saving.run_folder import RunFolder
from agents.training.initial import initialize
from agents.training.parts import share_of
from agents.training.stop import Stop
from agents.training.trainer import Trainer
from rl_nfm.support.device import choose_device
from rl_nfm.support.ranks import Ranks, restarts, under_torchrun

__all__ = ["Stop", "Trainer", "resume", "train"]


def train(config: Config, *, out: Path | None = None) -> Path:
    """Begin a new run; returns its folder.

    torchrun repeats its command when a rank has failed: under it, a run that is in `out` already
    goes on.

    Raises:
        ValueError: see `RunFolder.create`, `choose_device`, `check_memory`; or learning diverged,
            or totals cannot be split evenly over the ranks, or one of these is lost.
        Stop: a signal asked the run to end, which it did with a checkpoint.
    """
    _ = storages[config.replay.storage]  # an unknown name is told before anything is made
    if out is None and restarts():
        raise ValueError("out: is needed with torchrun --max-restarts, which begins runs by it")
    if out is not None and under_torchrun() and RunFolder(out).config_path.is_file():
        return resume(out, lambda _: config)
    ranks = Ranks.of_torchrun()
    share_of(config, ranks)
    device = ranks.device(choose_device(config.device))
    with ranks.joined(device):
        if out is not None:
            ranks.of_first(lambda: RunFolder.check_free(out))
        trainer = Trainer(config, device, ranks=ranks)
        with trainer.explained_memory():
            initialize(trainer)
        folder = RunFolder(ranks.of_first(lambda: RunFolder.create(config, out).path))
        with (
            folder.held() if ranks.first else contextlib.nullcontext(),
            trainer.explained_memory(),
        ):
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
    ranks = Ranks.of_torchrun()
    config = override(folder.config())
    share_of(config, ranks)
    device = ranks.device(choose_device(config.device))
    with (
        ranks.joined(device),
        folder.held() if ranks.first else contextlib.nullcontext(),
    ):
        found: Path | None = ranks.of_first(lambda: _newest(folder, config))
        last = None if found is None else checkpoint.open_checkpoint(found, replay=ranks.first)
        if last is not None and last.steps >= config.steps and ranks.first:
            print(f"note: all {config.steps:,} steps are done; --steps N goes on up to step N")
        trainer = Trainer(config, device, ranks=ranks)
        with trainer.explained_memory():
            if last is None:
                initialize(trainer)
            return trainer.run(folder, last)


def _newest(folder: RunFolder, config: Config) -> Path | None:
    """The checkpoint to resume from, if the config fits it."""
    found = shards.newest(folder.checkpoints)
    if found is not None:
        last = checkpoint.open_checkpoint(found)
        # Not with config.yaml, which may have been edited since.
        check_resumable(last.config, config)
        if config.steps <= last.steps - config.env.num_envs:  # not its last, incomplete round
            raise ValueError(f"steps: {config.steps} is not allowed: {last.steps} are done already")
    return found
