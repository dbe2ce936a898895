"""A picture of the table: every seed as a point, the mean of each row with its interval."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.report.curves import MAX_PANELS, made_panels, save_figure
from rl_nfm.supervised.report.intervals import row_interval, seed_values
from rl_nfm.supervised.report.table import Row, shown_metrics
from rl_nfm.support.plot_style import COLORS


def draw_seeds(columns: Columns, rows: Sequence[Row], path: Path) -> bool:
    """Draw a panel for each column of the table, with a line for each row.

    Returns:
        Whether there was anything to draw.
    """
    names = shown_metrics(columns, rows)[:MAX_PANELS]
    if not names:
        return False
    figure, panels = made_panels(len(names), high=1.4 + 0.32 * len(rows), share_y=True)
    for axes, name in zip(panels, names, strict=True):
        _draw(axes, columns, rows, name)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)  # from above, as in the table
    panels[0].set_yticks(range(len(rows)), [row.name for row in rows])
    save_figure(figure, path, panels)
    return True


def _draw(axes: Axes, columns: Columns, rows: Sequence[Row], name: str) -> None:
    scale = 100 if columns.is_share(name) else 1
    for place, row in enumerate(rows):
        values = [scale * value for value in seed_values(row, name)]
        color = COLORS[place % len(COLORS)]
        axes.plot(values, [place] * len(values), "o", ms=4, mfc="none", color=color)
        if (found := row_interval(row, name)) is not None:
            mean, ends = scale * found.mean, [scale * (found.mean - found.low)]
            axes.errorbar(mean, place, xerr=ends, fmt="|", ms=12, capsize=3, color=color)
        if row.published is not None and name in row.published.mean:
            look = {"ls": "none", "ms": 5, "mfc": "none", "color": "0.4", "label": "published"}
            axes.plot(scale * row.published.mean[name], place, marker="D", **look)
    low, high = axes.get_xlim()
    for x in {scale * row.runs[0].baselines.get(name, math.nan) for row in rows}:
        if low <= x <= high:  # far from all rows it would hide how they differ
            axes.axvline(x, color="0.4", ls=":", label="nothing learned")
    axes.set_title(f"{name} %" if scale == 100 else name, fontsize="medium")
