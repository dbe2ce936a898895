"""The loop of a sweep, with runs that are a marker file: retries, giving up, signals."""

import dataclasses
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from agents.sweeping.progress_table import Board
from agents.sweeping.runs import PlannedRun, RunProgress, RunStop, execute
from agents.sweeping.sweep import FixedWork, _signals, run_all
from agents.training.stop import ending_signals
from rl_nfm.support.progress import duration


def planned(folder, seed):
    return PlannedRun(
        kind="supervised",
        game="qbert",
        method="nfm",
        seed=seed,
        folder=folder / f"seed-{seed}",
        begin=(),
        resume=(),
        steps=1,
    )


class ScriptedExecutor:
    """Each try of a run does the next thing of its script, such as "ok" or "hang"; see `_try`."""

    threads, at_once = 1, 2

    def __init__(self, scripts):
        self.scripts, self.tries, self.pool = scripts, [], ThreadPoolExecutor(2)
        self.hanging: list[Future[int]] = []
        self.stopped = self.killed = False

    def submit(self, run):
        self.tries.append(run.seed)
        return self.pool.submit(self._try, run) if self._next(run) != "hang" else self._hang()

    def _next(self, run):
        return self.scripts[run.seed][self.tries.count(run.seed) - 1]

    def _hang(self):
        self.hanging.append(Future())
        os.kill(os.getpid(), signal.SIGTERM)
        return self.hanging[-1]

    def _try(self, run):
        what = self._next(run)
        run.folder.mkdir(exist_ok=True)
        if what == "ok":
            (run.folder / "result.json").touch()
        if what == "fail":
            run.log.write_text("Traceback\nValueError: out of luck\n")
            return 3
        return 2 if what == "refuse" else 0

    def end(self, run):
        raise AssertionError("no run is ended alone here")

    def stop(self):
        self.stopped = True
        for future in self.hanging:
            future.cancel()

    def kill(self):
        self.killed = True


def sweep(tmp_path, scripts, retries=1):
    runs = [planned(tmp_path, seed) for seed in scripts]
    executor, out = ScriptedExecutor(scripts), io.StringIO()
    board = Board(runs, at_once=2, out=out)
    outcome = run_all(FixedWork(runs, board), executor, board, retries)
    return outcome, executor, out.getvalue()


def test_failed_runs_are_tried_again_and_then_given_up_while_the_others_go_on(tmp_path):
    scripts = {0: ["fail", "ok"], 1: ["ok"], 2: ["fail", "fail"], 3: ["early", "early"]}
    outcome, executor, text = sweep(tmp_path, scripts)
    assert {seed: executor.tries.count(seed) for seed in scripts} == {0: 2, 1: 1, 2: 2, 3: 2}
    assert outcome.signal is None
    assert set(outcome.failed) == {"qbert/nfm/seed-2", "qbert/nfm/seed-3"}
    assert outcome.failed["qbert/nfm/seed-2"].startswith("ValueError: out of luck (exit code 3")
    assert "ended early" in outcome.failed["qbert/nfm/seed-3"]
    assert "2 of 4 runs done, 2 given up" in text
    assert re.search(r"qbert +2/4 \(2 given up\)", text)


def test_bad_input_is_not_tried_again_unless_the_run_had_begun(tmp_path):
    (tmp_path / "seed-1/trial0").mkdir(parents=True)
    (tmp_path / "seed-1/trial0/metrics.jsonl").write_text('{"epoch": 1}\n')
    (tmp_path / "seed-1.log").write_text("rl-nfm: the disk is full\n")
    scripts = {0: ["refuse"], 1: ["refuse", "ok"]}
    outcome, executor, text = sweep(tmp_path, scripts)
    assert executor.tries.count(1) == 2
    assert set(outcome.failed) == {"qbert/nfm/seed-0"}
    assert "seed-0: given up after 1 try: nothing was printed (exit code 2" in text


