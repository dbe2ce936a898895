"""The numbers of a report: per run, per game and method, over games, and method against method.

Statistics are over seeds where there are several. Those of a single run are over its episodes, and
each row says which: an interval over episodes tells nothing about other seeds. The interval of a
game's mean is over both, seeds and the episodes of each.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.reporting.results import TRAINING_EPISODES, Result, Source
from agents.reporting.statistics import (
    AGGREGATE_RESAMPLES,
    RESAMPLES,
    Statistic,
    Strata,
    bootstrap_interval,
    improvement_interval,
    interquartile_mean,
    mean_of_means,
    median_of_means,
    nested_interval,
    probability_of_improvement,
)
from agents.reporting.swept import LAST_EVALUATIONS
from envs import human_normalized_score

TITLES: dict[Source, str] = {
    "evaluation": "Evaluation",
    "training": f"Training, last {TRAINING_EPISODES} episodes",
    "last_tenth": "Training, episodes of the last tenth of each run",
    "last_evaluations": f"Mean of the last {LAST_EVALUATIONS} evaluations of each run",
}
_AGGREGATES = {"iqm": interquartile_mean, "mean": mean_of_means, "median": median_of_means}
Row = dict[str, Any]
Groups = Mapping[tuple[str, str], Sequence[Result]]
"""(game, method) to its runs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tables:
    """All numbers of one source."""

    runs: list[Row]
    """One row per run."""
    scores: list[Row]
    """One per game and method."""
    aggregates: list[Row]
    """One per method, human-normalised, over the games that all methods have."""
    improvements: list[Row]
    """One per pair of methods: probability that the first beats the second."""
    strata: dict[str, list[NDArray[np.float64]]]
    """Method to human-normalised scores per game, as aggregated; empty below two games."""

    def to_plain(self) -> dict[str, list[Row]]:
        """The rows."""
        names = ("runs", "scores", "aggregates", "improvements")
        return {name: getattr(self, name) for name in names}


def make_tables(
    results: Sequence[Result], notes: list[str], *, against: str | None = None
) -> Tables:
    """The numbers of results of one source; every result has episodes.

    Args:
        results: of one source.
        notes: a line is added for whatever is left out.
        against: the baseline that every other method is compared with; None compares all pairs.
    """
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in sorted(results, key=lambda r: (r.game, r.method, r.seed or 0)):
        groups.setdefault((result.game, result.method), []).append(result)
    strata = _normalized(groups, TITLES[results[0].source], notes)
    _note_steps(results, notes)
    improvements = _improvements(groups, against)
    if against is not None and not improvements:
        notes.append(
            f"{TITLES[results[0].source]}: no probability of improvement over {against}: it takes "
            "two seeds each of it and of another method on one game"
        )
    return Tables(
        runs=[_run_row(result) for group in groups.values() for result in group],
        scores=[_score_row(group) for group in groups.values()],
        aggregates=[_aggregate_row(method, games) for method, games in strata.items()],
        improvements=improvements,
        strata=strata,
    )


def _note_steps(results: Sequence[Result], notes: list[str]) -> None:
    """Add a note where methods are compared after different numbers of steps."""
    steps: dict[str, set[int]] = {}
    for result in results:
        if result.steps is not None and not result.best:
            steps.setdefault(result.method, set()).add(result.steps)
    if len(set().union(*steps.values())) > 1:
        counts = "; ".join(f"{m}: {', '.join(map(str, sorted(s)))}" for m, s in steps.items())
        notes.append(
            f"{TITLES[results[0].source]}: scores after different numbers of steps ({counts})"
        )


def _run_row(result: Result) -> Row:
    return {
        "source": result.source,
        "game": result.game,
        "method": result.method,
        "seed": result.seed,
        "steps": result.steps,
        "episodes": len(result.returns),
        "mean": result.mean,
        "median": float(np.median(result.returns)),
        "hns": result.hns,
        "path": result.where,
    }


