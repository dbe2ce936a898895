"""The runs in the folder of a sweep, and the two scores of each.

A run lies in GAME/METHOD/seed-N, be it the folder of `rl-nfm sweep` or one of kept results
(`agents.reporting.kept`). One frozen greedy policy is a poor measure of a young agent, so a run is
judged by its training episodes of the last tenth of its steps (as Dopamine reports an iteration)
and by the mean of its last five evaluations, never by its best one.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from agents.config import CONFIG_FILE, Config, to_plain
from agents.saving.resumable import RESUMABLE, changed_fields
from agents.saving.run_folder import RunFolder, read_metrics
from rl_nfm.support.sweep_folders import seed_folders

SWEEP_FILE = "sweep.yaml"
"""In the folder of a sweep: what was asked of it."""
LAST_TENTH = 0.1
"""Share of a run's steps whose training episodes count."""
LAST_EVALUATIONS = 5
"""Evaluations that count."""
_FREE = set(RESUMABLE) - {"steps"}
"""In which two runs may differ that stand for each other: a run and what was kept of it."""


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
    return (path / CONFIG_FILE).is_file()


def swept_runs(folder: Path) -> list[SweptRun]:
    """All runs of a sweep that have begun, in the order of their names; empty if it is no sweep.

    Raises:
        OSError: a folder cannot be read.
    """
    found = []
    for path in seed_folders(folder):
        number = path.name.removeprefix("seed-")
        if number.isdecimal() and is_run(path):
            game, method = path.parts[-3:-1]
            found.append(SweptRun(path=path, game=game, method=method, seed=int(number)))
    return found


def each_once(runs: Sequence[SweptRun]) -> list[SweptRun]:
    """One run of each name, as a sweep may be named together with its kept results.

    It is the first whose metrics reach its last step, or, without any, the first.

    Raises:
        ValueError: two of one name were made with other settings.
    """
    found: dict[str, SweptRun] = {}
    for run in runs:
        first = found.setdefault(run.name, run)
        if run is not first and first.path.resolve() != run.path.resolve():
            configs = [RunFolder(r.path).config() for r in (first, run)]
            if (field := differing(*configs)) is not None:
                raise ValueError(f"{first.path} and {run.path}: one run, made with another {field}")
            if is_whole(run.path) and not is_whole(first.path):
                found[run.name] = run
    return list(found.values())


def is_whole(run: Path) -> bool:
    """Whether the metrics of a run reach its last step."""
    folder = RunFolder(run)
    lines = read_metrics(folder.metrics_path)
    return bool(lines) and lines[-1]["steps"] >= folder.config().steps


def differing(one: Config, other: Config) -> str | None:
    """The first option in which two runs differ that should stand for each other, if any."""
    for field in changed_fields(to_plain(one), to_plain(other)):
        if field not in _FREE and field.split(".")[0] not in _FREE:
            return field
    return None
