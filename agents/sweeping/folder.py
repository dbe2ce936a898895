"""The folder of a sweep: made, checked and held before anything starts."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from agents.config import Config
from agents.sweeping.runs import PlannedRun, saved_steps
from envs import step_spec
from rl_nfm.support.output_files import check_file, made_folder

LOCK_FILE = ".lock"


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """Make the folder; inside, no other sweep can work on it.

    Where an error comes before anything was written into a new folder, it is removed again.

    Raises:
        ValueError: another one does, or the folder cannot be made or written.
    """
    lock_path, is_new = out / LOCK_FILE, not (out / LOCK_FILE).exists()
    was_there = out.exists()
    with made_folder("out", out):
        check_file("out", lock_path)
    with lock_path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"out: another sweep is working on {out}") from None
        try:
            yield
        except BaseException:
            if is_new and [*out.iterdir()] == [lock_path]:
                lock_path.unlink()
                if not was_there:
                    out.rmdir()
            raise


def check_space(
    out: Path, runs: Sequence[PlannedRun], configs: Mapping[str, Config], *, at_once: int | None
) -> None:
    """Refuse a disk that has less room than the checkpoints of these runs need at least.

    Args:
        out: on that disk.
        runs: unfinished ones.
        configs: method to config.
        at_once: how many hold a replay at a time, where it is dropped at the end; none: all.

    Raises:
        ValueError: with the space that is needed and that is there.
    """
    sizes = []
    for run in runs:
        config = configs[run.method]
        if config.run.save_replay:
            frames = min(config.steps, config.replay.capacity_steps)
            frames -= min(frames, max(0, saved_steps(run.folder)))
            spec = step_spec(run.game, config.protocol)
            sizes.append(frames * spec.channels * spec.height * spec.width)
    needed = sum(sorted(sizes, reverse=True)[:at_once])
    free = shutil.disk_usage(out).free
    if needed > free:
        raise ValueError(
            f"out: the replay buffers of {len(sizes[:at_once])} runs need {_size(needed)} in "
            f"{out}, where {_size(free)} are free; see --run.save-replay, "
            "--replay.capacity-steps and --at-once"
        )


def _size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
