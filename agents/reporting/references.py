"""Public learning curves to compare with: Dopamine's IQN and its compact Rainbow.

That has C51, three steps and prioritised replay, and none of Rainbow's other parts.

Source: google/dopamine (Apache License 2.0, Copyright The Dopamine Authors), commit 5873f549,
`baselines/atari/data/*_CNN.json` and `*_Impala.json`; `dopamine.csv` is made from them by
`scripts/dopamine_references.py` (five seeds; no Defender, no Surround). An iteration is 250,000
agent steps (1 million frames); its value is the mean return of the training episodes that ended in
it. Protocol: sticky actions 0.25, minimal action set, lost lives do not end the return; the curves
are drawn beside runs of that protocol only.
"""

import csv
import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs import PROTOCOLS

PATH = Path(__file__).with_name("dopamine.csv")
AGENTS = {"IQN": "IQN", "Rainbow": "compact Rainbow"}
"""The source's name of an agent to that in figures."""
NETWORKS = {"nature": "CNN", "impala": "Impala"}
"""Our name of a network to that in the names of the source's files."""
ITERATIONS = (0, 1, 2, 3, 4, 6, 9, 14, 24, 49, 99, 198)
"""Those of the source's 200 that are kept; in the last one some seeds are missing there."""
ITERATION_STEPS = 250_000
_SAME = ("repeat_action_probability", "full_action_space", "terminal_on_life_loss", "frameskip")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """One agent's curve on one game."""

    name: str
    steps: NDArray[np.int64]
    """Agent steps at the end of each iteration [I]."""
    returns: NDArray[np.float64]
    """Mean training return of each seed in each iteration [S, I]."""


def references(game: str, protocol: Mapping[str, Any]) -> list[Reference]:
    """The public curves of a game; empty for a protocol other than theirs."""
    theirs = vars(PROTOCOLS["dopamine"])
    if any(protocol.get(field) != theirs[field] for field in _SAME):
        return []
    steps = (np.array(ITERATIONS) + 1) * ITERATION_STEPS
    return [
        Reference(
            name=f"{AGENTS[agent]}, {network} (Dopamine)", steps=steps, returns=np.array(curves)
        )
        for (known, agent, network), curves in _curves().items()
        if known == game
    ]


@cache
def _curves() -> Mapping[tuple[str, str, str], list[list[float]]]:
    """(game, agent, network) to seeds to values."""
    found: dict[tuple[str, str, str], list[list[float]]] = {}
    with PATH.open(newline="", encoding="utf-8") as file:
        for game, agent, network, _seed, *values in list(csv.reader(file))[1:]:
            found.setdefault((game, agent, network), []).append([float(value) for value in values])
    return found
