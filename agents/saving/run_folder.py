"""A run's folder: config, metrics.jsonl, TensorBoard and checkpoints.

`metrics.jsonl` is the record; TensorBoard's scalars are derived from it, so that a resumed run can
cut both back to its checkpoint.
"""

import contextlib
import fcntl
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter

from agents.config import Config, make_config, write_config
from rl_nfm.support.configuration import read_yaml


class RunFolder:
    """Paths of a run and the writers of its metrics."""

    def __init__(self, path: Path):
        self.path = path
        self.config_path = path / "config.yaml"
        self.metrics_path = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self._board: SummaryWriter | None = None

    @classmethod
    def create(cls, config: Config, out: Path | None) -> "RunFolder":
        """Make a new run's folder and write its config.

        Raises:
            ValueError: if the folder exists and is not empty, or cannot be written.
        """
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        name = f"{config.game.replace('/', '_')}-{config.encoder}-seed{config.seed}-{stamp}"
        path = Path("runs") / name if out is None else out
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise ValueError(
                    f"out: {path} is not empty; a run is never overwritten (go on: --resume {path})"
                )
            folder = cls(path)
            write_config(config, folder.config_path)
        except OSError as error:
            raise ValueError(f"out: {path} cannot be written ({error.strerror})") from None
        return folder

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
        return make_config(read_yaml(self.config_path), where=str(self.config_path))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no other process can train this run; TensorBoard is flushed at the end.

        Raises:
            ValueError: if another process holds it.
        """
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(f"{self.path}: another process is training this run") from None
            try:
                yield
            finally:
                if self._board is not None:
                    self._board.close()

    def cut(self, steps: int) -> None:
        """Drop every metric after `steps`, a torn last line too, and rebuild TensorBoard."""
        lines = [line for line in read_metrics(self.metrics_path) if line["steps"] <= steps]
        partial = self.metrics_path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        partial.replace(self.metrics_path)
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
        for line in lines:
            self._to_board(line)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line; numbers also go to TensorBoard."""
        finite = {key: _finite(value) for key, value in metrics.items()}
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")
        self._to_board(finite)

    @property
    def board(self) -> SummaryWriter:
        """The TensorBoard writer, for images and histograms too."""
        if self._board is None:
            self._board = SummaryWriter(str(self.path / "tensorboard"))
        return self._board

    def _to_board(self, metrics: Mapping[str, Any]) -> None:
        for key, value in metrics.items():
            if key != "steps" and isinstance(value, (int, float)):
                self.board.add_scalar(key, value, metrics["steps"])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a metrics.jsonl; a torn last one is left out, a missing file is empty."""
    lines = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                break
            if not isinstance(line, dict) or "steps" not in line:
                break
            lines.append(line)
    return lines


def _finite(value: Any) -> Any:
    """JSON has no NaN: None instead."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
