"""The figures of a report. Matplotlib without pyplot: no display, no global state."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from agents.reporting.methods import protocol_line
from agents.reporting.references import Reference
from agents.reporting.results import Curve, Result
from agents.reporting.statistics import Strata, bootstrap_interval, performance_profile
from agents.reporting.swept import LAST_TENTH
from envs import random_and_human_score
from rl_nfm.support.output_files import written
from rl_nfm.support.plot_style import line_style

_GRID_POINTS = 200
_MIN_BAND = 3
"""Fewer runs are drawn one by one: their spread says little about others."""
_PLACES = ("nfm", "resnet", "nature", "impala", "rim", "resnet_matched", "lstm_matched")
"""Methods that look the same in every report, whatever stands beside them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """How a method is drawn, the same in every figure of a report."""

    color: str
    linestyle: str
    faint: float = 0.2
    """Opacity of bands, and of single runs behind a mean."""


_Draw = Callable[[Axes, Sequence[Curve], str, Look], None]


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """A colour and a line style per method; no two of 21 methods share both."""
    places = itertools.count(len(_PLACES))
    numbers = {m: _PLACES.index(m) if m in _PLACES else next(places) for m in methods}
    faint = min(0.2, 0.6 / max(1, len(methods)))  # of many, those on top would hide the others
    return {method: Look(**line_style(i), faint=faint) for method, i in numbers.items()}


def running_mean(
    curve: Curve, grid: NDArray[np.float64], window_steps: float
) -> NDArray[np.float64]:
    """Mean return of the training episodes that ended in `window_steps` up to each step of `grid`.

    Where none ended, the return of the last one. NaN before the first episode and after the end of
    the run.
    """
    ended = np.searchsorted(curve.episode_steps, grid, side="right")
    sums = np.concatenate([[0.0], np.cumsum(curve.episode_returns)])
    begin = np.searchsorted(curve.episode_steps, grid - window_steps, side="right")
    begin = np.minimum(begin, np.maximum(ended - 1, 0))
    with np.errstate(invalid="ignore"):
        means = (sums[ended] - sums[begin]) / (ended - begin)
    return np.where(grid > curve.steps, np.nan, means)


