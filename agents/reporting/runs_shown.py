"""The runs behind a report, for its HTML page: links to their folders, and clips of their play."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from agents.config import CONFIG_FILE
from agents.reporting.blocks import Block, Heading, Link, Table
from agents.reporting.page import Clip
from agents.reporting.results import Result
from agents.saving.tensorboard import last_clip

CLIP_BYTES, ALL_CLIPS_BYTES = 4 * 2**20, 16 * 2**20
"""Most that one clip, and all of a page, may take."""


def runs_text(results: Sequence[Result], out: Path) -> list[Block | Clip]:
    """A row of links per run, and a clip per game and method where there is a small one.

    Args:
        results: of all sources.
        out: folder of the report, from which links lead.
    """
    runs = list({result.where: result for result in results}.values())
    rows = [_row(run, out) for run in runs]
    clips: dict[tuple[str, str], Clip] = {}
    size = 0
    for run in runs:
        if (run.game, run.method) in clips:
            continue
        clip = _clip(run)
        if clip is not None and size + len(clip.content) <= ALL_CLIPS_BYTES:
            size += len(clip.content)
            clips[run.game, run.method] = clip
    return [Heading(2, "Runs"), Table(rows), *clips.values()]


def _row(run: Result, out: Path) -> dict[str, str | Link]:
    path = Path(run.where)
    row: dict[str, str | Link] = {
        "game": run.game,
        "method": run.method,
        "seed": "-" if run.seed is None else str(run.seed),
        "steps": "-" if run.steps is None else str(run.steps),
        "run": _link(path, out, path.name),
    }
    for name in (CONFIG_FILE, "metrics.jsonl"):
        row[name] = _link(path / name, out, name) if (path / name).is_file() else "-"
    videos = sorted(path.glob("*.mp4"))
    row["video"] = _link(videos[0], out, videos[0].name) if videos else "-"
    return row


def _link(path: Path, out: Path, text: str) -> Link:
    return Link(text, quote(os.path.relpath(path.resolve(), out.resolve())))


def _clip(run: Result) -> Clip | None:
    """The smallest video that lies in the run's folder, else the last clip of its TensorBoard."""
    path = Path(run.where)
    title_text = f"{run.game}, {run.method}" + ("" if run.seed is None else f", seed {run.seed}")
    videos = sorted(path.glob("*.mp4"), key=lambda video: video.stat().st_size)
    if videos and videos[0].stat().st_size <= CLIP_BYTES:
        return Clip(f"{title_text}: {videos[0].name}", videos[0].read_bytes(), "video/mp4")
    found = last_clip(path / "tensorboard")
    if found is None or len(found[1]) > CLIP_BYTES:
        return None
    return Clip(f"{title_text}: what the agent sees, after {found[0]} steps", found[1], "image/gif")
