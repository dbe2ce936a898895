"""The data of a report: one `Result` for each run and each source of its scores."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from envs import human_normalized_score

TRAINING_EPISODES = 100
"""Of training, the last so many episodes count (Machado et al. 2018)."""
Source = Literal["evaluation", "training", "last_tenth", "last_evaluations"]
"""What `rl-nfm evaluate --json` wrote, the training itself, or the two scores of a sweep's runs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """A training run over its agent steps."""

    episode_steps: NDArray[np.int64]
    """Steps at which each training episode ended, not decreasing; in runs of versions that did not
    log them, those of the log line that tells of it."""
    episode_returns: NDArray[np.float64]
    """Return of each."""
    eval_steps: NDArray[np.int64]
    """Steps of each evaluation in training."""
    eval_returns: NDArray[np.float64]
    """Mean return of each."""
    steps: int
    """Where the log ends."""
    updates: int | None = None
    """Made until then, where it tells."""

    @property
    def has_data(self) -> bool:
        """Whether there is anything to draw."""
        return len(self.episode_returns) > 0 or len(self.eval_steps) > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The episodes by which one run is scored."""

    source: Source
    game: str
    encoder: str
    seed: int | None
    """Of training; None where unknown or nothing was trained."""
    steps: int | None
    """Agent steps of training."""
    returns: list[float]
    """Per episode; may be empty for a training run that finished none."""
    protocol: Mapping[str, Any]
    settings: Mapping[str, Any]
    """Of the method, dotted names to values; empty where unknown."""
    where: str
    """Path, for messages."""
    best: bool = False
    """Whether the checkpoint of the best evaluation was scored, not the last one."""
    curve: Curve | None = None
    method: str = ""
    """Name in the report; see `name_methods`."""

    @property
    def has_curve(self) -> bool:
        """Whether there is something to draw."""
        return self.curve is not None and self.curve.has_data

    @property
    def planned_steps(self) -> int | None:
        """Agent steps after which the training is complete; None where unknown."""
        return self.settings.get("steps")

    @property
    def finished(self) -> bool:
        """Whether training has reached its planned end, as far as is known."""
        if self.steps is None or self.planned_steps is None or self.best:
            return True
        return self.steps >= self.planned_steps

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def hns(self) -> float | None:
        """Human-normalised mean return; None where no human score is published."""
        return human_normalized_score(self.game, self.mean)
