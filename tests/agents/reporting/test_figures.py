"""Lines and bands of the figures by hand."""

import numpy as np
from matplotlib.figure import Figure

from agents.reporting import figures
from agents.reporting.references import ITERATION_STEPS, references
from envs import PROTOCOLS


def band_of(ax):
    """Corners (x, y) of its only band."""
    (band,) = ax.collections
    return band.get_paths()[0].vertices


def test_the_band_of_a_curve_is_the_interval_of_its_mean():
    ax = Figure().subplots()
    values = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [4.0, 4.0]])
    figures._draw_mean(ax, np.array([0, 1]), values, "nature", figures.looks(["nature"])["nature"])
    heights = band_of(ax)[:, 1]
    # the mean of four drawn is how many of them are 4: none with probability 0.32, at most 2 with
    # 0.949, at most 3 with 0.996
    assert (heights.min(), heights.max()) == (0, 3)


def test_the_band_of_a_profile_is_resampled_within_games(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, _: drawn.append(figure))
    strata = {"nature": [np.zeros(3), np.ones(3)]}
    figures.profiles(tmp_path / "p.png", strata, ["nature"], "title")
    x, y = band_of(drawn[0].axes[0]).T
    # between 0 and 1 all runs of one game are above, none of the other
    assert set(y[(x > 0.1) & (x < 0.9)]) == {0.5}


def test_a_public_score_at_the_last_step_is_a_point_of_its_curve():
    ax = Figure().subplots()
    public = references("ms_pacman", vars(PROTOCOLS["dopamine"]))[:1]
    figures._draw_public(ax, public, 2 * ITERATION_STEPS)
    mean = ax.lines[-1]
    assert list(mean.get_xdata()) == [ITERATION_STEPS, 2 * ITERATION_STEPS]
    assert list(mean.get_ydata()) == public[0].returns[:, :2].mean(0).tolist()
