"""Statistics over seeds and games against hand-worked numbers and naive twins."""

import functools
import itertools

import numpy as np
import pytest
import scipy.stats

from agents.reporting import statistics
from agents.reporting.statistics import (
    bootstrap_interval,
    improvement_interval,
    interquartile_mean,
    mean_of_means,
    median_of_means,
    nested_interval,
    performance_profile,
    probability_of_improvement,
)


def arrays(*games):
    return [np.array(game, np.float64) for game in games]


@pytest.mark.parametrize(
    ("games", "expected"),
    [
        ([[0, 1, 2, 3, 4, 5, 6, 100]], 3.5),  # two cut off each end: (2 + 3 + 4 + 5) / 4
        ([[100, 1], [4, 2, 3]], 3.0),  # pooled 1 2 3 4 100, one cut off each end: (2 + 3 + 4) / 3
        ([[1, 2], [9]], 4.0),  # floor(3 / 4) = 0: the mean
        ([[7]], 7.0),
    ],
)
def test_interquartile_mean_by_hand(games, expected):
    assert interquartile_mean(arrays(*games)) == pytest.approx(expected)


def test_mean_and_median_over_games_by_hand():
    games = arrays([0, 2], [10], [1, 2, 3, 6])  # means 1, 10, 3
    assert mean_of_means(games) == pytest.approx(14 / 3)
    assert median_of_means(games) == pytest.approx(3)


def test_profile_by_hand():
    games = arrays([0.1, 0.5], [1.0, 0.5, 0.2, 2.0])
    # above 0.5: none of 2 and 2 of 4, mean 1/4 (equal is not above); above 0.15: 1/2 and 1
    shares = performance_profile(games, np.array([0.0, 0.15, 0.5, 2.0]))
    assert shares == pytest.approx([1.0, 0.75, 0.25, 0.0])


def test_probability_of_improvement_by_hand():
    first, second = arrays([1, 3], [5]), arrays([2, 3], [0])
    # game 1: 1<2, 1<3, 3>2, 3=3: (0 + 0 + 1 + 0.5) / 4 = 0.375; game 2: 1; mean 0.6875
    assert probability_of_improvement(first, second) == pytest.approx(0.6875)
    assert probability_of_improvement(second, first) == pytest.approx(1 - 0.6875)


@pytest.mark.parametrize("seed", range(5))
def test_leading_axes_are_kept(seed):
    """On batches of resamples each statistic equals itself on every single one."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, size=3)
    batch = [rng.integers(0, 4, size=(7, n)).astype(float) for n in sizes]
    for statistic in (
        interquartile_mean,
        mean_of_means,
        median_of_means,
        lambda s: performance_profile(s, np.array([0.5, 1.0, 2.5])),
        lambda s: probability_of_improvement(s[:2], s[1:]),
    ):
        whole = statistic(batch)
        for row in range(7):
            assert whole[row] == pytest.approx(statistic([scores[row] for scores in batch]))


def test_bootstrap_of_two_scores_by_hand():
    """Resamples of (0, 1) have the means 0, 1/2, 1 with the probabilities 1/4, 1/2, 1/4."""
    low, high = bootstrap_interval(mean_of_means, arrays([0, 1]))
    assert (low, high) == (0, 1)
    low, high = bootstrap_interval(mean_of_means, arrays([0, 1]), level=0.4)  # 30 % on either side
    assert (low, high) == (0.5, 0.5)


def test_bootstrap_equals_the_enumeration_of_all_resamples():
    games = arrays([0, 3, 4], [10, 20])
    every = [
        interquartile_mean(arrays(a, b))
        for a in itertools.product(games[0], repeat=3)
        for b in itertools.product(games[1], repeat=2)
    ]
    expected = np.percentile(every, [2.5, 97.5], method="inverted_cdf")
    low, high = bootstrap_interval(interquartile_mean, games, resamples=50_000)
    assert (low, high) == pytest.approx(tuple(expected))


def test_seeds_are_resampled_within_their_game():
    """Equal seeds on very different games: nothing varies, unless games are mixed."""
    low, high = bootstrap_interval(mean_of_means, arrays([0, 0], [100, 100]))
    assert (low, high) == (50, 50)


def test_interval_of_a_mean_is_near_the_normal_one():
    scores = np.random.default_rng(3).normal(size=200)
    half = 1.96 * scores.std() / np.sqrt(200)
    low, high = bootstrap_interval(mean_of_means, [scores], resamples=20_000)
    assert low == pytest.approx(scores.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(scores.mean() + half, abs=0.1 * half)


def test_large_bootstraps_are_drawn_in_parts(monkeypatch):
    monkeypatch.setattr(statistics, "_CHUNK_SCORES", 7)  # two resamples of three scores at a time
    sizes = []

    def counted(strata):
        sizes.append(len(strata[0]))
        return mean_of_means(strata)

    low, high = bootstrap_interval(counted, arrays([0, 0, 3]), resamples=501)
    assert (sum(sizes), max(sizes)) == (501, 2)
    assert (low, high) == (0, 3)  # each with probability 8/27 and 1/27


def test_improvement_interval():
    assert improvement_interval(arrays([5, 6]), arrays([1, 2])) == (1, 1)
    low, high = improvement_interval(arrays([0, 1]), arrays([0, 1]))
    assert (low, high) == (0, 1)


@pytest.mark.parametrize("games", [[], [[1.0]], [[1.0, 2.0], [3.0]]])
def test_nothing_to_resample_is_refused(games):
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap_interval(mean_of_means, arrays(*games))


def test_nested_interval_of_runs_without_spread_by_hand():
    # the mean of two runs drawn is 0, 5 or 10 with probabilities 1/4, 1/2, 1/4
    assert nested_interval(arrays([0, 0, 0], [10, 10])) == (0, 10)
    assert nested_interval(arrays([3], [3, 3])) == (3, 3)


def test_nested_interval_of_one_run_is_scipys():
    scores = np.random.default_rng(3).exponential(100, 40)
    low, high = nested_interval([scores], resamples=20_000)
    theirs = scipy.stats.bootstrap(
        [scores], np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(4)
    ).confidence_interval
    assert (low, high) == pytest.approx(theirs, abs=1.0)


def test_nested_interval_has_the_width_of_the_two_level_variance():
    """The spread of the runs' means and the mean spread within a run's mean add up."""
    rng = np.random.default_rng(5)
    runs = [rng.normal(center, 20, 25) for center in rng.normal(0, 10, 40)]
    between = np.var([run.mean() for run in runs])
    within = np.mean([run.var() / len(run) for run in runs])
    low, high = nested_interval(runs, resamples=20_000)
    sigma = np.sqrt((between + within) / len(runs))
    assert (high - low) == pytest.approx(2 * 1.96 * sigma, rel=0.03)
    over_runs = bootstrap_interval(mean_of_means, [np.array([run.mean() for run in runs])])
    assert low < over_runs[0] < over_runs[1] < high


@pytest.mark.parametrize(
    "interval", [nested_interval, functools.partial(bootstrap_interval, mean_of_means)]
)
def test_an_interval_is_drawn_from_its_seed(interval):
    scores = list(np.random.default_rng(0).normal(size=(2, 7)))
    first, again, other = (interval(scores, resamples=50, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("runs", [[], [[1.0]], [[1.0, 2.0], []]])
def test_nested_interval_needs_something_to_resample(runs):
    with pytest.raises(ValueError, match=r"runs: .* are needed"):
        nested_interval(arrays(*runs))
