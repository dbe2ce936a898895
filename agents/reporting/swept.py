"""The runs in the folder of a sweep, and the two scores of each.

A run lies in GAME/METHOD/seed-N, be it the folder of `rl-nfm sweep` or one of kept results
(`agents.reporting.kept`). One frozen greedy policy is a poor measure of a young agent, so a run is
judged by its training episodes of the last tenth of its steps (as Dopamine reports an iteration)
and by the mean of its last five evaluations (as Beyond The Rainbow does), never by its best one.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

LAST_TENTH = 0.1
"""Share of a run's steps whose training episodes count."""
LAST_EVALUATIONS = 5
"""Evaluations that count."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweptRun:
    """A run and its place in a sweep."""

    path: Path
    game: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """GAME/METHOD/seed-N."""
        return f"{self.game}/{self.method}/seed-{self.seed}"


def is_run(path: Path) -> bool:
    """Whether a path is a run's folder itself."""
    return (path / "config.yaml").is_file()


def swept_runs(folder: Path) -> list[SweptRun]:
    """All runs of a sweep that have begun, in the order of their names; empty if it is no sweep."""
    found = []
    for config in sorted(folder.glob("*/*/seed-*/config.yaml")):
        path = config.parent
        number = path.name.removeprefix("seed-")
        if number.isdecimal():
            game, method = path.parts[-3:-1]
            found.append(SweptRun(path=path, game=game, method=method, seed=int(number)))
    return found


def each_once(runs: Sequence[SweptRun]) -> list[SweptRun]:
    """The first run of each name: a sweep may be named together with its kept results."""
    return list({run.name: run for run in reversed(runs)}.values())[::-1]
