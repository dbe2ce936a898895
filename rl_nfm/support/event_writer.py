"""TensorBoard's event file, written directly instead of by a thread.

TensorBoard's own writer uses a thread, which dies with a traceback when its folder is deleted or
the disk is full, and loses what it has not yet written when the process is killed.
"""

import itertools
import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

_NUMBERS = itertools.count()
# Made by protobuf's generator, which type checkers cannot see into.
Event: Any = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
SessionLog: Any = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]
Summary: Any = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]


class CurveWriter(SummaryWriter):
    """torch's `SummaryWriter`, except that errors are raised by the call that adds or flushes.

    Args:
        folder: created if needed; its parent folder must exist.
        purge_step: TensorBoard hides what earlier files of the folder hold from this step on.

    Raises:
        OSError: when the folder cannot be made or the file cannot be written.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None):
        super().__init__(str(folder), purge_step=purge_step)

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            writer = _EventWriter(Path(self.log_dir))
            self.file_writer, self.all_writers = writer, {self.log_dir: writer}
            if self.purge_step is not None:
                start = SessionLog(status=SessionLog.START)
                self.add_event(Event(step=self.purge_step, session_log=start))
                self.purge_step = None
        return self.file_writer

    def add_event(self, event: Any) -> None:
        """Add an event unchanged, such as one read from another file."""
        writer: Any = self._get_file_writer()
        writer.event_writer.add_event(event)

    def add_gif(self, tag: str, gif: bytes, size: tuple[int, int], step: int) -> None:
        """Add an animation; torch's `add_video` would need MoviePy.

        Args:
            tag: its name among the images.
            gif: an encoded, animated GIF.
            size: (height, width) of its pictures.
            step: the step it is shown at.
        """
        height, width = size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self._get_file_writer().add_summary(summary, step)


class _EventWriter(FileWriter):
    """What SummaryWriter adds to."""

    def __init__(self, folder: Path):
        self.event_writer: Any = _EventFile(folder)  # in place of the one with a thread


def _newest(folder: Path) -> int:
    """The last time in the names of a folder's event files; -1 where there are none."""
    names = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*.*")]
    return max((int(name) for name in names if name.isdecimal()), default=-1)


class _EventFile:
    """One event file in TensorBoard's format: a record for each event."""

    def __init__(self, folder: Path):
        folder.mkdir(exist_ok=True)  # not the run's folder, which may have been deleted
        # Read in the order of their names, also where the clock was set back.
        stamp = max(int(time.time()), _newest(folder) + 1)
        name = f"{stamp:010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS):06d}"
        self._folder = folder
        self._file = (folder / f"events.out.tfevents.{name}").open("xb")
        self._records = RecordWriter(self._file)
        try:
            self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
            self.flush()
        except OSError:
            self._file.close()
            raise

    def get_logdir(self) -> str:
        return str(self._folder)

    def add_event(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def reopen(self) -> None:
        """Nothing to do: a closed writer is not used again."""
