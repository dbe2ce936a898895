"""Steps the environments of a run, in groups that take turns.

While one group plays, actions for another are chosen, so that neither the emulators nor the actor
waits for the other one. The order of all work is fixed, whichever group is ready first: results do
not depend on timing, and the replay gets whole rows, as with one group.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agents.config import EnvConfig
from agents.training.clock import Stopwatch
from agents.training.collector import Collector
from envs import GameVecEnv

ENVS_PER_GROUP = 16
"""That two groups have at least, unless asked for: with fewer, each leaves cores idle."""


def num_groups(config: EnvConfig, device: torch.device) -> int:
    """How many groups a run has.

    Raises:
        ValueError: as many groups as asked for would not be of one size.
    """
    count = config.num_groups
    if count == 0:
        several = device.type == "cuda" and config.num_envs >= 2 * ENVS_PER_GROUP
        count = 2 if several and config.num_envs % 2 == 0 else 1
    if config.num_envs % count:
        raise ValueError(
            f"env.num_groups: {count} is not allowed, must divide the number of environments "
            f"({config.num_envs})"
        )
    return count


class Turns:
    """All environments of a run with what acts in them; a round is one step of each."""

    def __init__(self, envs: Sequence[GameVecEnv], collector: Collector, watch: Stopwatch):
        """Keep them.

        Args:
            envs: the groups, of equal size.
            collector: acts in them, by group, and fills the replay.
            watch: counts the time of each part.
        """
        self.envs, self.collector, self.watch = list(envs), collector, watch
        self._under_way = False

    def begin(self, *, seed: int, epsilon: Tensor) -> None:
        """New episodes everywhere; environment i of all gets `seed + i`."""
        for group, env in enumerate(self.envs):
            obs, info = env.reset(seed=seed + group * env.num_envs)
            self.collector.begin(group, obs, info, epsilon=epsilon)

    def send(self) -> None:
        """Begin a round, unless the last one has begun it."""
        if not self._under_way:
            for group in range(len(self.envs)):
                self._send(group)
        self._under_way = True

    def receive(self, *, epsilon: Tensor, ahead: bool) -> list[dict[str, Any]]:
        """Complete the round.

        Args:
            epsilon: of the next actions, float [E].
            ahead: with several groups, begin the next round with each as soon as it has completed
                this one; the caller may then not read what acting changes until that is received.

        Returns:
            The `info` of each group.
        """
        self._under_way = ahead and len(self.envs) > 1
        infos = []
        for group, env in enumerate(self.envs):
            obs, reward, terminated, _, info = env.recv()
            self.watch.lap("recv")
            self.collector.receive(group, obs, reward, terminated, info, epsilon=epsilon)
            infos.append(info)
            self.watch.lap("add")
            if self._under_way:
                self._send(group)
        return infos

    def drop(self) -> None:
        """Forget a round that has begun: when the run ends before it is complete."""
        if self._under_way:
            for env in self.envs:
                env.recv()
        self._under_way = False

    def close(self) -> None:
        """Free the environments."""
        for env in self.envs:
            env.close()

    def _send(self, group: int) -> None:
        self.envs[group].send(self.collector.act(group))
        self.watch.lap("act")
