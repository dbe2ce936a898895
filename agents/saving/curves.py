"""TensorBoard's event file, written at once instead of by a thread.

TensorBoard's own writer has a thread that dies with a traceback when its folder is deleted or the
disk is full, and loses what it had not written yet when the process is killed.
"""

import itertools
import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

_NUMBERS = itertools.count()


class CurveWriter(SummaryWriter):
    """torch's `SummaryWriter`, whose errors arise where something is added or flushed.

    Raises:
        OSError: when the folder cannot be made or the file cannot be written.
    """

    def __init__(self, folder: Path):
        super().__init__(str(folder))

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            self.file_writer = _EventWriter(Path(self.log_dir))
            self.all_writers = {self.log_dir: self.file_writer}
        return self.file_writer


class _EventWriter(FileWriter):
    """What SummaryWriter adds to."""

    def __init__(self, folder: Path):
        self.event_writer: Any = _EventFile(folder)  # in place of the one with a thread


class _EventFile:
    """One event file in TensorBoard's format: a record for each event."""

    def __init__(self, folder: Path):
        folder.mkdir(exist_ok=True)  # not the run's folder, which may have been deleted
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        self._folder = folder
        self._file = (folder / f"events.out.tfevents.{name}").open("xb")
        self._records = RecordWriter(self._file)
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self.flush()

    def get_logdir(self) -> str:
        return str(self._folder)

    def add_event(self, event: Event) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def reopen(self) -> None:
        """Nothing to do: a closed writer is not used again."""
