"""Curves of training and evaluation over updates: the mean of each row ± one deviation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.loop.reporting import is_number
from rl_nfm.supervised.report.table import Row
from rl_nfm.support.output_files import written
from rl_nfm.support.plot_style import line_style

MAX_PANELS = 12
_GREYS = ("0.3", "0.6", "0.45", "0.75")


def draw_curves(columns: Columns, rows: Sequence[Row], path: Path) -> bool:
    """Draw a panel for the training loss, the validation and each column of the table.

    Returns:
        Whether there was anything to draw.
    """
    found = dict.fromkeys(
        name for row in rows for run in row.runs for line in run.history for name in line
    )
    names = [name for name in ("train_loss", "validation") if name in found]
    names += [name for name in columns.choose(list(found)) if name not in (*names, *_COUNTS)]
    names = names[:MAX_PANELS]
    if not found:
        return False
    figure, panels = made_panels(len(names))
    for axes, name in zip(panels, names, strict=True):
        for index, row in enumerate(rows):
            _draw(axes, row, name, index, scale=100 if columns.is_share(name) else 1)
        axes.set_title(f"{name} %" if columns.is_share(name) else name, fontsize="medium")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("updates")
    save_figure(figure, path, panels)
    return True


def draw_by_step(columns: Columns, rows: Sequence[Row], path: Path) -> bool:
    """Draw a panel for each test set: the mean of each row at each step, and the baselines.

    Returns:
        Whether there was anything to draw.
    """
    names = list(dict.fromkeys(name for row in rows for run in row.runs for name in run.by_step))
    if not names:
        return False
    figure, panels = made_panels(len(names))
    for axes, name in zip(panels, names, strict=True):
        for index, row in enumerate(rows):
            curves = [run.by_step[name] for run in row.runs if name in run.by_step]
            if curves:
                _draw_mean(axes, range(1, len(curves[0]) + 1), curves, (row.name, index))
        drawn: list[tuple[str, Sequence[float | None]]] = []
        for label, values in (
            line for row in rows for line in row.runs[0].baselines_by_step.get(name, {}).items()
        ):
            if (label, values) not in drawn:  # rows of other data have other baselines
                grey = _GREYS[len(drawn) % len(_GREYS)]
                axes.plot(
                    range(1, len(values) + 1), np.array(values, float), ":", color=grey, label=label
                )
                drawn.append((label, values))
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel(columns.step)
    save_figure(figure, path, panels)
    return True


def made_panels(
    count: int, *, high: float = 3.4, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, three to a line, each so many inches high."""
    wide = min(3, count)
    lines = -(-count // wide)
    figure = Figure(figsize=(4.5 * wide, high * lines + 0.6), layout="constrained")
    panels = [*figure.subplots(lines, wide, squeeze=False, sharey=share_y).flat]
    for axes in panels[count:]:
        axes.remove()
    for axes in panels[:count]:
        axes.grid(alpha=0.3)
    return figure, panels[:count]


def save_figure(figure: Figure, path: Path, panels: Sequence[Axes]) -> None:
    """Write a figure with one legend for all panels, each label once."""
    entries = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if entries:
        place = {"loc": "outside lower center", "ncols": 3, "fontsize": "small"}
        figure.legend(entries.values(), entries.keys(), **place)
    with written(path) as partial:
        figure.savefig(partial, dpi=110)


_COUNTS = ("epoch", "updates")


def _draw(axes: Axes, row: Row, name: str, index: int, scale: float) -> None:
    """Mean and deviation at the updates after which all runs of the row were evaluated."""
    curves = [
        {
            line["updates"]: scale * line[name]
            for line in run.history
            if is_number(line.get(name))  # null where one was not finite
        }
        for run in row.runs
    ]
    updates = sorted(set(curves[0]).intersection(*curves[1:]))
    values = [[curve[x] for x in updates] for curve in curves]
    _draw_mean(axes, updates, values, (row.name, index))


def _draw_mean(
    axes: Axes,
    x: Sequence[float],
    curves: Sequence[Sequence[float | None]],
    label: tuple[str, int],
) -> None:
    """The mean of curves over the same x, and one deviation around it.

    Args:
        axes: where to draw.
        x: of every curve.
        curves: one or more; None where a value was not finite, which leaves a gap.
        label: the name of the line, and the index that decides its colour.
    """
    values, (name, index) = np.array(curves, float), label
    look: dict[str, Any] = line_style(index)
    color = look["color"]
    mean = values.mean(0)
    marker = "o" if len(mean) == 1 else None  # of a single point a line shows nothing
    axes.plot(x, mean, label=name, marker=marker, **look)
    if len(curves) > 1:
        spread = values.std(0, ddof=1)
        if marker:
            axes.errorbar(x, mean, spread, color=color, alpha=0.4)
        axes.fill_between(x, mean - spread, mean + spread, color=color, alpha=0.2, lw=0)