def common_evaluations(
    curves: Sequence[Curve],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Evaluations of several runs [S, G] at steps [G] that all of them have reached.

    Where a run was not evaluated at a step of another, its value lies on the line between its
    evaluations before and after; there is none before its first one and after its last.
    """
    first = max(curve.eval_steps[0] for curve in curves)
    last = min(curve.eval_steps[-1] for curve in curves)
    grid = np.unique(np.concatenate([curve.eval_steps for curve in curves]))
    grid = grid[(grid >= first) & (grid <= last)]
    values = [np.interp(grid, curve.eval_steps, curve.eval_returns) for curve in curves]
    return grid, np.stack(values)


def learning_curves(
    path: Path,
    game: str,
    results: Sequence[Result],
    methods: Sequence[str],
    public: Sequence[Reference] = (),
) -> None:
    """Draw the training runs on one game: training episodes, and evaluations where there were any.

    Args:
        path: PNG.
        game: its name.
        results: runs on that game, with curves, one of which at least has episodes or evaluations.
        methods: all of the report, for colours and line styles.
        public: scores of others under the same protocol.
    """
    by_method = {m: [r.curve for r in results if r.method == m and r.curve] for m in methods}
    longest = max(r.curve.steps for r in results if r.curve)
    panels: list[tuple[str, str, _Draw]] = []
    if any(len(c.episode_returns) for curves in by_method.values() for c in curves):
        window = LAST_TENTH * longest
        title = f"training: mean of the episodes of the last {window:,.0f} steps"
        panels.append(("training", title, functools.partial(_draw_training, window_steps=window)))
    if any(len(c.eval_steps) for curves in by_method.values() for c in curves):
        epsilon = next(
            (r.protocol["eval_epsilon"] for r in results if "eval_epsilon" in r.protocol), "?"
        )
        title = f"evaluations in training, epsilon {epsilon}"
        panels.append(("evaluations", title, _draw_evaluations))
    figure = Figure(figsize=(6.6 * len(panels), 5.6), layout="constrained")
    palette = looks(methods)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, (scores, title, draw) in zip(axes, panels, strict=True):
        for method, curves in by_method.items():
            draw(ax, curves, method, palette[method])
        same = [reference for reference in public if reference.scores == scores]
        _draw_public(ax, same, longest)
        _finish(ax, title, int(results[0].protocol.get("frameskip", 1)))
    _draw_references(axes, game)
    _legend_below(figure, columns=len(panels))
    text = _wrapped(protocol_line(results), 70 * len(panels))
    figure.suptitle(f"{game}\n{text}", fontsize="medium")
    _save(figure, path)


def _draw_public(ax: Axes, public: Sequence[Reference], steps: int) -> None:
    """Draw public scores up to the last step of the user's runs.

    A score of more steps than that has no place on the axis: it is a level line, and says so.
    """
    for number, curve in enumerate(public):
        what = "published mean" if curve.runs is None else f"mean of {curve.runs} runs"
        shown = curve.steps <= steps
        x, y = curve.steps[shown], curve.returns[:, shown]
        if not shown.any():
            x, y = np.linspace(0, steps, 10), curve.returns[:, :1].repeat(10, 1)
            span = "after" if curve.scores == "evaluations" else "over their first"
            what += f" {span} {curve.steps[0]:,} steps"
        if len(y) > 1:
            what += f" ({y[:, -1].min():,.0f} to {y[:, -1].max():,.0f})"
        look: dict[str, Any] = {"color": "0.5", "linestyle": ":"}
        if shown.sum() > 1:
            ax.plot(x, y.T, linewidth=0.7, alpha=0.3, **look)
        every = 1 if shown.any() else [2 * (number % 4) + 1]  # side by side: lines may be close
        mark: dict[str, Any] = {"marker": "sD^v"[number % 4], "markersize": 5, "markevery": every}
        ax.plot(x, y.mean(0), label=f"{curve.name}: {what}", **mark, **look)


def _legend_below(figure: Figure, columns: int) -> None:
    """One legend for all panels, below them, where it covers nothing."""
    entries = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=columns,
        fontsize="small",
        frameon=False,
    )


def _wrapped(text: str, width: int) -> str:
    """Lines of at most `width` characters, cut at commas."""
    lines = [""]
    for part in text.split(", "):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += f"{part}, "
    return "\n".join(lines).rstrip(", ")


def _finish(ax: Axes, title: str, frameskip: int) -> None:
    """Title and axes of one panel of learning curves."""
    ax.set_title(title, fontsize="medium")
    ax.set_xlabel("agent steps")
    ax.set_ylabel("return")
    ax.set_xlim(left=0)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.grid(alpha=0.3)
    if frameskip > 1:
        scale = frameskip / 1e6
        functions: Any = (lambda steps: steps * scale, lambda frames: frames / scale)
        frames = ax.secondary_xaxis("top", functions=functions)
        frames.set_xlabel("millions of emulator frames", fontsize="small")


def _draw_references(axes: Sequence[Axes], game: str) -> None:
    """Lines for random play and the human tester; one that is out of view is in the legend only."""
    published = random_and_human_score(game)
    if published is None:
        return
    low = min(ax.dataLim.y0 for ax in axes)
    high = max(ax.dataLim.y1 for ax in axes)
    reach = max(high - low, 0.1 * abs(high), 1.0)
    for name, value, style in zip(("random", "human"), published, (":", "--"), strict=True):
        inside = low - reach <= value <= high + reach
        where = "" if inside else f" ({'above' if value > high else 'below'})"
        label = f"{name}, published: {value:,.1f}{where}"
        look: dict[str, Any] = {"color": "0.35", "linestyle": style, "linewidth": 1, "label": label}
        for ax in axes:
            if inside:
                ax.axhline(value, **look)
            else:
                ax.plot([], [], **look)


def _draw_training(
    ax: Axes, curves: Sequence[Curve], method: str, look: Look, *, window_steps: float
) -> None:
    curves = [curve for curve in curves if len(curve.episode_returns)]
    if not curves:
        return
    grid = np.linspace(0, max(curve.steps for curve in curves), _GRID_POINTS)
    values = np.stack([running_mean(curve, grid, window_steps) for curve in curves])
    for row in values:
        _draw_run(ax, grid, row, look, faint=len(curves) >= _MIN_BAND)
    whole = ~np.isnan(values).any(0)
    _draw_mean(ax, grid[whole], values[:, whole], method, look)


def _draw_evaluations(ax: Axes, curves: Sequence[Curve], method: str, look: Look) -> None:
    curves = [curve for curve in curves if len(curve.eval_steps)]
    if not curves:
        return
    for curve in curves:
        faint = len(curves) >= _MIN_BAND
        _draw_run(ax, curve.eval_steps, curve.eval_returns, look, faint=faint, marker="o")
    _draw_mean(ax, *common_evaluations(curves), method, look)


def _draw_run(
    ax: Axes,
    steps: NDArray[np.generic],
    values: NDArray[np.float64],
    look: Look,
    *,
    faint: bool,
    marker: str = "",
) -> None:
    alpha, width = (look.faint, 0.7) if faint else (1.0, 1.4)
    style: dict[str, Any] = {"color": look.color, "linestyle": look.linestyle, "alpha": alpha}
    ax.plot(steps, values, linewidth=width, marker=marker, markersize=3, **style)


def _draw_mean(
    ax: Axes, grid: NDArray[np.generic], values: NDArray[np.float64], method: str, look: Look
) -> None:
    """The mean of runs [S, G] with its band, where there are enough of them; and the legend."""
    count = len(values)
    style: dict[str, Any] = {"color": look.color, "linestyle": look.linestyle}
    if count < _MIN_BAND or not len(grid):
        label = "1 run" if count == 1 else f"{count} runs, each drawn"
        ax.plot([], [], label=f"{method}: {label}", **style)
        return
    label = f"{method}: mean of {count} runs, 95 % bootstrap interval of the mean"
    ax.plot(grid, values.mean(0), linewidth=1.8, label=label, **style)
    low, high = bootstrap_interval(lambda strata: strata[0].mean(1), [values])
    ax.fill_between(grid, low, high, color=look.color, alpha=look.faint, linewidth=0)


def profiles(path: Path, strata: Mapping[str, Strata], methods: Sequence[str], title: str) -> None:
    """Draw performance profiles of human-normalised scores, with bands where seeds allow them.

    Args:
        path: PNG.
        strata: method to scores per game.
        methods: all of the report, for colours and line styles.
        title: says which scores, of how many games.
    """
    palette = looks(methods)
    scores = np.concatenate([s for games in strata.values() for s in games])
    thresholds = np.linspace(min(0.0, scores.min()), scores.max() * 1.02, _GRID_POINTS)
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    ax = figure.subplots()
    for method, games in strata.items():
        share, look = performance_profile(games, thresholds), palette[method]
        band = min(len(s) for s in games) >= _MIN_BAND
        label = f"{method}: {sum(map(len, games))} runs{', 95 % bootstrap band' if band else ''}"
        ax.plot(thresholds, share, color=look.color, linestyle=look.linestyle, label=label)
        if band:
            low, high = bootstrap_interval(lambda s: performance_profile(s, thresholds), games)
            ax.fill_between(thresholds, low, high, color=look.color, alpha=look.faint, linewidth=0)
    ax.set_title(title)
    ax.set_xlabel("human-normalised score (0: random play, 1: human tester)")
    ax.set_ylabel("share of runs above it, mean over games")
    ax.set_ylim(-0.02, 1.02)
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with written(path) as partial:
        figure.savefig(partial, dpi=120)
