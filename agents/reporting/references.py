"""Public scores to draw beside runs of the same protocol.

Dopamine's IQN and its compact Rainbow (C51, three steps and prioritised replay, none of Rainbow's
other parts), protocol `dopamine`. Source: google/dopamine (Apache License 2.0, Copyright The
Dopamine Authors), commit 5873f549, `baselines/atari/data/*_CNN.json` and `*_Impala.json`;
`dopamine.csv` is made from them by `scripts/dopamine_references.py` (five seeds; no Defender, no
Surround). An iteration is 250,000 agent steps (1 million frames); its value is the mean return of
the training episodes that ended in it.

Data-efficient agents after 100,000 agent steps (400,000 frames), protocol `atari100k`: mean return
of evaluations at the end, on 26 games. `scripts/atari_100k_references.py` makes `atari_100k.csv`
from two repositories. DER, data-efficient Rainbow (van Hasselt et al. 2019): as the authors of SPR
quote it, mila-iqia/spr (MIT License), commit 0b9dd4e, `src/rlpyt_utils.py`. DrQ with epsilon-greedy
play, and SPR: the 100 runs of each that Agarwal et al. 2021 released, in eloialonso/iris, commit
24326aa, `results/data`; SPR's own paper has other means, of ten runs.
"""

import csv
import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from envs import PROTOCOLS

PATH = Path(__file__).with_name("dopamine.csv")
PATH_100K = Path(__file__).with_name("atari_100k.csv")
AGENTS = {"IQN": "IQN", "Rainbow": "compact Rainbow"}
"""The source's name of an agent to that in figures."""
NETWORKS = {"nature": "CNN", "impala": "Impala"}
"""Our name of a network to that in the names of the source's files."""
ITERATIONS = (0, 1, 2, 3, 4, 6, 9, 14, 24, 49, 99, 198)
"""Those of the source's 200 that are kept; in the last one some seeds are missing there."""
ITERATION_STEPS = 250_000
STEPS_100K = 100_000
_SAME = ("repeat_action_probability", "full_action_space", "terminal_on_life_loss", "frameskip")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """One agent's curve on one game, or its score after one number of steps."""

    name: str
    protocol: Literal["dopamine", "atari100k"]
    """Under which it played, which also names the source."""
    scores: Literal["training", "evaluations"]
    """What the returns are of."""
    runs: int | None
    """How many they are of; None where the source does not say."""
    steps: NDArray[np.int64]
    """Agent steps [I]."""
    returns: NDArray[np.float64]
    """Mean return at each of the steps, of each run or over all runs [S or 1, I]."""


def references(game: str, protocol: Mapping[str, Any]) -> list[Reference]:
    """The public scores of a game; empty for a protocol other than theirs."""
    found = []
    if _is_like(protocol, "dopamine"):
        found += _dopamine(game)
    if _is_like(protocol, "atari100k"):
        found += _atari_100k(game)
    return found


def _is_like(protocol: Mapping[str, Any], name: str) -> bool:
    return all(protocol.get(field) == getattr(PROTOCOLS[name], field) for field in _SAME)


def _dopamine(game: str) -> list[Reference]:
    return [
        Reference(
            name=f"{AGENTS[agent]}, {network} (Dopamine)",
            protocol="dopamine",
            scores="training",
            runs=len(curves),
            steps=(np.array(ITERATIONS) + 1) * ITERATION_STEPS,
            returns=np.array(curves),
        )
        for (known, agent, network), curves in _curves().items()
        if known == game
    ]


def _atari_100k(game: str) -> list[Reference]:
    return [
        Reference(
            name=f"{row['agent']} (Atari 100k)",
            protocol="atari100k",
            scores="evaluations",
            runs=int(row["runs"]) if row["runs"] else None,
            steps=np.array([STEPS_100K]),
            returns=np.array([[float(row["mean"])]]),
        )
        for row in _rows_100k()
        if row["game"] == game
    ]


@cache
def _rows_100k() -> list[dict[str, str]]:
    with PATH_100K.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@cache
def _curves() -> Mapping[tuple[str, str, str], list[list[float]]]:
    """(game, agent, network) to seeds to values."""
    found: dict[tuple[str, str, str], list[list[float]]] = {}
    with PATH.open(newline="", encoding="utf-8") as file:
        for game, agent, network, _seed, *values in list(csv.reader(file))[1:]:
            found.setdefault((game, agent, network), []).append([float(value) for value in values])
    return found
