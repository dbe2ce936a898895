"""Writing checkpoints in the background: the content is copied at once, a thread writes it.

The copy is made on the device, so training stops only for as long as that takes; what it holds does
not depend on when the thread runs. Where there is no room for a copy, the checkpoint is written
before training goes on. The one before stays whole until the new one is.

Of the replay only chunks that changed are written again; the others are hard links to the files of
the checkpoint before.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from agents.config import Config, to_plain
from agents.saving.checkpoint import (
    BEST,
    KIND,
    Checkpoint,
    best_return,
    first_not_finite,
    list_checkpoints,
    step_of,
)
from agents.saving.restoring import LearnerPart, Part, ReplayPart
from rl_nfm.support import storage
from rl_nfm.support.memory import free_bytes
from rl_nfm.support.ranks import ALONE, Ranks

CHUNK_BYTES = 64 * 2**20
Files = dict[str, dict[str, Tensor]]
"""File stem to named tensors."""


class CheckpointWriter:
    """Writes the checkpoints of one run, one at a time.

    Args:
        folder: `checkpoints` of the run.
        config: of the run.
        learner: owner of the networks.
        replay: the ring of rows.
        others: further parts by name.
        obs_shape: (C, H, W) of an observation, for whoever builds the network again.
        last: what the run goes on from.
        ranks: that train the run, each with a writer and a folder of its own.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        learner: LearnerPart,
        replay: ReplayPart,
        *,
        obs_shape: Sequence[int],
        others: Mapping[str, Part] = MappingProxyType({}),
        last: Checkpoint | None = None,
        ranks: Ranks = ALONE,
    ):
        self.folder, self.config, self.obs_shape = folder, config, tuple(obs_shape)
        self.learner, self.replay, self.others, self.ranks = learner, replay, others, ranks
        self.saved_steps = -1 if last is None else last.steps
        """Agent steps of the newest checkpoint, written or being written."""
        self._last = None if last is None else last.path
        self._last_files = {} if last is None else dict(last.meta.files)
        self._needed: Path | None = None
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(self, counters: Mapping[str, Any], *, wait: bool = False) -> None:
        """Write a checkpoint, then drop older ones.

        Args:
            counters: of the training loop; `steps` names the checkpoint.
            wait: return when it is written.

        Raises:
            ValueError: weights that are not finite, or this one or the one before could not be
                written; names the last good checkpoint.
        """
        self.wait()
        self.ranks.agree()  # all have written the one before
        files = self._state()
        self._check_finite(files, counters["steps"])
        meta = self._meta(counters)
        try:
            self.folder.mkdir(exist_ok=True)  # not the run's folder, which may have been deleted
            draft = storage.Draft(self.folder / f"step_{counters['steps']:09d}")
        except OSError as error:
            raise self._not_written(error) from None
        if self.config.run.save_replay:
            meta["replay"] = {"added_rows": self.replay.added_rows, "rows": self.replay.rows}
            files |= self._changed_chunks(draft)
        self.saved_steps = counters["steps"]
        if not self.ranks.alone:
            self._needed = self._last  # until the others have this one too
        copied = None if wait else _copies(files, self.learner.device)
        if copied is None:
            self._write(draft, files, meta)
            self.check()
        else:
            # A daemon, so that a second signal ends the process at once: a draft does no harm.
            self._thread = threading.Thread(
                target=self._write, args=(draft, copied, meta), name="checkpoint", daemon=True
            )
            self._thread.start()

    def save_best(self, counters: Mapping[str, Any], mean_return: float) -> bool:
        """Write the network alone as the best one, if it is better than that on disk.

        What is on disk is asked, since a run that goes on from before its best evaluation does not
        remember it.

        Returns:
            whether it was better.

        Raises:
            ValueError: if it cannot be written.
        """
        best = best_return(self.folder)
        if best is not None and mean_return <= best:
            return False
        network = {"network": self.learner.online.state_dict()}
        self._check_finite(network, counters["steps"])
        meta = self._meta({**counters, "best_return": mean_return})
        try:
            self.folder.mkdir(exist_ok=True)
            storage.save_directory(self.folder / BEST, kind=KIND, meta=meta, tensors=network)
        except OSError as error:
            raise self._not_written(error) from None
        return True

    @property
    def last_good(self) -> Path | None:
        """The newest checkpoint that is completely written."""
        return self._last

    def check(self) -> None:
        """Raise an error that occurred in the background.

        Raises:
            ValueError: names the last good checkpoint.
        """
        if self._failure is not None:
            raise self._not_written(self._failure) from None

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            ValueError: if it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _state(self) -> Files:
        """All state except for the rows of the replay."""
        learner, replay = self.learner, self.replay
        training = learner.state()
        for prefix, part in {"replay": replay, **self.others}.items():
            training |= {f"{prefix}.{name}": value for name, value in part.state().items()}
        training["rng.cpu"] = torch.get_rng_state()
        if learner.device.type == "cuda":
            training["rng.cuda"] = torch.cuda.get_rng_state(learner.device)
        return {"network": learner.online.state_dict(), "training": training}

    def _meta(self, counters: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "config": to_plain(self.config),
            "counters": {**counters, "updates": self.learner.updates},
            "obs_shape": list(self.obs_shape),
            "num_actions": self.learner.online.head.num_actions,
            "torch": torch.__version__,
            "ranks": self.ranks.size,
        }

    def _check_finite(self, files: Files, steps: int) -> None:
        for tensors in files.values():
            if (name := first_not_finite(tensors)) is not None:
                raise ValueError(
                    f"checkpoint: {name} is not finite at step {steps}: not saved{self._kept()}"
                )

    def _write(self, draft: storage.Draft, files: Files, meta: dict[str, Any]) -> None:
        try:
            with draft, _own_stream(self.learner.device):
                for stem, tensors in files.items():
                    draft.write(stem, tensors)
                draft.commit(kind=KIND, meta=meta)
            self._last, self._last_files = draft.target, draft.digests
            self._drop_older(self._needed or draft.target)
        except Exception as error:  # of whatever kind: `check` ends the run with it
            self._failure = error

    def finish(self) -> None:
        """Wait for the last checkpoint, which is then the only one.

        Raises:
            ValueError: if it could not be written.
        """
        self.wait()
        if not self.ranks.alone:
            self.ranks.agree()
            if self._last is not None:
                self._drop_older(self._last)

    def _drop_older(self, kept: Path) -> None:
        for path in list_checkpoints(self.folder):
            # One that is a link, or younger, was put there by someone else.
            if step_of(path) < step_of(kept) and not path.is_symlink():
                with contextlib.suppress(OSError):
                    storage.remove(path)

    def _changed_chunks(self, draft: storage.Draft) -> Files:
        """Link the chunks that are as before into the draft; the others, to be written."""
        changed: Files = {}
        stores = self.replay.row_stores
        row_bytes = sum(store[0].numel() * store.element_size() for store in stores.values())
        size = max(1, CHUNK_BYTES // row_bytes)
        for stem, rows in chunks(self.replay.added_rows, self.replay.rows, size).items():
            name = f"{stem}.safetensors"
            digest = self._last_files.get(name)
            linked = digest is not None and draft.link(
                name, (self._last or self.folder) / name, digest
            )
            if not linked:
                changed[stem] = {key: store[rows] for key, store in stores.items()}
        return changed

    def _not_written(self, error: Exception) -> ValueError:
        return ValueError(f"checkpoint: cannot be written ({error}){self._kept()}")

    def _kept(self) -> str:
        return f"; the one before is whole: {self._last}" if self._last else ""


def chunks(added_rows: int, rows: int, size: int) -> dict[str, slice]:
    """File stem to rows of a ring, at most `size` a file.

    The name tells the last row written in it, counted from the run's begin, so it changes with
    what is in the file.
    """
    newest, filled = added_rows - 1, min(added_rows, rows)
    lap, position = divmod(newest, rows)
    found = {}
    for begin in range(0, filled, size):
        end = min(begin + size, filled)
        # the youngest row at or before `newest` that lies in begin..end
        if position >= end:
            last = lap * rows + end - 1
        elif position >= begin:
            last = newest
        else:
            last = (lap - 1) * rows + end - 1
        found[f"replay-{begin:08d}-{last:012d}"] = slice(begin, end)
    return found


def _copies(files: Files, device: torch.device) -> Files | None:
    """Copies, on the device, of all tensors to be saved; None where there is no room for them."""
    tensors = [value for named in files.values() for value in named.values()]
    needed = sum(value.numel() * value.element_size() for value in tensors)
    free = free_bytes(device)
    if free is not None and needed > free // 2:
        return None
    _synchronize(device)  # updates may run on streams of their own
    try:
        copies = {
            stem: {name: value.detach().clone() for name, value in named.items()}
            for stem, named in files.items()
        }
    except torch.OutOfMemoryError:
        return None
    _synchronize(device)  # before the thread reads them on a stream of its own
    return copies


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def _own_stream(device: torch.device) -> Iterator[None]:
    """Inside, on a GPU, copies to the host neither wait for training nor delay it."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.stream(_stream_of_copies(device)):
        yield


@functools.cache
def _stream_of_copies(device: torch.device) -> torch.cuda.Stream:
    """One for all checkpoints: PyTorch has 32, and hands out that of the learner in its turn."""
    return torch.cuda.Stream(device)
