"""The figures of a report. Matplotlib without pyplot: no display, no global state."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from agents.reporting.sources import TRAINING_EPISODES, Curve, Result
from agents.reporting.statistics import Strata, bootstrap_interval, performance_profile
from rl_nfm.support.output_files import written

_GRID_POINTS = 200


def running_mean(
    curve: Curve, grid: NDArray[np.float64], window: int = TRAINING_EPISODES
) -> NDArray[np.float64]:
    """Mean return of the last `window` training episodes that had ended at each step of `grid`.

    NaN before the first episode and after the end of the run.
    """
    ended = np.searchsorted(curve.episode_steps, grid, side="right")
    sums = np.concatenate([[0.0], np.cumsum(curve.episode_returns)])
    begin = np.maximum(ended - window, 0)
    with np.errstate(invalid="ignore"):
        means = (sums[ended] - sums[begin]) / (ended - begin)
    return np.where(grid > curve.steps, np.nan, means)


def colors(methods: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """One colour per method, the same in every figure of a report."""
    table = matplotlib.colormaps["tab10"]
    return {method: table(index % 10) for index, method in enumerate(methods)}


def learning_curves(
    path: Path, game: str, results: Sequence[Result], methods: Sequence[str]
) -> None:
    """Draw the training runs on one game: training episodes, and evaluations where there were any.

    Args:
        path: PNG.
        game: its name.
        results: runs on that game, with curves.
        methods: all of the report, for the colours.
    """
    evaluated = any(len(r.curve.eval_steps) for r in results if r.curve)
    figure = Figure(figsize=(12 if evaluated else 6.4, 4.4), layout="constrained")
    axes = figure.subplots(1, 2 if evaluated else 1, squeeze=False)[0]
    palette = colors(methods)
    for method in methods:
        curves = [r.curve for r in results if r.method == method and r.curve]
        if curves:
            _draw_training(axes[0], curves, method, palette[method])
            if evaluated:
                _draw_evaluations(axes[1], curves, method, palette[method])
    axes[0].set_title(f"training: mean of the last {TRAINING_EPISODES} episodes")
    if evaluated:
        axes[1].set_title("evaluation in training")
    for ax in axes:
        ax.set_xlabel("agent steps")
        ax.set_ylabel("return")
        ax.grid(alpha=0.3)
        if ax.has_data():
            ax.legend(fontsize="small")
    figure.suptitle(game)
    _save(figure, path)


def _draw_training(
    ax: Axes, curves: Sequence[Curve], method: str, color: tuple[float, ...]
) -> None:
    curves = [curve for curve in curves if len(curve.episode_returns)]
    if curves:
        grid = np.linspace(0, max(curve.steps for curve in curves), _GRID_POINTS)
        _draw_band(ax, grid, np.stack([running_mean(c, grid) for c in curves]), method, color)


def _draw_evaluations(
    ax: Axes, curves: Sequence[Curve], method: str, color: tuple[float, ...]
) -> None:
    """At the steps at which any of the seeds was evaluated."""
    curves = [curve for curve in curves if len(curve.eval_steps)]
    if curves:
        grid = np.unique(np.concatenate([curve.eval_steps for curve in curves]))
        values = np.full((len(curves), len(grid)), np.nan)
        for row, curve in zip(values, curves, strict=True):
            row[np.searchsorted(grid, curve.eval_steps)] = curve.eval_returns
        _draw_band(ax, grid, values, method, color, marker="o", markersize=3)


def _draw_band(
    ax: Axes,
    grid: NDArray[np.generic],
    values: NDArray[np.float64],
    method: str,
    color: tuple[float, ...],
    **style: object,
) -> None:
    """The mean over seeds with its 95 % bootstrap band, where all seeds [S, G] have a value.

    One seed has no band: its line is that of one run.
    """
    count = len(values)
    label = f"{method} (one run)" if count == 1 else f"{method} ({count} seeds, 95 % band)"
    if count > 1:
        ax.plot(grid, values.T, color=color, alpha=0.25, linewidth=0.8)
    whole = ~np.isnan(values).any(0)
    ax.plot(grid[whole], values[:, whole].mean(0), color=color, label=label, **style)  # pyright: ignore[reportArgumentType]
    if count > 1 and whole.any():
        low, high = bootstrap_interval(lambda strata: strata[0].mean(1), [values[:, whole]])
        ax.fill_between(grid[whole], low, high, color=color, alpha=0.2, linewidth=0)


def profiles(path: Path, strata: Mapping[str, Strata], methods: Sequence[str], title: str) -> None:
    """Draw performance profiles of human-normalised scores, with bands where seeds allow them.

    Args:
        path: PNG.
        strata: method to scores per game.
        methods: all of the report, for the colours.
        title: says which scores, of how many games.
    """
    palette = colors(methods)
    scores = np.concatenate([s for games in strata.values() for s in games])
    thresholds = np.linspace(min(0.0, scores.min()), scores.max() * 1.02, _GRID_POINTS)
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    ax = figure.subplots()
    for method, games in strata.items():
        share = performance_profile(games, thresholds)
        ax.plot(thresholds, share, color=palette[method], label=method)
        if min(len(s) for s in games) > 1:
            low, high = bootstrap_interval(lambda s: performance_profile(s, thresholds), games)
            ax.fill_between(thresholds, low, high, color=palette[method], alpha=0.2, linewidth=0)
    ax.set_title(title)
    ax.set_xlabel("human-normalised score")
    ax.set_ylabel("share of runs above it, mean over games")
    ax.set_ylim(-0.02, 1.02)
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with written(path) as partial:
        figure.savefig(partial, dpi=120)
