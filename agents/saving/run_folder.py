"""A run's folder: config, metrics.jsonl, TensorBoard and checkpoints.

`metrics.jsonl` is the record; TensorBoard's scalars are derived from it, so that a resumed run can
cut both back to its checkpoint. Pictures are in TensorBoard alone, and are kept when it goes on.
"""

import contextlib
import fcntl
import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.config import CONFIG_FILE, Config, make_config, to_plain, write_config
from agents.saving import checkpoint
from agents.saving.tensorboard import add_config, add_scalars, pictures_until
from rl_nfm.support.curves import Curves
from rl_nfm.support.metrics_file import Line, MetricsFile
from rl_nfm.support.output_files import check_name
from rl_nfm.support.yaml_file import read_yaml

if TYPE_CHECKING:
    from rl_nfm.support.event_writer import CurveWriter

LOCK = ".lock"


class BusyError(ValueError):
    """Another process is training the run."""


class RunFolder:
    """Paths of a run and the writers of its metrics."""

    def __init__(self, path: Path):
        self.path = path
        self.config_path = path / CONFIG_FILE
        self.metrics_path = path / "metrics.jsonl"
        self.metrics = MetricsFile(self.metrics_path, "steps")
        self.checkpoints = path / "checkpoints"
        self.curves = Curves(path / "tensorboard", begin=self._begin_curves)
        self._shown: Mapping[str, Any] = {}

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
        """Check, before memory is allocated, whether a new run may begin there.

        Raises:
            ValueError: the folder is not empty, cannot be made or written, or is no text.
        """
        check_name("out", out)
        made = next(path for path in (out, *out.absolute().parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=made):
                pass
        except OSError as error:
            raise ValueError(f"out: {out} cannot be written ({error.strerror})") from None
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
            BusyError: if another process holds it.
            ValueError: if it cannot be held.
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
                raise BusyError(f"{self.path}: another process is training this run") from None
            except OSError as error:
                raise ValueError(
                    f"{self.path / LOCK}: cannot be locked ({error.strerror})"
                ) from None
            checkpoint.tidy(self.checkpoints)
            try:
                yield
            finally:
                self.curves.close()

    def begin(self, config: Config, steps: int) -> None:
        """Write the config, which a resumed run may have changed, and drop what came after `steps`.

        TensorBoard is written anew: from metrics.jsonl, and with the pictures that were there. That
        of a new run begins with its first metrics, as TensorBoard takes long to import.

        Raises:
            OSError: config or metrics cannot be written.
        """
        write_config(config, self.config_path)
        if not steps and (kept := self.metrics.set_aside()) is not None:
            print(f"note: no checkpoint: the run begins anew; its metrics until now: {kept}")
        self.metrics.cut(steps)
        self._shown = to_plain(config)
        self.curves.close()
        earlier = list(self.curves.folder.glob("events.out.tfevents.*"))
        if not earlier and not steps:
            return
        pictures = pictures_until(self.curves.folder, steps)
        if self.curves.draw(lambda writer: [writer.add_event(event) for event in pictures]):
            for path in earlier:
                with contextlib.suppress(OSError):
                    path.unlink()

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line; numbers also go to TensorBoard.

        Raises:
            ValueError: if metrics.jsonl cannot be written.
        """
        self.curves.draw(lambda writer: add_scalars(writer, metrics))
        try:
            self.metrics.append(metrics)
        except OSError as error:
            raise ValueError(
                f"{self.metrics.path}: cannot be written ({error.strerror}); what the last "
                f"checkpoint holds is safe, go on: --resume {self.path}"
            ) from None

    def _begin_curves(self, writer: "CurveWriter") -> None:
        add_config(writer, self._shown)
        for line in self.metrics.read().lines:
            add_scalars(writer, line)


def _new_folder(config: Config) -> Path:
    """A new folder below `runs`, distinct even for two runs that begin in the same second."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{folder_name(config.game)}-{config.encoder}-seed{config.seed}-{stamp}"
    for number in itertools.count(1):
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError


def _not_empty(path: Path) -> ValueError:
    if not RunFolder(path).config_path.exists():
        return ValueError(f"out: {path} is not empty (allowed: a new folder, or an empty one)")
    return ValueError(
        f"out: {path} is not empty; a run is never overwritten (go on: --resume {path})"
    )


def read_metrics(path: Path) -> list[Line]:
    """The lines of a metrics.jsonl that can be read; see `MetricsFile.read`."""
    return MetricsFile(path, "steps").read().lines


def folder_name(game: str) -> str:
    """A game's name as it appears in names of folders: Gymnasium ids may contain a slash."""
    return game.replace("/", "_")
