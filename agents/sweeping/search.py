"""Search for good values of options by Optuna: its sampler, pruner and storage.

`OUT/study.db` is Optuna's SQLite storage, so a killed search goes on with the trials it had. A
trial's runs lie in OUT/GAME/trial-N/seed-M and are ordinary runs of the sweep; the values
that Optuna gets are read from their metrics.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.config import write_config
from agents.saving.run_folder import RunFolder, read_metrics
from agents.sweeping.executors import Executor
from agents.sweeping.plan import Plan
from agents.sweeping.progress_table import Board
from agents.sweeping.runs import PlannedRun
from agents.sweeping.space import Dimension
from envs import games_of, human_normalized_score
from rl_nfm.support.errors import named_line
from rl_nfm.support.output_files import written

STUDY_FILE, BEST_FILE = "study.db", "best.yaml"
_LOOK_SECONDS = 2.0
"""Between looks at the metrics of the trials."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What a search asks for beside the sweep's plan."""

    space: tuple[Dimension, ...]
    trials: int
    """In all, those of earlier commands included."""
    metric: str
    """Name of a number in metrics.jsonl; larger is better."""


@dataclasses.dataclass(kw_only=True)
class _Trial:
    handle: Any
    """Optuna's trial."""
    runs: Sequence[PlannedRun]
    reported: set[int]
    """Steps whose value Optuna knows."""


