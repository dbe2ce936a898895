"""Schedules: what is due when, how epsilon decays, and how long each part of the loop takes."""

import time
from collections import defaultdict

import torch
from torch import Tensor

from agents.learning.config import ExplorationConfig


class Clock:
    """Tells what is due: each task has a name and an interval in agent steps.

    It keeps no history: a task is due whenever a multiple of its interval is passed. A resumed run
    therefore needs only its count of steps, and may go on with other intervals.
    """

    def __init__(self, **every_steps: int):
        self._every_steps = every_steps

    def due(self, before: int, now: int) -> frozenset[str]:
        """The names of which a multiple of the interval lies in (before, now], in agent steps."""
        return frozenset(
            name for name, every in self._every_steps.items() if now // every > before // every
        )


class Epsilon:
    """The probability of a random action, per environment."""

    def __init__(self, config: ExplorationConfig, *, num_envs: int, min_steps: int):
        """Make the schedule.

        Args:
            config: see `ExplorationConfig`.
            num_envs: E.
            min_steps: agent steps before learning begins; until then every action is random,
                with noisy layers too, whose noise alone hardly explores while nothing is learnt.
        """
        self._config, self._min_steps = config, min_steps
        share = torch.arange(num_envs) / max(1, num_envs - 1)
        self._exponent = 1 + config.epsilon_power * share

    def __call__(self, steps: int) -> Tensor:
        """Epsilon of each environment after so many agent steps, float [E] on the host."""
        config, begun = self._config, steps - self._min_steps
        if begun < 0:
            return torch.ones_like(self._exponent)
        share = min(1.0, begun / config.epsilon_decay_steps)
        base = config.epsilon_start + share * (config.epsilon_final - config.epsilon_start)
        epsilon = torch.full_like(self._exponent, base) ** self._exponent
        return epsilon.clamp(min=config.epsilon_min)


class Stopwatch:
    """Adds up how long the host spends in each part of the loop."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Count the time since the last call as that of this part."""
        now = time.perf_counter()
        self._seconds[name] += now - self._last
        self._last = now

    def milliseconds(self, rounds: int) -> dict[str, float]:
        """Mean time of each part per round of the loop, as `time/NAME`; resets the sums."""
        means = {f"time/{k}": 1e3 * v / max(1, rounds) for k, v in self._seconds.items()}
        self._seconds.clear()
        return means