@pytest.mark.parametrize("keep_replay", [False, True])
def test_replays_of_finished_runs_alone_are_dropped_unless_they_are_kept(
    tmp_path, monkeypatch, keep_replay
):
    dropped = []
    monkeypatch.setattr("agents.sweeping.sweep.drop_replay_of", lambda run: dropped.append(run))
    scripts = {0: ["ok"], 1: ["fail"]}
    runs = [planned(tmp_path, seed) for seed in scripts]
    board = Board(runs, at_once=2, out=io.StringIO())
    work, executor = FixedWork(runs, board), ScriptedExecutor(scripts)
    run_all(work, executor, board, retries=0, keep_replay=keep_replay)
    assert dropped == ([] if keep_replay else runs[:1])


def test_a_run_that_finished_is_done_whatever_its_process_said(tmp_path):
    class Rude(ScriptedExecutor):
        def _try(self, run):
            return super()._try(run) or 9

    runs = [planned(tmp_path, 0)]
    board = Board(runs, at_once=1, out=io.StringIO())
    work = FixedWork(runs, board)
    assert not run_all(work, Rude({0: ["ok"]}), board, retries=0).failed


def test_a_run_that_has_ended_meanwhile_is_not_begun_again(tmp_path):
    """As that of a killed sweep, for whose process this one has waited."""
    run = planned(tmp_path, 0)
    run.folder.mkdir()
    (run.folder / "result.json").touch()
    assert execute(run, 1, RunStop()) == 0
    assert not run.log.exists(), "no process was started"


def test_a_signal_stops_the_runs_and_nothing_is_called_failed(tmp_path):
    outcome, executor, text = sweep(tmp_path, {0: ["ok"], 1: ["hang"]})
    assert executor.stopped
    assert not executor.killed
    assert outcome.signal == signal.SIGTERM
    assert not outcome.failed
    assert "the runs end with a checkpoint each" in text


def test_a_closed_terminal_ends_a_sweep_unless_it_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert signal.SIGHUP not in ending_signals()
        with _signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not received
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert signal.SIGHUP in ending_signals()
        with _signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
        assert received == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a parent's death")