class Search:
    """Optuna's trials as work for a sweep; see `agents.sweeping.sweep.Work`.

    Args:
        plan: with one encoder; its games and seeds make up each trial.
        request: what is searched.
        out: the sweep's folder.
        executor: where runs take place.
        board: shows them.

    Raises:
        ValueError: Optuna is not installed, or its file is damaged.
    """

    def __init__(
        self, plan: Plan, request: SearchRequest, *, out: Path, executor: Executor, board: Board
    ):
        self._optuna = import_optuna()
        self._plan, self._request, self._out = plan, request, out
        self._executor, self._board = executor, board
        self._games = games_of(plan.games)
        self._width = max(1, executor.at_once // (len(self._games) * len(plan.seeds)))
        try:
            self._study = self._optuna.create_study(
                storage=f"sqlite:///{(out / STUDY_FILE).resolve()}",
                study_name="search",
                direction="maximize",
                load_if_exists=True,
                sampler=self._optuna.samplers.TPESampler(seed=plan.base.seed, constant_liar=True),
                pruner=self._optuna.pruners.MedianPruner(n_warmup_steps=plan.base.steps // 10),
            )
        except Exception as error:  # of Optuna, SQLAlchemy or SQLite, whatever is wrong with it
            reason = named_line(error.__cause__ or error)
            raise ValueError(f"search: {out / STUDY_FILE} cannot be used ({reason})") from None
        begun = len(self._study.get_trials(deepcopy=False))
        if begun:  # the storage does not hold the sampler's state: the same seed, the same values
            seed = (plan.base.seed + 1_000_003 * begun) % 2**32
            self._study.sampler = self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        self._live: dict[int, _Trial] = {}
        self._next_look = 0.0

    @property
    def ended(self) -> int:
        """How many trials are over, those of earlier commands included."""
        return sum(trial.state.is_finished() for trial in self._study.get_trials(deepcopy=False))

    @property
    def complete(self) -> bool:
        """Whether a trial has come to its end with a value."""
        return any(t.state.name == "COMPLETE" for t in self._study.get_trials(deepcopy=False))

    def best(self) -> str:
        """A line about the best trial that is done."""
        if not self.complete:
            return "no trial is done"
        return f"{self._best_text()}; {self._out / BEST_FILE}"

    def _best_text(self) -> str:
        best = self._study.best_trial
        values = ", ".join(f"{d.option} {best.params[d.option]}" for d in self._request.space)
        return f"Trial {best.number}, best by {self._request.metric} ({best.value:g}): {values}"

    def begin(self) -> Sequence[PlannedRun]:
        """See `Work.begin`."""
        if time.monotonic() < self._next_look:
            return []
        self._next_look = time.monotonic() + _LOOK_SECONDS
        for number in list(self._live):
            self._judge(number)
        runs: list[PlannedRun] = []
        for handle, reported in self._more():
            trial = _Trial(handle=handle, runs=self._runs(handle), reported=reported)
            self._live[handle.number] = trial
            self._board.add(trial.runs)
            runs += [run for run in trial.runs if not self._board.is_done(run)]
        return runs

    def _more(self) -> Iterator[tuple[Any, set[int]]]:
        """Resume unfinished trials, then begin new ones, as many as there is room for."""
        states = self._optuna.trial.TrialState
        known = self._study.get_trials(deepcopy=False)
        for trial in known:
            waits = trial.state == states.RUNNING and trial.number not in self._live
            if waits and len(self._live) < self._width:
                handle = self._optuna.trial.Trial(self._study, trial._trial_id)
                yield handle, set(trial.intermediate_values)
        for _ in range(self._request.trials - len(known)):
            if len(self._live) >= self._width:
                break
            yield self._study.ask(), set()

    def _runs(self, handle: Any) -> list[PlannedRun]:
        vary = {d.option: (d.suggest(handle),) for d in self._request.space}
        plan = dataclasses.replace(self._plan, vary=vary, name=f"trial-{handle.number}")
        return plan.runs(self._out, self._executor.threads)

    def is_over(self, run: PlannedRun) -> bool:
        """See `Work.is_over`: done, or of a trial that was ended."""
        live = {planned.name for trial in self._live.values() for planned in trial.runs}
        self._next_look = 0.0
        return run.name not in live or self._board.is_done(run)

    def give_up(self, run: PlannedRun) -> None:
        """See `Work.give_up`: the trial has failed."""
        for number, trial in list(self._live.items()):
            if run in trial.runs:
                self._tell(number, state=self._optuna.trial.TrialState.FAIL)

    def _judge(self, number: int) -> None:
        """Report a trial's progress to Optuna; end the trial if it is done or Optuna prunes it."""
        trial = self._live[number]
        done = all(self._board.is_done(run) for run in trial.runs)  # first: then all is logged
        values = self._values(trial.runs)
        for step in sorted(set(values) - trial.reported):
            trial.handle.report(values[step], step)
            trial.reported.add(step)
        states = self._optuna.trial.TrialState
        if done:
            last = max(values, default=None)
            if last is None:
                self._board.tell(f"trial-{number}: no {self._request.metric} in its metrics")
                self._tell(number, state=states.FAIL)
            else:
                self._tell(number, values[last])
                self._write_best()
        elif trial.handle.should_prune():
            self._board.tell(f"trial-{number}: ended early, worse than the median")
            self._tell(number, state=states.PRUNED)

    def _tell(self, number: int, value: float | None = None, state: Any = None) -> None:
        """Report the end of a trial to Optuna, and end what still runs of it."""
        trial = self._live.pop(number)
        for run in trial.runs:
            if not self._board.is_done(run):
                self._executor.end(run)
                self._board.remove(run)
        self._study.tell(number, value, state=state)

    def _values(self, runs: Sequence[PlannedRun]) -> dict[int, float]:
        """Step to the mean of the metric over a trial's runs, at steps that all have logged.

        Returns over several games are human-normalised first.
        """
        columns = []
        for run in runs:
            lines = read_metrics(RunFolder(run.folder).metrics_path)
            name = self._request.metric
            columns.append({x["steps"]: self._scaled(run, x[name]) for x in lines if _has(x, name)})
        common = set(columns[0]).intersection(*columns[1:])
        return {step: sum(c[step] for c in columns) / len(columns) for step in common}

    def _scaled(self, run: PlannedRun, value: float) -> float:
        if len(self._games) == 1 or "return" not in self._request.metric:
            return value
        share = human_normalized_score(run.game, value)
        return value if share is None else share

    def _write_best(self) -> None:
        best = self._study.best_trial
        setting = {d.option: best.params[d.option] for d in self._request.space}
        vary = {option: (str(value),) for option, value in setting.items()}
        (config,) = dataclasses.replace(self._plan, vary=vary).configs().values()
        with written(self._out / BEST_FILE) as partial:
            write_config(config, partial)
            text = partial.read_text(encoding="utf-8")
            partial.write_text(f"# {self._best_text()}\n{text}", encoding="utf-8")


def _has(line: Mapping[str, Any], name: str) -> bool:
    return isinstance(line.get(name), int | float)


def check_ends(plan: Plan, space: Sequence[Dimension]) -> None:
    """Check every range and choice, by building a config at both ends and for each choice.

    Raises:
        ValueError: one of them is not allowed.
    """
    for dimension in space:
        ends = dimension.choices or tuple(
            str(int(end) if dimension.whole else end) for end in (dimension.low, dimension.high)
        )
        try:
            dataclasses.replace(plan, vary={dimension.option: ends}).configs()
        except ValueError as error:
            raise ValueError(f"search: {str(error).removeprefix('vary: ')}") from None


def import_optuna() -> Any:
    """Import Optuna and silence its log.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ValueError("search: Optuna is missing; pip install 'rl-nfm[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
