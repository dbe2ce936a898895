"""The loop of a sweep, with runs that are a marker file: retries, giving up, signals."""

import io
import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor

from agents.sweeping.board import Board, duration
from agents.sweeping.runs import PlannedRun
from agents.sweeping.sweep import FixedWork, run_all


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
    """Each try of a run does the next thing of its script: "ok", "fail", "early" or "hang"."""

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
        return 0

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
    assert "qbert  2/4 (2 given up)" in text


def test_a_run_that_finished_is_done_whatever_its_process_said(tmp_path):
    class Rude(ScriptedExecutor):
        def _try(self, run):
            return super()._try(run) or 9

    runs = [planned(tmp_path, 0)]
    board = Board(runs, at_once=1, out=io.StringIO())
    work = FixedWork(runs, board)
    assert not run_all(work, Rude({0: ["ok"]}), board, retries=0).failed


def test_a_signal_stops_the_runs_and_nothing_is_called_failed(tmp_path):
    outcome, executor, text = sweep(tmp_path, {0: ["ok"], 1: ["hang"]})
    assert executor.stopped
    assert not executor.killed
    assert outcome.signal == signal.SIGTERM
    assert not outcome.failed
    assert "the runs end with a checkpoint each" in text


def test_durations_are_told_in_words():
    assert [duration(s) for s in (5.4, 61, 3600 * 3 + 1200, 86400 * 2 + 5 * 3600 + 60)] == [
        "5 s",
        "1 min",
        "3 h 20 min",
        "2 d 5 h",
    ]
