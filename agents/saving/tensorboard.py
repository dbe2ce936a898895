"""What TensorBoard shows of an agent's run.

Scalars come from `metrics.jsonl`, in the groups train, eval, time and attention; beside them stand
the config as text, the hyperparameters with the run's scores, and the pictures of `PICTURES`.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:  # TensorBoard takes long to import
    from rl_nfm.support.event_writer import CurveWriter


SCORES = ("eval/return_mean", "train/return_last_100")
"""Tags whose last values stand beside the hyperparameters."""
VIDEO = "eval/video"
ATTENTION = "attention"
PICTURES = (VIDEO, ATTENTION)
"""Beginnings of the tags of what no line of metrics holds."""


def tag_of(name: str) -> str:
    """The tag of a number of `metrics.jsonl`: its group, a slash and its name."""
    if "/" in name:  # has its group already
        return name
    if name.startswith("eval_"):
        return name.replace("_", "/", 1)
    return f"time/{name}" if name.endswith("_per_second") else f"train/{name}"


def add_scalars(writer: "CurveWriter", line: Mapping[str, Any]) -> None:
    """Add the numbers of one line of metrics."""
    for key, value in line.items():
        if key != "steps" and isinstance(value, int | float) and math.isfinite(value):
            writer.add_scalar(tag_of(key), value, line["steps"])


def add_config(writer: "CurveWriter", config: Mapping[str, Any]) -> None:
    """Add the config as text, and as hyperparameters.

    Not by `add_hparams`, which begins a run of its own in a folder beside the curves.

    Args:
        writer: of the run.
        config: plain values, groups in groups.
    """
    from torch.utils.tensorboard.summary import hparams

    text = yaml.safe_dump(dict(config), sort_keys=False)
    block = "".join(f"    {line}\n" for line in text.splitlines())  # code, to Markdown
    writer.add_text("config", block, 0)
    experiment, begin, _ = hparams(_flat(config), dict.fromkeys(SCORES, 0.0))
    for summary in (experiment, begin):
        writer.file_writer.add_summary(summary, 0)  # pyright: ignore[reportOptionalMemberAccess]


def add_end(writer: "CurveWriter", steps: int) -> None:
    """Mark the run as complete among the hyperparameters."""
    from torch.utils.tensorboard.summary import hparams

    *_, end = hparams({}, {})
    writer.file_writer.add_summary(end, steps)  # pyright: ignore[reportOptionalMemberAccess]


def _flat(group: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names to values that TensorBoard's table accepts: numbers, bools and text."""
    flat: dict[str, Any] = {}
    for key, value in group.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str):
            flat[prefix + key] = value
        else:
            flat[prefix + key] = "none" if value is None else str(value)
    return flat


def pictures_until(folder: Path, steps: float = math.inf) -> list[Any]:
    """The events of a folder that hold pictures, up to a step, as far as they can be read."""
    from google.protobuf.message import DecodeError
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.compat import tf

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        try:
            for event in LegacyEventFileLoader(str(path)).Load():  # as they were written
                tags = [value.tag for value in event.summary.value]
                if tags and event.step <= steps and all(tag.startswith(PICTURES) for tag in tags):
                    found.append(event)
        except (OSError, UnicodeError, DecodeError, tf.errors.OpError):
            continue  # what comes before the damage has been found
    return found


def last_clip(folder: Path) -> tuple[int, bytes] | None:
    """Steps and GIF of the last clip of play; None where there is none."""
    clips = [
        (event.step, value.image.encoded_image_string)
        for event in pictures_until(folder)
        for value in event.summary.value
        if value.tag == VIDEO
    ]
    return max(clips, default=None, key=lambda clip: clip[0])
