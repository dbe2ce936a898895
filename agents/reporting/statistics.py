"""Statistics over seeds and games: interquartile mean, stratified bootstrap, profiles, comparison.

Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(aggregates: section 4.3; performance profiles: 4.2, equation 2; stratified bootstrap: 4.1;
probability of improvement: 4.3). Written from the definitions. Differences: games may have unequal
numbers of seeds, and a bootstrap that would have nothing to resample is refused instead of giving
an interval of width zero.

A `Strata` holds one array of scores per game, its last axis over seeds. Leading axes (of the
bootstrap) are kept by every statistic.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Strata = Sequence[NDArray[np.float64]]
Statistic = Callable[[Strata], NDArray[np.float64]]

AGGREGATE_RESAMPLES = 50_000
"""For aggregates over games, as published."""
RESAMPLES = 2_000
"""For curves, profiles, comparisons and episodes of one run, as published for comparisons."""
_CHUNK_SCORES = 2**21
"""Scores drawn at a time: bounds the memory of a bootstrap at about 16 MB."""


def interquartile_mean(strata: Strata) -> NDArray[np.float64]:
    """Mean of what is left of all scores, pooled, without the lowest and the highest quarter.

    A quarter of n scores is floor(n / 4), as in `scipy.stats.trim_mean` and the paper's library:
    below four scores it is the mean.
    """
    pooled = np.sort(np.concatenate(strata, axis=-1), axis=-1)
    cut = pooled.shape[-1] // 4
    return pooled[..., cut : pooled.shape[-1] - cut].mean(-1)


def mean_of_means(strata: Strata) -> NDArray[np.float64]:
    """Mean over games of the mean over seeds."""
    return _game_means(strata).mean(0)


def median_of_means(strata: Strata) -> NDArray[np.float64]:
    """Median over games of the mean over seeds, as the median of human-normalised scores is."""
    return np.median(_game_means(strata), axis=0)


def _game_means(strata: Strata) -> NDArray[np.float64]:
    return np.stack([scores.mean(-1) for scores in strata])


def performance_profile(strata: Strata, thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of runs that score above each threshold, mean over games: [..., thresholds]."""
    shares = [(scores[..., None] > thresholds).mean(-2) for scores in strata]
    return np.mean(shares, axis=0)


def probability_of_improvement(first: Strata, second: Strata) -> NDArray[np.float64]:
    """Probability that a run of `first` beats one of `second` on the same game, mean over games.

    Args:
        first: one array per game.
        second: the same games in the same order.
    """
    shares = []
    for x, y in zip(first, second, strict=True):
        difference = x[..., :, None] - y[..., None, :]
        shares.append(((difference > 0) + 0.5 * (difference == 0)).mean((-2, -1)))
    return np.mean(shares, axis=0)


def improvement_interval(
    first: Strata, second: Strata, *, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % interval of `probability_of_improvement`, both resampled within each game."""
    split = len(first)
    low, high = bootstrap_interval(
        lambda strata: probability_of_improvement(strata[:split], strata[split:]),
        [*first, *second],
        resamples=resamples,
    )
    return float(low), float(high)


def bootstrap_interval(
    statistic: Statistic,
    strata: Strata,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile interval of a statistic; scores are resampled within each stratum.

    Args:
        statistic: one of the above.
        strata: one array [seeds] per game (or a single one of episodes).
        resamples: bootstrap samples.
        level: probability that the interval holds.
        seed: of the resampling, so that a report comes out the same again.

    Returns:
        Lower and upper bound, each of the statistic's shape.

    Raises:
        ValueError: a stratum with fewer than two scores: its spread is unknown, not zero.
    """
    sizes = [len(scores) for scores in strata]
    if not sizes or min(sizes) < 2:
        raise ValueError(f"strata: {sizes} scores, at least 2 in each are needed")
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_SCORES // sum(sizes))
    values = []
    for done in range(0, resamples, chunk):
        count = min(chunk, resamples - done)
        drawn = [
            scores[generator.integers(len(scores), size=(count, len(scores)))] for scores in strata
        ]
        values.append(statistic(drawn))
    low, high = np.percentile(np.concatenate(values), _tails(level), axis=0)
    return low, high


def nested_interval(
    runs: Strata, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over runs of the mean in each, by a two-level bootstrap.

    Runs are resampled and, in every run drawn, its scores: the spread of runs and that of the
    episodes of each count (Davison and Hinkley 1997, "Bootstrap Methods and their Application",
    section 3.8, strategy 2). Of a single run it is the interval over its scores.

    Args:
        runs: one array [episodes] per run, of any lengths.
        resamples: bootstrap samples.
        level: probability that the interval holds.
        seed: of the resampling, so that a report comes out the same again.

    Raises:
        ValueError: no run, a run without scores, or one run with one score.
    """
    sizes = [len(scores) for scores in runs]
    if not sizes or min(sizes) < 1 or sizes == [1]:
        raise ValueError(f"runs: {sizes} scores, two runs or two scores are needed")
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(runs), size=(resamples, len(runs)))
    means = np.empty(drawn.shape)
    for run, scores in enumerate(runs):
        places = drawn == run
        draws = generator.integers(len(scores), size=(int(places.sum()), len(scores)))
        means[places] = scores[draws].mean(1)
    low, high = np.percentile(means.mean(1), _tails(level))
    return float(low), float(high)


def _tails(level: float) -> list[float]:
    """Percentiles outside which an interval of that level leaves equal shares."""
    tail = 50 * (1 - level)
    return [tail, 100 - tail]