def _score_row(group: Sequence[Result]) -> Row:
    first = group[0]
    if len(group) > 1:
        values = _means(group)
        seeds_known = all(result.seed is not None for result in group)
        over = f"{len(group)} {'seeds' if seeds_known else 'runs'}"
    else:
        values = np.array(first.returns)
        what = "evaluations" if first.source == "last_evaluations" else "episodes"
        over = f"{len(values)} {what} of one run"
    mean = float(values.mean())
    low = high = None
    if len(values) > 1:
        low, high = nested_interval([np.array(result.returns) for result in group])
    return {
        "source": first.source,
        "game": first.game,
        "method": first.method,
        "steps": sorted({result.steps for result in group if result.steps is not None}),
        "over": over,
        "mean": mean,
        "mean_low": low,
        "mean_high": high,
        "median": float(np.median(values)),
        "hns": human_normalized_score(first.game, mean),
        "iqm": float(interquartile_mean([values])),
        **_interval("iqm", interquartile_mean, [values], RESAMPLES),
    }


def _means(group: Sequence[Result]) -> NDArray[np.float64]:
    return np.array([result.mean for result in group])


def _interval(name: str, statistic: Statistic, strata: Strata, resamples: int) -> Row:
    """Bounds of the 95 % interval; None where there is nothing to resample."""
    low = high = None
    if min(map(len, strata)) > 1:
        low, high = map(float, bootstrap_interval(statistic, strata, resamples=resamples))
    return {f"{name}_low": low, f"{name}_high": high}


def _normalized(
    groups: Groups, title: str, notes: list[str]
) -> dict[str, list[NDArray[np.float64]]]:
    games = list(dict.fromkeys(game for game, _ in groups))
    methods = list(dict.fromkeys(method for _, method in groups))
    common = [
        game
        for game in games
        if human_normalized_score(game, 0.0) is not None
        and all((game, method) in groups for method in methods)
    ]
    if len(common) < len(games) > 1:
        excluded = ", ".join(game for game in games if game not in common)
        notes.append(
            f"{title}: not over {excluded} (no human score, or not played by every method)"
        )
    if len(common) < 2:
        return {}
    strata = {
        method: [np.array([r.hns for r in groups[game, method]], np.float64) for game in common]
        for method in methods
    }
    sizes = {len(scores) for games in strata.values() for scores in games}
    if min(sizes) < 2:
        notes.append(f"{title}: no interval over games where a game has one run only")
    elif len(sizes) > 1:
        notes.append(f"{title}: unequal numbers of seeds; in the IQM games with more weigh more")
    return strata


def _aggregate_row(method: str, strata: Strata) -> Row:
    row: Row = {"method": method, "games": len(strata), "runs": sum(map(len, strata))}
    for name, statistic in _AGGREGATES.items():
        row[name] = float(statistic(strata))
        row |= _interval(name, statistic, strata, AGGREGATE_RESAMPLES)
    return row


def _improvements(groups: Groups, against: str | None) -> list[Row]:
    """Over the games where both methods have several seeds; this needs no normalised scores."""
    games = list(dict.fromkeys(game for game, _ in groups))
    methods = list(dict.fromkeys(method for _, method in groups))
    pairs = list(itertools.combinations(methods, 2))
    if against is not None:
        pairs = [(method, against) for method in methods if method != against]
    rows = []
    for first, second in pairs:
        x, y = [], []
        for game in games:
            pair = groups.get((game, first), ()), groups.get((game, second), ())
            if min(map(len, pair)) > 1:
                x.append(_means(pair[0]))
                y.append(_means(pair[1]))
        if x:
            low, high = improvement_interval(x, y)
            value = float(probability_of_improvement(x, y))
            row = {"first": first, "second": second, "games": len(x), "probability": value}
            rows.append({**row, "low": low, "high": high})
    return rows
