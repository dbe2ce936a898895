"""Further tables for a comparison of encoders.

Games x methods, the size of each method's encoder, and Atari-5's estimate of the median over 57
games.
"""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from agents.reporting.results import Result
from agents.reporting.sizes import describe
from agents.saving.run_folder import RunFolder
from envs import atari5_median

Row = dict[str, Any]
ESTIMATE = "estimated median of 57 games"


def games_by_methods(runs: Sequence[Row]) -> list[Row]:
    """One row per game: mean over seeds, its sample standard deviation, number of seeds.

    Args:
        runs: rows with the mean of one run each, as in `Tables.runs`.
    """
    methods = sorted({row["method"] for row in runs})
    table = []
    for game in sorted({row["game"] for row in runs}):
        cells: Row = {"game": game}
        rows = [row for row in runs if row["game"] == game]
        decimals = decimals_of([row["mean"] for row in rows])
        for method in methods:
            cells[method] = _cell([r["mean"] for r in rows if r["method"] == method], decimals)
        table.append(cells)
    return table


def decimals_of(returns: Sequence[float]) -> int:
    """With how many decimals returns are printed: one, or two where all are below 10."""
    return 1 if max(map(abs, returns)) >= 10 else 2


def _cell(means: Sequence[float], decimals: int) -> str:
    if not means:
        return "-"
    mean = f"{statistics.fmean(means):.{decimals}f}"
    if len(means) == 1:
        return f"{mean} (1)"
    return f"{mean} ± {statistics.stdev(means):.{decimals}f} ({len(means)})"


def method_sizes(results: Iterable[Result]) -> list[Row]:
    """Parameters and multiply-accumulates of the encoder of each method of a sweep."""
    first = {r.method: r.where for r in results if r.source == "last_tenth"}
    return [
        {"method": method, **describe(RunFolder(Path(where)).config())}
        for method, where in sorted(first.items())
    ]


def atari5_rows(scores: Sequence[Row]) -> list[Row]:
    """Per method that played all five games: the estimated median over 57, human-normalised.

    Args:
        scores: rows per game and method, as in `Tables.scores`.
    """
    rows = []
    for method in sorted({row["method"] for row in scores}):
        hns = {row["game"]: row["hns"] for row in scores if row["method"] == method}
        estimate = atari5_median(hns)
        if estimate is not None:
            rows.append({"method": method, ESTIMATE: estimate})
    return rows
