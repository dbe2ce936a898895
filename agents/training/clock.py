"""When things are due, and where the time goes."""

import time
from collections import defaultdict

import torch
from torch import Tensor

from agents.config import ExplorationConfig


class Clock:
    """Tells what is due: each name once in every so many agent steps.

    Knows no past: a count is due where a multiple of its interval was passed, so that a resumed run
    needs nothing but its steps, and a run with other intervals goes on with those.
    """

    def __init__(self, **every_steps: int):
        self._every_steps = every_steps

    def due(self, before: int, now: int) -> frozenset[str]:
        """The names whose multiple lies after `before` and not after `now`, in agent steps."""
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
        """After so many agent steps, float [E] on the host."""
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
        """What has passed since the last call belongs to this part."""
        now = time.perf_counter()
        self._seconds[name] += now - self._last
        self._last = now

    def milliseconds(self, rounds: int) -> dict[str, float]:
        """Mean of each part per round of the loop, as `time/NAME`; begins anew."""
        means = {f"time/{k}": 1e3 * v / max(1, rounds) for k, v in self._seconds.items()}
        self._seconds.clear()
        return means
