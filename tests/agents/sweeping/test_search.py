"""Search by Optuna: spaces as typed, trials as runs, a killed search that goes on."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time

import optuna
import pytest
import yaml

from agents import cli
from agents.commands import report as report_command
from agents.commands import sweep as command
from agents.presets import read_preset
from agents.sweeping.plan import Plan
from agents.sweeping.progress_table import Board
from agents.sweeping.runs import RunProgress
from agents.sweeping.search import Search, SearchRequest
from agents.sweeping.space import parse_space, same_space
from agents.sweeping.sweep import Outcome

SMALL = ["debug", "--steps", "200", "--env.max-num-frames-per-episode", "80"]
SPACE = ["--search", "learner.learning_rate=1e-5..1e-2:log", "learner.n_steps=1..4"]


@pytest.fixture(scope="module")
def debug():
    return read_preset("debug")


def test_spaces_as_typed(debug):
    words = (
        "learner.learning-rate=1e-5..1e-3:log",
        "learner.n_steps=1..4",
        "head.dueling=True,False",
    )
    rate, steps, dueling = parse_space(words, debug)
    assert (rate.option, rate.low, rate.high, rate.log) == (
        "learner.learning_rate",
        1e-5,
        1e-3,
        True,
    )
    assert not rate.whole
    assert (steps.low, steps.high, steps.whole, steps.log) == (1, 4, True, False)
    assert dueling.choices == ("True", "False")
    assert not parse_space(("replay.priority_exponent=0..1",), debug)[0].whole


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("learner.n_steps=4..1",), "needs LOW < HIGH"),
        (("learner.learning_rate=0..1:log",), "needs 0 < LOW < HIGH"),
        (("learner.n_steps=1.5..4",), "of integers"),
        (("learner.learning_rate=1..nan",), "is not allowed"),
        (("learner.learning_rate=1..2:lin",), "is not allowed"),
        (("learner.learning_rate=1",), "must be OPTION=LOW"),
        (("learner.learning_rate",), "must be OPTION=LOW"),
        (("learner=1..2",), "is a group"),
        (("learner.lr=1..2",), "'learner.lr' is unknown"),
        (("learner.n_steps=1..2", "learner.n-steps=1..3"), "given twice"),
    ],
)
def test_wrong_spaces_are_refused(debug, words, message):
    with pytest.raises(ValueError, match=message):
        parse_space(words, debug)


def test_another_space_is_refused(debug):
    space = parse_space(("learner.n_steps=1..4",), debug)
    same_space(space, {"learner.n_steps": "1..4"})
    for before in ({"learner.n_steps": "1..5"}, {}, {"learner.n_steps": "1..4", "seed": "1,2"}):
        with pytest.raises(
            ValueError, match=r"search: .* differs from what this search began with"
        ):
            same_space(space, before)


def test_values_at_the_ends_are_checked_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match="n_steps: 0 is not allowed"):
        command.main([*SMALL, "--out", str(tmp_path), "--search", "learner.n_steps=0..4"])
    assert not list(tmp_path.glob("*/*"))


def test_a_metric_that_no_run_logs_is_refused_before_anything_starts(tmp_path, capsys):
    words = [*SMALL, *SPACE, "--metric", "eval_return", "--out", str(tmp_path / "sweep")]
    assert cli.main(["sweep", *words]) == 2
    error = capsys.readouterr().err
    assert "--metric: 'eval_return' is not allowed (allowed: return_last_100," in error
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("metric", "value"),
    [("eval_return_mean", 0.5), ("updates_per_second", 5.0)],
)
def test_returns_of_several_games_are_normalised_and_rates_are_not(tmp_path, debug, metric, value):
    """Halfway between random play and a human on both: 307.3 and 6951.6, 227.8 and 7127.7."""
    plan = Plan(base=debug, games=("ms_pacman", "alien"), encoders=("nature",), seeds=(0,))
    request = SearchRequest(space=(), trials=1, metric=metric)
    board = Board([], at_once=1, out=io.StringIO())
    search = Search(plan, request, out=tmp_path, executor=Executor(), board=board)
    runs = plan.runs(tmp_path, 1)
    halfway = {"ms_pacman": (307.3 + 6951.6) / 2, "alien": (227.8 + 7127.7) / 2}
    for run in runs:
        run.folder.mkdir(parents=True)
        number = 5.0 if metric == "updates_per_second" else halfway[run.game]
        (run.folder / "metrics.jsonl").write_text(json.dumps({"steps": 7, metric: number}) + "\n")
    assert search._values(runs) == {7: pytest.approx(value)}
    alone = dataclasses.replace(plan, games=("alien",))
    search = Search(alone, request, out=tmp_path, executor=Executor(), board=board)
    (run,) = alone.runs(tmp_path, 1)
    assert search._values([run]) == {7: 5.0 if metric == "updates_per_second" else halfway["alien"]}


def test_a_search_that_can_come_to_nothing_is_refused_before_anything_starts(tmp_path):
    words = [*SMALL, *SPACE, "--metric", "eval_return_mean", "--run.eval-episodes", "0"]
    with pytest.raises(ValueError, match=r"metric: eval_return_mean needs run.eval_episodes above"):
        command.main([*words, "--out", str(tmp_path / "sweep")])
    with pytest.raises(ValueError, match=r"search: learner.n_steps: "):
        command.main([*SMALL, "--search", "learner.n_steps=0..3", "--out", str(tmp_path / "sweep")])
    with pytest.raises(ValueError, match=r"SQLite takes no '\?'"):
        command.main([*SMALL, *SPACE, "--out", str(tmp_path / "a?b")])
    assert not list(tmp_path.iterdir())


def test_a_plain_sweep_in_the_folder_of_a_search_is_refused(tmp_path, debug):
    plan = Plan(base=debug, games=("memory_cue",), encoders=("nature",), seeds=(0,))
    plan.save(tmp_path, {"search": {"learner.n_steps": "1..4"}, "metric": "return_last_100"})
    before = (tmp_path / "sweep.yaml").read_text()
    with pytest.raises(ValueError, match="holds a search; --search goes on with it"):
        command.main(["debug", "--games", "memory_cue", "--out", str(tmp_path)])
    assert (tmp_path / "sweep.yaml").read_text() == before


def test_a_damaged_study_is_one_line(tmp_path, debug):
    (tmp_path / "study.db").write_bytes(b"no database at all")
    plan = Plan(base=debug, games=("memory_cue",), encoders=("nature",), seeds=(0,))
    request = SearchRequest(space=(), trials=1, metric="return_last_100")
    with pytest.raises(ValueError, match=r"search: .*study.db cannot be used \(") as told:
        Search(plan, request, out=tmp_path, executor=Idle(), board=Board([], at_once=1))
    assert "\n" not in str(told.value)


def test_a_search_whose_trials_all_fail_says_so(tmp_path, monkeypatch, capsys):
    outcome = Outcome(failed={"memory_cue/trial-0/seed-0": "no"}, signal=None)
    monkeypatch.setattr(command, "run_all", lambda *_, **__: outcome)
    words = [*SMALL, *SPACE, "--out", str(tmp_path / "sweep"), "--trials", "1"]
    assert command.main(words) == 1
    assert "1 runs were given up; --trials N draws others" in capsys.readouterr().out
    outcome.failed.clear()
    assert command.main(words) == 1, "the second time too"


def study(out):
    return optuna.load_study(study_name="search", storage=f"sqlite:///{out}/study.db")


class Executor:
    """Room for one run, of which it notes what is asked."""

    threads = at_once = 1

    def __init__(self):
        self.ended = []

    def end(self, run):
        self.ended.append(run.name)


class Hand:
    """A search whose runs are played by hand: Optuna and its pruner are the real ones."""

    def __init__(self, out, base, trials=8):
        plan = Plan(base=base, games=("memory_cue",), encoders=("nature",), seeds=(0,))
        space = parse_space(("learner.n_steps=1..4",), base)
        request = SearchRequest(space=space, trials=trials, metric="return_last_100")
        self.board, self.executor = Board([], at_once=1, out=io.StringIO()), Executor()
        self.search = Search(plan, request, out=out, executor=self.executor, board=self.board)

    def look(self):
        self.search._next_look = 0.0
        return list(self.search.begin())

    def log(self, run, steps, value):
        run.folder.mkdir(parents=True, exist_ok=True)
        with (run.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"steps": steps, "return_last_100": value}) + "\n")

    def finish(self, run):
        self.board._done[run.name] = RunProgress(done=True)


def test_a_trial_behind_the_median_is_pruned_and_stays_so_after_a_kill(tmp_path, debug):
    hand = Hand(tmp_path, debug)  # 300 steps
    (run,) = hand.look()
    for _ in range(5):  # the pruner judges none before
        for steps in (100, 200, 300):
            hand.log(run, steps, 10.0)
        hand.finish(run)
        (run,) = hand.look()
    assert run.method == "trial-5"
    hand.log(run, 20, 3.0)
    assert hand.look() == [], "the first tenth of a run is not judged"
    assert not hand.search.is_over(run)
    hand.log(run, 200, 3.5)
    (after,) = hand.look()
    assert after.method == "trial-6"
    assert hand.executor.ended == [run.name]
    assert hand.search.is_over(run), "its process may end without being called failed"
    hand.log(after, 100, 11.0)
    hand.look()
    before = study(tmp_path).trials
    assert [trial.state.name for trial in before] == ["COMPLETE"] * 5 + ["PRUNED", "RUNNING"]
    assert before[5].intermediate_values == {20: 3.0, 200: 3.5}

    again = Hand(tmp_path, debug)  # the first one was killed
    assert again.search.ended == 6
    (same,) = again.look()
    assert same == after, "what ran goes on; what was pruned does not"
    again.log(same, 200, 20.0)
    again.log(same, 300, 20.0)
    again.finish(same)
    (last,) = again.look()
    assert last.method == "trial-7"
    trials = study(tmp_path).trials
    assert trials[5].state.name == "PRUNED"
    assert trials[5].params == before[5].params
    assert trials[6].intermediate_values == {100: 11.0, 200: 20.0, 300: 20.0}
    assert study(tmp_path).best_trial.number == 6


def test_a_trial_is_judged_by_the_end_of_its_metrics(tmp_path, debug, monkeypatch):
    """Also where it ends between two looks at it."""
    hand = Hand(tmp_path, debug)
    (run,) = hand.look()
    hand.log(run, 100, 9.0)
    real = hand.board.is_done

    def ends_while_it_is_looked_at(looked):
        if not real(looked):
            hand.log(looked, 300, 7.0)
            hand.finish(looked)
        return real(looked)

    monkeypatch.setattr(hand.board, "is_done", ends_while_it_is_looked_at)
    hand.look()
    assert study(tmp_path).trials[0].value == 7.0


def test_a_trial_is_valued_where_all_its_runs_have_logged(tmp_path, debug):
    plan = Plan(base=debug, games=("memory_cue",), encoders=("nature",), seeds=(0, 1))
    request = SearchRequest(space=(), trials=1, metric="loss")
    board = Board([], at_once=1, out=io.StringIO())
    search = Search(plan, request, out=tmp_path, executor=Executor(), board=board)
    runs = plan.runs(tmp_path, 1)
    logged = ({100: 1.0, 200: 2.0}, {100: 5.0, 200: None, 300: 7.0})
    for run, values in zip(runs, logged, strict=True):
        run.folder.mkdir(parents=True)
        lines = [json.dumps({"steps": step, "loss": value}) for step, value in values.items()]
        (run.folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert search._values(runs) == {100: 3.0}


def test_a_search_ends_with_as_many_trials_as_asked_for_and_writes_the_best(tmp_path, debug):
    hand, drawn = Hand(tmp_path, debug, trials=3), []
    for _ in range(3):
        (run,) = hand.look()
        drawn.append(study(tmp_path).trials[-1].params["learner.n_steps"])
        if len(drawn) == 2:
            hand.search.give_up(run)
        else:
            hand.log(run, 300, abs(drawn[-1] - debug.learner.n_steps))
            hand.finish(run)
    assert hand.look() == []
    assert [trial.state.name for trial in study(tmp_path).trials] == [
        "COMPLETE",
        "FAIL",
        "COMPLETE",
    ]
    assert hand.search.ended == 3
    best = max(drawn[0], drawn[2], key=lambda n_steps: abs(n_steps - debug.learner.n_steps))
    assert best != debug.learner.n_steps
    assert read_preset(str(tmp_path / "best.yaml")).learner.n_steps == best
    assert Hand(tmp_path, debug, trials=3).look() == [], "the same command again adds none"


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_a_killed_search_goes_on_with_the_trials_it_had(tmp_path, capsys):
    out, log = tmp_path / "sweep", tmp_path / "log"
    words = [*SMALL, "--out", str(out), *SPACE, "--trials", "4"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "agents.cli", "sweep", *words], stdout=file, stderr=file
        )
    deadline = time.monotonic() + 1500
    try:
        while True:
            done = list(out.glob("*/*/seed-*/checkpoints/step_000000200"))
            if done and len(list(out.glob("*/*/seed-*/metrics.jsonl"))) > len(done):
                break
            assert time.monotonic() < deadline, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = {trial.number: trial.params for trial in study(out).trials}
    assert before
    with pytest.raises(ValueError, match=r"search: learner\.n_steps: 1\.\.3 differs"):
        command.main([*words[:-4], SPACE[1], "learner.n_steps=1..3", "--trials", "4"])
    assert command.main(words) == 0
    after = study(out).trials
    assert [trial.number for trial in after] == [0, 1, 2, 3]
    assert {t.number: t.params for t in after if t.number in before} == before
    states = {trial.state.name for trial in after}
    assert states <= {"COMPLETE", "PRUNED"}
    best = study(out).best_trial
    values = yaml.safe_load((out / "best.yaml").read_text())
    assert values["learner"]["n_steps"] == best.params["learner.n_steps"]
    assert values["learner"]["learning_rate"] == pytest.approx(best.params["learner.learning_rate"])
    assert read_preset(str(out / "best.yaml")).learner.n_steps == best.params["learner.n_steps"]
    capsys.readouterr()
    assert report_command.main([str(out), "--out", str(tmp_path / "report")]) == 0
    text = capsys.readouterr().out
    assert f"is trial-{best.number}" in text
    assert (tmp_path / "report/search_history.png").is_file()


def test_a_search_that_goes_on_draws_other_values(tmp_path, debug):
    """The storage does not hold the sampler's random state."""
    asked = Plan(base=debug, games=("memory_cue",), encoders=("nature",), seeds=(0,))
    space = parse_space(("learner.learning_rate=1e-5..1e-3:log",), debug)
    request = SearchRequest(space=space, trials=9, metric="return_last_100")
    drawn = []
    for _ in range(3):
        search = Search(asked, request, out=tmp_path, executor=Idle(), board=Board([], at_once=1))
        handle = search._study.ask()
        drawn.append(space[0].suggest(handle))
    assert len(set(drawn)) == 3


class Idle:
    """An executor that starts nothing."""

    at_once, threads = 1, 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--metric", "length_mean"], r"metric: length_mean differs .* \(return_last_100\)"),
        (["--seeds", "0", "1"], r"seeds: \[0, 1\] differs from what this search began with"),
        (["--games", "qbert"], r"games: \['qbert'\] differs"),
    ],
)
def test_trials_that_cannot_be_compared_are_refused(tmp_path, debug, changes, message):
    out = tmp_path / "sweep"
    plan = Plan(base=debug, games=("memory_cue",), encoders=("nature",), seeds=(0,))
    space = {"learner.n_steps": "1..4"}
    out.mkdir()
    plan.save(out, {"search": space, "metric": "return_last_100"})
    asked = {"--games": ["memory_cue"], "--seeds": ["0"], "--metric": ["return_last_100"]}
    asked[changes[0]] = changes[1:]
    words = [word for flag, values in asked.items() for word in (flag, *values)]
    with pytest.raises(ValueError, match=message):
        command.main(["debug", "--out", str(out), "--search", "learner.n_steps=1..4", *words])
