"""TensorBoard's files of a run: curves and pictures for people, which no program reads back.

If they cannot be written, the run continues without them after one warning.
"""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl_nfm.support.event_writer import CurveWriter

_LOG = logging.getLogger(__name__)


class Curves:
    """The event files of one folder, opened when something is first drawn."""

    def __init__(
        self,
        folder: Path,
        *,
        purge_step: int | None = None,
        begin: "Callable[[CurveWriter], object] | None" = None,
    ):
        """Nothing is written before `draw`.

        Args:
            folder: holds the event files; it is created if needed.
            purge_step: see `CurveWriter`.
            begin: called with the writer of each new event file, to add its first contents.
        """
        self.folder = folder
        self._purge_step, self._begin = purge_step, begin
        self._writer: CurveWriter | None = None
        self._warned = False

    def draw(self, write: "Callable[[CurveWriter], object]") -> bool:
        """Let `write` add scalars, images or histograms; returns whether that worked.

        A folder that was deleted during the run is created again.
        """
        try:
            writer = self._open()
            write(writer)
            writer.flush()
            return True
        except OSError as error:
            if not self._warned:
                self._warned = True
                _LOG.warning(
                    "rl-nfm: %s/ cannot be written (%s): left out", self.folder.name, error
                )
            self.close()
            return False

    def close(self) -> None:
        """Close the event file; the next `draw` opens a new one."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None

    def _open(self) -> "CurveWriter":
        if self._writer is not None and not self.folder.is_dir():
            self.close()
        if self._writer is None:
            from rl_nfm.support.event_writer import CurveWriter  # TensorBoard takes long to import

            self._writer = CurveWriter(self.folder, purge_step=self._purge_step)
            self._purge_step = None
            if self._begin is not None:
                self._begin(self._writer)
        return self._writer
