"""TensorBoard beside a run: curves and pictures, which are looked at but never needed.

What cannot be written is left out, with one warning, and never ends the run.
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
        """Nothing is written yet.

        Args:
            folder: of the event files; made where there is none.
            purge_step: see `CurveWriter`.
            begin: adds what each new event file holds first.
        """
        self.folder = folder
        self._purge_step, self._begin = purge_step, begin
        self._writer: CurveWriter | None = None
        self._warned = False

    def draw(self, write: "Callable[[CurveWriter], object]") -> bool:
        """Let `write` add scalars, images, histograms; returns whether that worked.

        A folder deleted in mid-run is made anew.
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
        """Close the event file; drawing again begins another one."""
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
