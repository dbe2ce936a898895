"""Curves of training and evaluation over updates: the mean of each row ± one deviation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.report.table import Row
from rl_nfm.support.output_files import written

_MAX_PANELS = 6
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")


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
    names = names[:_MAX_PANELS]
    if not found:
        return False
    wide = min(3, len(names))
    figure = Figure(figsize=(4.5 * wide, 3.4 * -(-len(names) // wide) + 0.6), layout="constrained")
    panels = [*figure.subplots(-(-len(names) // wide), wide, squeeze=False).flat]
    for axes, name in zip(panels, names, strict=False):
        for index, row in enumerate(rows):
            _draw(axes, row, name, index, scale=100 if columns.is_share(name) else 1)
        axes.set_title(f"{name} %" if columns.is_share(name) else name, fontsize="medium")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("updates")
        axes.grid(alpha=0.3)
    for axes in panels[len(names) :]:
        axes.remove()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    with written(path) as partial:
        figure.savefig(partial, dpi=110)
    return True


_COUNTS = ("epoch", "updates")


def _draw(axes: Axes, row: Row, name: str, index: int, scale: float) -> None:
    """Mean and deviation at the updates after which all runs of the row were evaluated."""
    curves = [
        {line["updates"]: scale * line[name] for line in run.history if name in line}
        for run in row.runs
    ]
    updates = sorted(set(curves[0]).intersection(*curves[1:]))
    values = np.array([[curve[x] for x in updates] for curve in curves])
    mean = values.mean(0) if updates else []
    color, style = _COLORS[index % len(_COLORS)], _STYLES[index % len(_STYLES)]
    axes.plot(updates, mean, style, color=color, label=row.name)
    if len(curves) > 1 and updates:
        spread = values.std(0, ddof=1)
        axes.fill_between(updates, mean - spread, mean + spread, color=color, alpha=0.2, lw=0)
