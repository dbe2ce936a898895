"""Room on disk: what runs at a time hold, and replays that go when their runs are over."""

import io
import shutil
from types import SimpleNamespace

import pytest

from agents.presets import read_preset
from agents.sweeping import runs as runs_module
from agents.sweeping.board import Board
from agents.sweeping.folder import check_space
from agents.sweeping.plan import Plan
from agents.sweeping.sweep import drop_replays

FRAME = 84 * 84


@pytest.fixture
def plan():
    """Four runs of 300 steps, each with a frame a step in its replay."""
    return Plan(
        base=read_preset("debug"), games=("qbert",), encoders=("nature",), seeds=(0, 1, 2, 3)
    )


@pytest.mark.parametrize(("at_once", "counted"), [(None, 4), (3, 3), (9, 4)])
def test_space_is_asked_for_the_replays_that_are_there_together(
    plan, tmp_path, monkeypatch, at_once, counted
):
    runs, configs = plan.runs(tmp_path, threads=1), plan.configs()
    needed = counted * 300 * FRAME

    def with_free(size):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))
        check_space(tmp_path, runs, configs, at_once=at_once)

    with_free(needed)
    with pytest.raises(ValueError, match=rf"buffers of {counted} runs need {needed / 1e6:.1f} MB"):
        with_free(needed - 1)


def test_a_replay_that_cannot_be_dropped_is_told_and_the_others_go(plan, tmp_path, monkeypatch):
    runs, dropped = plan.runs(tmp_path, threads=1), []

    def drop(folder):
        if folder == runs[1].folder:
            raise OSError(28, "No space left on device", str(folder))
        dropped.append(folder)

    monkeypatch.setattr(runs_module, "drop_replay", drop)
    for run in runs[:3]:  # the fourth has not begun
        run.folder.mkdir(parents=True)
        (run.folder / "config.yaml").touch()
    out = io.StringIO()
    drop_replays(runs, Board(runs, at_once=1, out=out))
    assert dropped == [runs[0].folder, runs[2].folder]
    (line,) = out.getvalue().splitlines()
    assert line.startswith("qbert/nature/seed-1: its replay stays on disk: [Errno 28] No space")
