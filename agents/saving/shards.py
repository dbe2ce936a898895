"""Where the ranks of one run keep their checkpoints, and which of them belong together.

Each rank writes checkpoints of its own, whole and atomic by themselves: rank 0 in `checkpoints`, as
a run of one process does, rank 1 in `checkpoints/rank-1`, ... They are written side by side, so
after a crash some ranks may have the last one and others not; a run goes on from the youngest that
all of them have.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

from agents.config import CONFIG_FILE
from agents.saving.checkpoint import Checkpoint, list_checkpoints, open_checkpoint, step_of
from agents.saving.restoring import LearnerPart, Part, ReplayPart, restore
from rl_nfm.support import storage
from rl_nfm.support.ranks import Ranks


def folder_of(checkpoints: Path, rank: int) -> Path:
    """The folder of a rank's checkpoints."""
    return checkpoints / f"rank-{rank}" if rank else checkpoints


def begin(run: Path, ranks: Ranks) -> None:
    """Make the folder of this rank's checkpoints, before there is work that could be lost.

    Raises:
        ValueError: it cannot be made, or this rank does not see the run that rank 0 has begun.
    """
    if not (run / CONFIG_FILE).is_file():
        raise ValueError(f"out: {run} is not there: all ranks need storage that they share")
    folder = folder_of(run / "checkpoints", ranks.rank)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be made ({error.strerror})") from None


def newest(checkpoints: Path) -> Path | None:
    """The checkpoint of rank 0 to resume from: one that no rank lacks, if there is any.

    Raises:
        CheckpointError: a damaged one.
    """
    found = list_checkpoints(checkpoints)
    if not any(checkpoints.glob("rank-*")):
        return found[-1] if found else None
    whole = (path for path in reversed(found) if is_whole(open_checkpoint(path)))
    return next(whole, found[-1] if found else None)


def is_whole(of_first: Checkpoint) -> bool:
    """Whether all ranks that wrote this checkpoint of rank 0 have theirs of the same step."""
    folder, name = of_first.path.parent, of_first.path.name
    return all((folder_of(folder, rank) / name).is_dir() for rank in range(1, of_first.meta.ranks))


def part_of(of_first: Checkpoint, ranks: Ranks) -> Checkpoint | None:
    """The checkpoint of this very rank; None where another number of ranks wrote it.

    Raises:
        CheckpointError: it is damaged.
    """
    if of_first.meta.ranks != ranks.size or not is_whole(of_first):
        return None
    if ranks.first:
        return of_first
    folder, name = of_first.path.parent, of_first.path.name
    return open_checkpoint(folder_of(folder, ranks.rank) / name, replay=True)


def restore_part(
    of_first: Checkpoint,
    ranks: Ranks,
    learner: LearnerPart,
    replay: ReplayPart,
    others: Mapping[str, Part],
) -> Checkpoint:
    """Resume from this rank's part of a checkpoint, or else with a replay to be filled anew.

    Args:
        of_first: that of rank 0.
        ranks: of the run as it goes on.
        learner: see `agents.saving.restoring.restore`, also for the next two.
        replay: of this rank.
        others: further parts by name.

    Returns:
        What a writer goes on from; without files where none of them is to be linked.

    Raises:
        CheckpointError: if something is missing or does not fit.
    """
    part = part_of(of_first, ranks)
    held = restore(part or of_first, learner, replay, others, of_rank=part is not None)
    if part is not None:
        if not held:
            print(
                f"note: {part.path} holds no replay (run.save_replay was off, or a sweep "
                f"dropped it when the run was done); learning goes on when a new one holds "
                f"replay.min_steps ({part.config.replay.min_steps})"
            )
        return part
    print(
        f"note: going on with {ranks.size} processes from a checkpoint of {of_first.meta.ranks}: "
        "weights, optimiser and counts go on, the replay is filled anew"
    )
    return dataclasses.replace(of_first, meta=dataclasses.replace(of_first.meta, files={}))


def forget_others(checkpoints: Path, ranks: Ranks, steps: int) -> None:
    """Remove this rank's checkpoints after `steps`, from which the ranks do not go on together.

    Trained again, such a step would be another one, and not fit the older ones of other ranks.
    """
    for path in list_checkpoints(folder_of(checkpoints, ranks.rank)):
        if step_of(path) > steps and not path.is_symlink():
            storage.remove(path)


def forget_former_ranks(checkpoints: Path, ranks: Ranks) -> None:
    """Remove the checkpoints of ranks that a run, resumed with fewer of them, no longer has."""
    last = newest(checkpoints)
    if last is None or open_checkpoint(last).meta.ranks != ranks.size:
        return
    for path in checkpoints.glob("rank-*"):
        number = path.name.removeprefix("rank-")
        if number.isdecimal() and int(number) >= ranks.size and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
