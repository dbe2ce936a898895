"""A checkpoint without its replay: enough to evaluate, and a tenth or less of the disk space."""

import dataclasses
from pathlib import Path

from agents.saving.checkpoint import KIND, list_checkpoints, open_checkpoint
from agents.saving.run_folder import RunFolder
from rl_nfm.support.storage import Draft, load_tensors

_REPLAY = "replay-"


def drop_replay(run: Path) -> int:
    """Rewrite the last checkpoint of a run that is over, without the rows of the replay.

    Networks, optimiser and random states stay as they are. A run that goes on from it first fills a
    new replay, and says so.

    Returns:
        Bytes that are free now; 0 where the checkpoint held no replay, or where there is none.

    Raises:
        ValueError: another process trains the run, or the checkpoint is damaged.
        OSError: nothing can be written there; the checkpoint is then as it was.
    """
    folder = RunFolder(run)
    with folder.held():
        found = list_checkpoints(folder.checkpoints)
        last = open_checkpoint(found[-1]) if found else None
        if last is None or last.meta.replay is None:
            return 0
        rows = [last.path / name for name in last.meta.files if name.startswith(_REPLAY)]
        freed = sum(path.stat().st_size for path in rows)
        meta = {**dataclasses.asdict(last.meta), "replay": None}
        with Draft(last.path) as draft:
            for name, digest in last.meta.files.items():
                if name.startswith(_REPLAY) or draft.link(name, last.path / name, digest):
                    continue
                draft.write(Path(name).stem, load_tensors(last.path / name))
            draft.commit(kind=KIND, meta=meta)
        return freed
