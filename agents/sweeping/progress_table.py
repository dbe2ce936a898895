"""The progress of a sweep: one live table in a terminal, otherwise one line per minute."""

import dataclasses
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TextIO

from agents.sweeping.runs import PlannedRun, RunProgress, progress
from envs import human_normalized_score, random_and_human_score
from rl_nfm.support.progress import duration

_TERMINAL_SECONDS, _PLAIN_SECONDS = 2.0, 60.0
_MAX_COLUMNS = 8
"""With more methods than this, methods are the rows of the table and games the columns."""
_QUIET_SECONDS = 3600.0
"""A run that has logged nothing for so long is not counted as under way."""


class Board:
    """Reads the progress of all runs from their folders, and shows it.

    Args:
        runs: all runs of the sweep, finished ones too.
        known: names of the runs whose results come from another folder.
        at_once: how many runs are trained side by side, which the estimate of time needs.
        out: where the table is printed.
    """

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        *,
        known: Sequence[str] = (),
        at_once: int,
        out: TextIO = sys.stdout,
    ):
        self.runs, self.at_once = list(runs), at_once
        self._out, self._terminal = out, out.isatty()
        self._next = time.monotonic() + (0.0 if self._terminal else _PLAIN_SECONDS)
        self._height = 0
        self._done = {
            run.name: RunProgress(done=True, steps=run.steps)
            for run in runs
            if run.name in set(known)
        }

    def add(self, runs: Sequence[PlannedRun]) -> None:
        """Show these runs too."""
        self.runs += runs

    def remove(self, run: PlannedRun) -> None:
        """No longer show a run."""
        self.runs.remove(run)

    def is_done(self, run: PlannedRun) -> bool:
        """Whether a run is finished, according to its folder, or known from another one."""
        return self._look(run).done

    def _look(self, run: PlannedRun) -> RunProgress:
        """The progress of a run, read from its folder again until the run is done."""
        if run.name in self._done:
            return self._done[run.name]
        try:
            state = progress(run)
        except ValueError:
            state = RunProgress()  # a damaged folder, which the run's process will report
        if state.done:
            self._done[run.name] = state
        return state

    def tell(self, line: str) -> None:
        """Print a line that stays above the table."""
        self._erase()
        print(line, file=self._out, flush=True)
        self._next = min(self._next, time.monotonic() + 0.5)

    def show(self, failed: Mapping[str, str], *, last: bool = False) -> None:
        """Print the table, or the summary alone, when the next one is due."""
        if not self.runs or (time.monotonic() < self._next and not last):
            return
        self._next = time.monotonic() + (_TERMINAL_SECONDS if self._terminal else _PLAIN_SECONDS)
        states = {run.name: self._look(run) for run in self.runs}
        if last:  # nothing runs any more, whatever was logged a moment ago
            states = {k: dataclasses.replace(v, logged_at=0.0) for k, v in states.items()}
        lines = [*self.table(states, failed)] if self._terminal or last else []
        lines.append(self.summary(states, failed))
        if self._terminal and not last:
            lines = fit(lines, *shutil.get_terminal_size())
        self._erase()
        print("\n".join(lines), file=self._out, flush=True)
        self._height = len(lines) if self._terminal and not last else 0

    def _erase(self) -> None:
        if self._height:
            print(f"\x1b[{self._height}F\x1b[J", end="", file=self._out)
            self._height = 0

    def summary(self, states: Mapping[str, RunProgress], failed: Mapping[str, str]) -> str:
        """One line about all runs."""
        done = sum(state.done for state in states.values())
        running = sum(_is_under_way(s) and n not in failed for n, s in states.items())
        steps = sum(min(state.steps, run.steps) for run, state in self._pairs(states))
        total = sum(run.steps for run in self.runs)
        parts = [f"{done} of {len(states)} runs done", f"{len(failed)} given up"]
        if done < len(states):
            parts += [f"{running} under way", f"{steps / max(1, total):.0%} of the steps"]
            if (seconds := self._remaining_seconds(states, failed)) is not None:
                parts.append(f"about {duration(seconds)} left")
        return ", ".join(parts)

    def table(self, states: Mapping[str, RunProgress], failed: Mapping[str, str]) -> Iterator[str]:
        """A table of games and encoders, and a line for each run that is under way."""
        methods = list(dict.fromkeys(run.method for run in self.runs))
        games = dict.fromkeys(run.game for run in self.runs)
        returns = any(state.last_return is not None for state in states.values())
        rows = [
            ["runs done, mean of return_last_100" if returns else "runs done", *methods],
            *([game, *(self._cell(game, m, states, failed) for m in methods)] for game in games),
        ]
        if len(methods) > _MAX_COLUMNS:
            rows = [list(column) for column in zip(*rows, strict=True)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        for run, state in self._pairs(states):
            if _is_under_way(state) and run.name not in failed:
                yield f"  {run.name}: {_describe(run, state)}"

    def _cell(
        self,
        game: str,
        method: str,
        states: Mapping[str, RunProgress],
        failed: Mapping[str, str],
    ) -> str:
        """Runs done and given up, and their mean return as `_against_human` shows it."""
        group = [(r, s) for r, s in self._pairs(states) if (r.game, r.method) == (game, method)]
        text = f"{sum(state.done for _, state in group)}/{len(group)}"
        if lost := sum(run.name in failed for run, _ in group):
            text += f" ({lost} given up)"
        returns = [state.last_return for _, state in group if state.last_return is not None]
        if returns:
            text += f" {_against_human(game, math.fsum(returns) / len(returns))}"
        return text

    def _pairs(self, states: Mapping[str, RunProgress]) -> Iterator[tuple[PlannedRun, RunProgress]]:
        return ((run, states[run.name]) for run in self.runs)

    def _remaining_seconds(
        self, states: Mapping[str, RunProgress], failed: Mapping[str, str]
    ) -> float | None:
        """Estimated by the mean speed of each method so far, or of all where it has none yet."""
        rates: dict[str, list[float]] = {}
        for run, state in self._pairs(states):
            if state.steps_per_second:
                rates.setdefault(run.method, []).append(state.steps_per_second)
        if not rates:
            return None
        overall = _mean([rate for of_method in rates.values() for rate in of_method])
        seconds = [
            max(0, run.steps - state.steps) / _mean(rates.get(run.method, [overall]))
            for run, state in self._pairs(states)
            if not state.done and run.name not in failed
        ]
        if not seconds:
            return None
        return math.fsum(seconds) / min(self.at_once, max(1, len(seconds)))


def fit(lines: Sequence[str], columns: int, rows: int) -> list[str]:
    """Cut lines so that they can be erased again: none may wrap, nor all of them scroll the screen.

    Args:
        lines: to print; the last one is always shown.
        columns: width of the terminal.
        rows: height of the terminal.
    """
    shown = [*lines]
    if len(lines) > (room := max(3, rows - 1)):
        shown = [*lines[: room - 2], f"  ... {len(lines) - room + 1} more lines", lines[-1]]
    return [line[: max(1, columns - 1)] for line in shown]


def _is_under_way(state: RunProgress) -> bool:
    return not state.done and time.time() - state.logged_at < _QUIET_SECONDS


def _describe(run: PlannedRun, state: RunProgress) -> str:
    parts = [f"{state.steps / run.steps:.0%}"]
    if state.steps_per_second:
        seconds = (run.steps - state.steps) / state.steps_per_second
        parts += [f"{state.steps_per_second:.1f} steps/s", f"{duration(seconds)} left"]
    if state.last_return is not None:
        parts.append(f"return {_points(state.last_return)}{_reference(run.game)}")
    return ", ".join(parts)


def _reference(game: str) -> str:
    scores = random_and_human_score(game)
    return "" if scores is None else f" (random {scores[0]:g}, human {scores[1]:g})"


def _against_human(game: str, score: float) -> str:
    """The return, and where a human score is published, the human-normalised one."""
    share = human_normalized_score(game, score)
    return _points(score) + ("" if share is None else f" {share:.1%}")


def _points(score: float) -> str:
    return f"{score:.{0 if abs(score) >= 10 else 2}f}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
