"""The files of a run: metrics.jsonl, TensorBoard curves, pictures and one JSON result."""

import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from rl_nfm.support.curves import Curves
from rl_nfm.support.metrics_file import MetricsFile
from rl_nfm.support.output_files import finite, write_json, written

Metrics = Mapping[str, float]
METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"


class MetricsLog:
    """Appends one row of metrics per evaluation to metrics.jsonl and TensorBoard.

    Args:
        folder: the folder of one trial.
        last_epoch: rows of later epochs are dropped; a resumed run writes them again.
    """

    def __init__(self, folder: Path, *, last_epoch: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._metrics = _metrics_file(folder)
        self._metrics.cut(last_epoch)
        self._curves = Curves(folder, purge_step=last_epoch + 1)

    def write(self, epoch: int, metrics: Metrics) -> None:
        """Append the metrics of one epoch."""
        self._metrics.append({"epoch": epoch, **metrics})
        self._curves.draw(
            lambda writer: [writer.add_scalar(name, metrics[name], epoch) for name in metrics]
        )

    def write_pictures(self, epoch: int, pictures: Mapping[str, Tensor]) -> None:
        """Write pictures, uint8 [H, W, 1 or 3], as NAME_EPOCH.png and into TensorBoard."""
        if not pictures:
            return
        from PIL import Image

        for name, picture in pictures.items():
            array = picture.numpy()
            with written(self._folder / f"{name}_{epoch:06d}.png") as partial:
                Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array).save(partial)
        self._curves.draw(
            lambda writer: [
                writer.add_image(name, picture.numpy(), epoch, dataformats="HWC")
                for name, picture in pictures.items()
            ]
        )

    def close(self) -> None:
        """Flush and close."""
        self._curves.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a trial's metrics.jsonl that can be read; see `MetricsFile.read`."""
    return _metrics_file(folder).read().lines


def _metrics_file(folder: Path) -> MetricsFile:
    return MetricsFile(folder / METRICS_FILE, "epoch")


def is_number(value: Any) -> bool:
    """Whether a metric, as measured or as read from metrics.jsonl, is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def mean_and_deviation(rows: Sequence[Metrics]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and sample standard deviation over trials, of the metrics that all trials have.

    Left out are metrics that are not finite in one of them, and the deviation of a single trial,
    which is not zero.
    """
    names = [name for name in rows[0] if all(is_number(row.get(name)) for row in rows)]
    columns = {name: [row[name] for row in rows] for name in names}
    mean = {name: math.fsum(column) / len(column) for name, column in columns.items()}
    if len(rows) < 2:
        return mean, {}
    return mean, {name: statistics.stdev(column) for name, column in columns.items()}


def versions() -> dict[str, str]:
    """Versions of the software that the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("rl-nfm", "torch", "numpy", "scikit-learn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_result(result: Mapping[str, Any], *paths: Path) -> None:
    """Write one JSON result to each path, atomically; a number that is not finite becomes null."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, finite(result))


def format_metrics(mean: Metrics, deviation: Metrics, baselines: Metrics) -> str:
    """One `name  mean ± deviation  (baseline: value)` line per metric."""
    width = max(map(len, mean), default=0)
    lines = []
    for name, value in mean.items():
        spread = f" ± {deviation[name]:.4f}" if name in deviation else ""
        beside = f"  (baseline: {baselines[name]:.4f})" if name in baselines else ""
        lines.append(f"{name:{width}}  {value:.4f}{spread}{beside}")
    return "\n".join(lines)


def value_text(value: Any) -> str:
    """An option's plain value as it is typed after its flag."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
