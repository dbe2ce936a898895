"""Which episodes of an evaluation count: the first N started, in the order of their start."""

from typing import Any

import numpy as np

from rl_nfm.support.progress import Progress


class EpisodeCounter:
    """Gives episodes numbers in the order of their start, and keeps the first N."""

    def __init__(self, num_envs: int, episodes: int):
        self.number = np.arange(num_envs)
        self.next = num_envs
        self.results: dict[int, tuple[float, int]] = {}
        self.episodes, self.steps = episodes, 0
        self.progress: Progress | None = None

    def shown(self) -> Progress:
        """Show a progress bar of ended episodes from now on."""
        self.progress = Progress(self.episodes, unit="episode", values=self._values)
        return self.progress

    @property
    def done(self) -> bool:
        """Whether all N have ended."""
        return len(self.results) == self.episodes

    @property
    def returns(self) -> list[float]:
        """Returns of the N episodes, in the order of their start."""
        return [self.results[i][0] for i in range(self.episodes)]

    @property
    def lengths(self) -> list[int]:
        """Agent steps of the N episodes, in the order of their start."""
        return [self.results[i][1] for i in range(self.episodes)]

    def step(self, info: dict[str, Any]) -> None:
        """Count the episodes that ended in a step; `info` is that of `GameVecEnv`."""
        self.steps += len(self.number)
        for i in np.flatnonzero(info["episode_end"]):
            number = int(self.number[i])
            if number < self.episodes:
                ended = float(info["episode_return"][i]), int(info["episode_steps"][i])
                self.results[number] = ended
            self.number[i] = self.next
            self.next += 1
        if self.progress is not None:
            self.progress.advance(len(self.results) - self.progress.count)

    def _values(self) -> dict[str, float]:
        shown = {"steps": float(self.steps)}
        if self.results:
            shown["mean"] = float(np.mean([r for r, _ in self.results.values()]))
        return shown
