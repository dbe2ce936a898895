"""A run's folder: config, metrics.jsonl, TensorBoard and checkpoints.

`metrics.jsonl` is the record; TensorBoard's scalars are derived from it, so that a resumed run can
cut both back to its checkpoint, and curves that cannot be written never end a run.
"""

import contextlib
import errno
import fcntl
import itertools
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.config import Config, make_config, write_config
from agents.saving import checkpoint
from rl_nfm.support.metrics_file import Line, MetricsFile
from rl_nfm.support.yaml_file import read_yaml

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

_LOG = logging.getLogger(__name__)
LOCK = ".lock"


class RunFolder:
    """Paths of a run and the writers of its metrics."""

    def __init__(self, path: Path):
        self.path = path
        self.config_path = path / "config.yaml"
        self.metrics_path = path / "metrics.jsonl"
        self.metrics = MetricsFile(self.metrics_path, "steps")
        self.checkpoints = path / "checkpoints"
        self._writer: SummaryWriter | None = None
        self._warned = False

    @classmethod
    def create(cls, config: Config, out: Path | None) -> "RunFolder":
        """Make a new run's folder and write its config.

        Raises:
            ValueError: if the folder exists and is not empty, or cannot be written.
        """
        try:
            folder = cls(_new_folder(config) if out is None else out)
            folder.path.mkdir(parents=True, exist_ok=True)
            if any(path.name != LOCK for path in folder.path.iterdir()):
                raise _not_empty(folder.path)
            with folder.held():
                if folder.config_path.exists():  # begun by another process in between
                    raise _not_empty(folder.path)
                write_config(config, folder.config_path)
        except OSError as error:
            raise ValueError(f"out: {out or 'runs'} cannot be written ({error.strerror})") from None
        return folder

    @staticmethod
    def check_free(out: Path) -> None:
        """Find out, before memory is taken, whether a new run may begin there.

        Raises:
            ValueError: the folder is not empty, or cannot be made or written.
        """
        made = next(path for path in (out, *out.absolute().parents) if path.exists())
        if not made.is_dir() or not os.access(made, os.W_OK | os.X_OK):
            why = os.strerror(errno.EACCES if made.is_dir() else errno.ENOTDIR)
            raise ValueError(f"out: {out} cannot be written ({why})")
        if out.is_dir() and any(path.name != LOCK for path in out.iterdir()):
            raise _not_empty(out)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """An existing run.

        Raises:
            ValueError: if there is none.
        """
        folder = cls(path)
        if not folder.config_path.is_file():
            raise ValueError(f"{path}: not a run (no config.yaml)")
        return folder

    def config(self) -> Config:
        """The run's config, as saved."""
        return make_config(read_yaml(self.config_path), where=str(self.config_path), saved=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no other process can train this run.

        What a killed one has left half-written is cleared away first.

        Raises:
            ValueError: if another process holds it, or it cannot be held.
        """
        try:
            # Opened without truncating and without following a link: it may be someone's file.
            lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise ValueError(
                f"{self.path / LOCK}: cannot be opened ({error.strerror}); must be a plain file"
            ) from None
        with contextlib.closing(os.fdopen(lock, "rb")):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self.path}: another process is training this run") from None
            except OSError as error:
                raise ValueError(
                    f"{self.path / LOCK}: cannot be locked ({error.strerror})"
                ) from None
            checkpoint.tidy(self.checkpoints)
            try:
                yield
            finally:
                self._close_writer()

    def cut(self, steps: int) -> None:
        """Drop every metric after `steps`, a torn last line too, and rebuild TensorBoard."""
        self.metrics.cut(steps)
        self._close_writer()
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line; numbers also go to TensorBoard.

        Raises:
            ValueError: if metrics.jsonl cannot be written.
        """
        self.draw(lambda writer: _add_scalars(writer, metrics))
        try:
            self.metrics.append(metrics)
        except OSError as error:
            raise ValueError(
                f"{self.metrics.path}: cannot be written ({error.strerror}); what the last "
                f"checkpoint holds is safe, go on: --resume {self.path}"
            ) from None

    def draw(self, write: "Callable[[SummaryWriter], object]") -> None:
        """Let `write` add to TensorBoard: scalars, images, histograms.

        A folder deleted in mid-run is made anew, with the scalars so far. Where the disk refuses,
        the run goes on without; one warning says so.
        """
        try:
            writer = self._open_writer()
            write(writer)
            writer.flush()
        except OSError as error:
            if not self._warned:
                self._warned = True
                _LOG.warning("rl-nfm: tensorboard/ cannot be written (%s): left out", error)
            self._close_writer()

    def _open_writer(self) -> "SummaryWriter":
        folder = self.path / "tensorboard"
        if self._writer is not None and not folder.is_dir():
            self._close_writer()
        if self._writer is None:
            from agents.saving.curves import CurveWriter  # TensorBoard takes long to import

            self._writer = CurveWriter(folder)
            for line in self.metrics.read().lines:
                _add_scalars(self._writer, line)
        return self._writer

    def _close_writer(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None


def _add_scalars(writer: "SummaryWriter", line: Mapping[str, Any]) -> None:
    for key, value in line.items():
        if key != "steps" and isinstance(value, (int, float)) and math.isfinite(value):
            writer.add_scalar(key, value, line["steps"])


def _new_folder(config: Config) -> Path:
    """A folder of its own below `runs`, also for two runs begun in the same second."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{folder_name(config.game)}-{config.encoder}-seed{config.seed}-{stamp}"
    for number in itertools.count(1):
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError


def _not_empty(path: Path) -> ValueError:
    return ValueError(
        f"out: {path} is not empty; a run is never overwritten (go on: --resume {path})"
    )


def read_metrics(path: Path) -> list[Line]:
    """The lines of a metrics.jsonl that can be read; see `MetricsFile.read`."""
    return MetricsFile(path, "steps").read().lines


def folder_name(game: str) -> str:
    """What a folder of a game's runs is called: ids of Gymnasium may hold a slash."""
    return game.replace("/", "_")
