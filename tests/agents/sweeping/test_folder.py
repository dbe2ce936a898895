"""Folders of sweeps and their runs: room on disk, what is held by whom, what is deleted."""

import dataclasses
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from agents.commands import sweep as command
from agents.config import write_config
from agents.presets import read_preset
from agents.reporting.kept import KEPT_FILE
from agents.saving.run_folder import RunFolder
from agents.sweeping import runs as runs_module
from agents.sweeping.folder import check_space, held
from agents.sweeping.plan import Plan
from agents.sweeping.progress_table import Board
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


def test_space_is_asked_for_the_largest_replays_and_what_is_not_on_disk_yet(
    plan, tmp_path, monkeypatch
):
    asked = dataclasses.replace(plan, games=("qbert", "memory_cue"), seeds=(0,))
    runs, configs = asked.runs(tmp_path, threads=1), asked.configs()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    for saved, steps in ((-1, 300), (100, 200)):
        monkeypatch.setattr("agents.sweeping.folder.saved_steps", lambda _, saved=saved: saved)
        with pytest.raises(ValueError, match=rf"need {steps * FRAME / 1e6:.1f} MB"):
            check_space(tmp_path, runs, configs, at_once=1)


def test_a_run_is_done_when_its_last_checkpoint_is_that_of_the_end(plan, tmp_path, monkeypatch):
    run = plan.runs(tmp_path, threads=1)[0]
    run.folder.mkdir(parents=True)
    returns = {100: 9.0, 200: 4.0, 300: None}
    lines = [json.dumps({"steps": n, "return_last_100": x}) for n, x in returns.items()]
    (run.folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    state = runs_module.progress(run)
    assert (state.steps, state.last_return, state.done) == (300, 4.0, False)
    for saved, done in ((200, False), (300, True), (304, True)):
        monkeypatch.setattr(runs_module, "saved_steps", lambda _, saved=saved: saved)
        assert runs_module.progress(run).done == done


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


def test_a_folder_of_the_user_s_stays_and_one_made_for_nothing_goes(tmp_path, monkeypatch):
    def fail(out):
        with pytest.raises(ZeroDivisionError), held(out):
            raise ZeroDivisionError

    fail(tmp_path / "new")
    (tmp_path / "mine").mkdir()
    fail(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    fail(Path())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert not list((tmp_path / "mine").iterdir())


def test_only_a_run_that_another_process_trains_is_waited_for(plan, tmp_path):
    run = plan.runs(tmp_path, threads=1)[0]
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").touch()
    (run.folder / ".lock").symlink_to("nowhere")
    assert not runs_module._is_trained_elsewhere(run.folder)
    (run.folder / ".lock").unlink()
    with RunFolder(run.folder).held():
        assert runs_module._is_trained_elsewhere(run.folder)
    assert not runs_module._is_trained_elsewhere(run.folder)


def test_only_a_folder_without_anything_in_it_is_begun_anew(plan, tmp_path):
    run = plan.runs(tmp_path, threads=1)[0]
    (run.folder / "checkpoints").mkdir(parents=True)
    (run.folder / ".config.partial.yaml").touch()
    assert runs_module._arguments(run) == run.begin
    assert not run.folder.exists()
    run.folder.mkdir(parents=True)
    (run.folder / "metrics.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"metrics.jsonl is there, but no config of the run"):
        runs_module._arguments(run)
    assert (run.folder / "metrics.jsonl").read_text() == "{}"


def test_kept_results_of_a_game_with_a_slash_are_known(tmp_path):
    base = dataclasses.replace(read_preset("debug"), game="gym:ALE/Pong-v5")
    plan = Plan(base=base, games=("gym:ALE/Pong-v5",), encoders=("nature",), seeds=(0,))
    (run,) = plan.runs(tmp_path / "sweep", threads=1)
    place = tmp_path / "kept" / run.folder.relative_to(tmp_path / "sweep")
    place.mkdir(parents=True)
    (config,) = plan.configs().values()
    write_config(dataclasses.replace(config, game=run.game, seed=0), place / "config.yaml")
    (place / "metrics.jsonl").write_text(f'{{"steps": {config.steps}}}\n')
    (place / KEPT_FILE).touch()
    assert command._known(tmp_path / "kept", plan, [run]) == [run.name]