def test_a_parent_that_dies_thread_by_thread_is_one_signal(tmp_path):
    """Each of its threads that dies tells the child; the second SIGTERM would end it at once."""
    run = tmp_path / "run.py"
    log = tmp_path / "log"
    run.write_text(
        "import signal, sys, time\n"
        "from pathlib import Path\n"
        f"log = Path({str(log)!r})\n"
        "count = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: count.append(1))\n"
        "log.write_text('begun')\n"
        "deadline = time.monotonic() + 30\n"
        "while not count and time.monotonic() < deadline: time.sleep(0.01)\n"
        "time.sleep(0.5)\n"
        "log.write_text(str(len(count)))\n"
    )
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import os, subprocess, sys, threading, time\n"
        "for _ in range(6):\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "code = 'import runpy, sys; '\n"
        "code += 'runpy.run_module = lambda *_, **__: runpy.run_path(sys.argv[1]); '\n"
        "code += 'from agents.sweeping import child; sys.exit(child.main(sys.argv[1:]))'\n"
        f"subprocess.Popen([sys.executable, '-c', code, str(os.getpid()), {str(run)!r}])\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, parent])
    deadline = time.monotonic() + 60
    while not (log.is_file() and log.read_text() == "begun"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    while log.read_text() in ("", "begun"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert log.read_text() == "1"


class Screen(io.StringIO):
    """A terminal's screen, as far as a board uses it: rows that scroll, erasing upwards."""

    def __init__(self, columns, rows):
        super().__init__()
        self.columns, self.height, self.rows, self.begun = columns, rows, [], ""

    def isatty(self):
        return True

    def write(self, text):
        if erased := re.fullmatch(r"\x1b\[(\d+)F\x1b\[J", text):
            assert int(erased[1]) < self.height, "what scrolled away cannot be erased"
            del self.rows[len(self.rows) - int(erased[1]) :]
        else:
            *lines, self.begun = (self.begun + text).split("\n")
            for line in lines:
                self.rows += textwrap.wrap(line, self.columns, drop_whitespace=False)
        return len(text)


@pytest.mark.parametrize(("columns", "rows"), [(120, 40), (30, 40), (120, 6), (20, 4)])
def test_a_table_of_any_size_leaves_nothing_behind_on_a_terminal(
    tmp_path, monkeypatch, columns, rows
):
    runs = [
        dataclasses.replace(planned(tmp_path, 0), game=game, method=method)
        for game in (f"game_{i}" for i in range(9))
        for method in ("nature", "resnet_matched")
    ]
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((columns, rows)))
    screen = Screen(columns, rows)
    board = Board(runs, at_once=2, out=screen)
    for _ in range(3):
        board._next = 0.0
        board.show({})
    last = "0 of 18 runs done, 0 given up, 0 under way, 0% of the steps"
    assert screen.rows[-1] == last[: columns - 1]
    assert sum(row.startswith("0 of 18") for row in screen.rows) == 1
    assert len(screen.rows) == min(1 + 9 + 1, max(3, rows - 1))
    board.tell("a line that stays")
    board.show({}, last=True)
    assert screen.rows[0] == "a line that stays"[:columns]
    told = "".join(screen.rows)
    assert all(f"game_{i}" in told for i in range(9)), "the last table is whole"
    assert "..." not in told


def test_no_run_is_called_under_way_when_the_sweep_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "agents.sweeping.progress_table.progress",
        lambda _: RunProgress(steps=1, logged_at=time.time()),
    )
    out = io.StringIO()
    board = Board([planned(tmp_path, 0)], at_once=1, out=out)
    board._next = 0.0
    board.show({})
    assert "1 under way" in out.getvalue()
    board._next = 0.0
    board.show({"qbert/nfm/seed-0": "out of luck"})
    assert "1 given up, 0 under way" in out.getvalue().splitlines()[-1]
    board.show({}, last=True)
    assert "0 under way" in out.getvalue().splitlines()[-1]


def test_runs_known_from_elsewhere_count_as_whole(tmp_path):
    runs = [dataclasses.replace(planned(tmp_path, seed), steps=100) for seed in range(4)]
    known = [run.name for run in runs[:3]]
    board = Board(runs, known=known, at_once=1, out=io.StringIO())
    board.show({}, last=True)
    assert "3 of 4 runs done, 0 given up, 0 under way, 75% of the steps" in board._out.getvalue()


def test_time_left_is_shared_by_the_runs_side_by_side(tmp_path):
    """Two of nfm at 3 steps a second, rim at 9, and lstm at the mean of the three speeds, 5."""
    states = {
        ("nfm", 0): RunProgress(steps=20, steps_per_second=2.0),
        ("nfm", 1): RunProgress(steps=60, steps_per_second=4.0),
        ("nfm", 2): RunProgress(steps=100, done=True),
        ("nfm", 3): RunProgress(),  # given up
        ("rim", 0): RunProgress(steps=10, steps_per_second=9.0),
        ("lstm", 0): RunProgress(),
    }
    runs = [
        dataclasses.replace(planned(tmp_path, seed), method=method, steps=100)
        for method, seed in states
    ]
    progress = {run.name: states[run.method, run.seed] for run in runs}
    for at_once, seconds in ((1, 70), (2, 35), (9, 17.5)):  # 80 / 3 + 40 / 3 + 90 / 9 + 100 / 5
        board = Board(runs, at_once=at_once, out=io.StringIO())
        left = board._remaining_seconds(progress, {"qbert/nfm/seed-3": "out of luck"})
        assert left == pytest.approx(seconds)


def test_durations_are_told_in_words():
    assert [duration(s) for s in (5.4, 61, 3600 * 3 + 1200, 86400 * 2 + 5 * 3600 + 60)] == [
        "5 s",
        "1 min",
        "3 h 20 min",
        "2 d 5 h",
    ]
