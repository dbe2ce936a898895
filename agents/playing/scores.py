"""The result of an evaluation: returns and lengths of episodes, and the protocol behind them."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from envs import GameVecEnv, human_normalized_score, protocol_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Returns and lengths (agent steps) of N episodes under one protocol."""

    game: str
    returns: list[float]
    lengths: list[int]
    protocol: dict[str, Any]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def median(self) -> float:
        """Median return."""
        return float(np.median(self.returns))

    @property
    def repeated(self) -> tuple[int, float] | None:
        """The commonest score and how many episodes returned it, if more than half of them did.

        The policy then leads to the same end whatever the game does: a sign that it is stuck.
        """
        score, count = Counter(self.returns).most_common(1)[0]
        return (count, score) if len(self.returns) > 2 and 2 * count > len(self.returns) else None

    @property
    def hns(self) -> float | None:
        """Human-normalised mean return; None where no human score is published."""
        return human_normalized_score(self.game, self.mean)

    def to_plain(self) -> dict[str, Any]:
        """All fields and statistics, as plain values."""
        return {
            "game": self.game,
            "episodes": len(self.returns),
            "returns": self.returns,
            "lengths": self.lengths,
            "mean": self.mean,
            "median": self.median,
            "hns": self.hns,
            "repeated": self.repeated,
            "protocol": self.protocol,
        }


def protocol_block(
    env: GameVecEnv, *, epsilon: float, seed: int, fixed_fractions: bool = False
) -> dict[str, Any]:
    """Everything besides the network that the score depends on."""
    return {
        "env_id": env.full_id,
        **protocol_fields(env.protocol),
        "epsilon": epsilon,
        "fractions": "fixed" if fixed_fractions else "drawn",
        "seed": seed,
        "num_envs": env.num_envs,
        "episodes_counted": "first started",
        **env.versions,
    }
