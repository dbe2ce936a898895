"""What a run counts, and the lines of metrics that it writes."""

import dataclasses
import io
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Lt

from agents.saving.run_folder import RunFolder
from rl_nfm.support.configuration import validate
from rl_nfm.support.progress import Progress


class Episode(NamedTuple):
    """An episode of training that has ended."""

    ended_at: int
    """Agent steps of the run."""
    total: float
    """Raw return."""
    steps: int
    """Its length in agent steps."""

    @classmethod
    def of(cls, info: Mapping[str, Any], now: int) -> "list[Episode]":
        """The episodes that ended in the step after which the run had `now` agent steps."""
        ended = info["episode_end"]
        if not ended.any():
            return []
        returns, lengths = info["episode_return"][ended], info["episode_steps"][ended]
        pairs = zip(returns.tolist(), lengths.tolist(), strict=True)
        return [cls(now, total, steps) for total, steps in pairs]


@dataclasses.dataclass(kw_only=True)
class Counters:
    """What a resumed run continues from; saved in every checkpoint."""

    steps: Annotated[int, Ge(0)] = 0
    episodes: Annotated[int, Ge(0)] = 0
    update_credit: Annotated[float, Ge(0), Lt(1)] = 0.0
    best_return: float | None = None
    last_returns: list[float] = dataclasses.field(default_factory=list)
    new_returns: list[float] = dataclasses.field(default_factory=list)
    new_lengths: list[int] = dataclasses.field(default_factory=list)
    new_ends: list[int] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, saved: Mapping[str, Any], where: str) -> "Counters":
        """The counters of a checkpoint; those of earlier versions hold more fields.

        Raises:
            ValueError: a value of the wrong type.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        return validate(cls, {k: v for k, v in saved.items() if k in names}, where=where)

    def count_episodes(self, ended: Sequence[Episode]) -> None:
        """Add episodes that have ended, in their order."""
        returns = [episode.total for episode in ended]
        self.new_returns += returns
        self.new_lengths += [episode.steps for episode in ended]
        self.new_ends += [episode.ended_at for episode in ended]
        self.last_returns = (self.last_returns + returns)[-100:]
        self.episodes += len(returns)

    def updates_due(self, steps: int, steps_per_update: float) -> int:
        """How many updates are due after these agent steps; a fraction is carried over."""
        self.update_credit += steps / steps_per_update
        due = int(self.update_credit)
        self.update_credit -= due
        return due


class Recorder:
    """Writes one line of metrics per stretch of a run, and shows how far it is."""

    def __init__(
        self,
        folder: RunFolder,
        counters: Counters,
        updates: int,
        *,
        steps: int,
        silent: bool = False,
    ):
        """Begin a stretch.

        Args:
            folder: where lines go.
            counters: of the run.
            updates: made so far.
            steps: of the whole run.
            silent: neither write nor show anything: another rank does.
        """
        self.folder, self.counters, self.silent = folder, counters, silent
        self.begun_steps = counters.steps
        self._begun = (time.perf_counter(), counters.steps, updates)
        self._evaluation: float | None = None
        self._updates = self._shown_updates = updates
        self._shown_at = self._begun[0]
        self.progress = Progress(
            steps,
            begun=counters.steps,
            values=self._values,
            stream=io.StringIO() if silent else None,
        )
        self.progress.write(f"run: {folder.path}")

    def advance(self, steps: int, updates: int) -> None:
        """Count steps, and show them when it is time.

        Args:
            steps: agent steps since the last call.
            updates: of the run, so far.
        """
        self._updates = updates
        self.progress.advance(steps)

    def _values(self) -> dict[str, float]:
        """The values shown beside the steps, as far as they are known yet."""
        now = time.perf_counter()
        rate = (self._updates - self._shown_updates) / max(1e-9, now - self._shown_at)
        self._shown_updates, self._shown_at = self._updates, now
        shown = {"updates/s": rate}
        if returns := self.counters.last_returns:
            shown["return"] = sum(returns) / len(returns)
        if self._evaluation is not None:
            shown["evaluation"] = self._evaluation
        return shown

    def log(self, updates: int, more: Mapping[str, Any]) -> None:
        """End the stretch with a line; docs/metrics.md says what each number means."""
        counters = self.counters
        now = (time.perf_counter(), counters.steps, updates)
        seconds = max(1e-9, now[0] - self._begun[0])
        line: dict[str, Any] = {
            "steps": counters.steps,
            "updates": updates,
            "episodes": counters.episodes,
            "steps_per_second": (now[1] - self._begun[1]) / seconds,
            "updates_per_second": (now[2] - self._begun[2]) / seconds,
            "episode_returns": counters.new_returns,
            "episode_lengths": counters.new_lengths,
            "episode_ends": counters.new_ends,
            **more,
        }
        if counters.new_returns:
            line["return_mean"] = sum(counters.new_returns) / len(counters.new_returns)
            line["length_mean"] = sum(counters.new_lengths) / len(counters.new_lengths)
        if counters.last_returns:
            line["return_last_100"] = sum(counters.last_returns) / len(counters.last_returns)
        self._evaluation = line.get("eval_return_mean", self._evaluation)
        if not self.silent:
            self.folder.log(line)
        counters.new_returns, counters.new_lengths, counters.new_ends = [], [], []
        self._begun, self.begun_steps = now, counters.steps
