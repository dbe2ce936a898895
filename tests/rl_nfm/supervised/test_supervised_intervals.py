"""Intervals over seeds and differences between rows, against scipy's own tests."""

import json

import numpy as np
import pytest
import scipy.stats
from matplotlib.figure import Figure

from rl_nfm.supervised.cli import main
from rl_nfm.supervised.loop.options import plain
from rl_nfm.supervised.registry import task_entry
from rl_nfm.supervised.report.intervals import difference, interval


def write_run(folder, model, values, **options):
    """A finished run of stacked digits with `exact_1` by seed."""
    config = plain(task_entry("stacked_digits").presets["small"]) | {"model": model} | options
    trials = [
        {"seed": seed, "metrics": {"exact_1": value, "exact_2": value / 2}}
        for seed, value in values.items()
    ]
    folder.mkdir(parents=True)
    content = {"task": "stacked_digits", "config": config, "baselines": {"exact_1": 0.1}}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "result.json").write_text(json.dumps(content | {"trials": trials}))
    return str(folder)


def report(tmp_path, *paths, against=()):
    out = tmp_path / "report"
    assert main(["report", *paths, "--out", str(out), *against]) == 0
    content = json.loads((out / "report.json").read_text())["supervised"]["stacked_digits"]
    return (out / "report.md").read_text(), content


@pytest.mark.parametrize("count", [2, 3, 10])
def test_an_interval_is_that_of_student(count):
    values = np.random.default_rng(count).normal(0.7, 0.1, count)
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = interval([*values])
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), low, high))


def test_an_interval_by_hand():
    """Of 1, 2 and 3: mean 2, deviation 1, 4.3027 (two degrees of freedom) times 1 / root 3."""
    found = interval([1, 2, 3])
    assert (found.low, found.high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert interval([1]) is None


def test_differences_are_those_of_welch(tmp_path):
    rng = np.random.default_rng(0)
    cnn = {seed: 0.5 + 0.2 * rng.random() for seed in (3, 0, 1, 2)}
    nfm = {seed: 0.9 + 0.05 * rng.random() for seed in (0, 1, 7)}
    paths = [write_run(tmp_path / "a", "cnn", cnn), write_run(tmp_path / "b", "nfm", nfm)]
    text, content = report(tmp_path, *paths)
    (line,) = content["differences"]
    oracle = scipy.stats.ttest_ind([*nfm.values()], [*cnn.values()], equal_var=False)
    low, high = oracle.confidence_interval(0.95)
    found = line["difference"]["exact_1"]
    assert (line["row"], line["from"]) == ("nfm", "cnn")
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert found["mean"] == pytest.approx(np.mean([*nfm.values()]) - np.mean([*cnn.values()]))
    assert low > 0
    shown = f"**{100 * found['mean']:+.2f}** [{100 * low:+.2f}, {100 * high:+.2f}]"
    assert f"| nfm − cnn | {shown} |" in text
    low, high = scipy.stats.ttest_1samp([*cnn.values()], 0).confidence_interval(0.95)
    alone = content["rows"][0]["interval"]["exact_1"]
    assert (alone["low"], alone["high"]) == pytest.approx((low, high))


def test_a_difference_by_hand():
    """Of 1, 2, 3 from 11, 12, 13: deviations 1, so four degrees of freedom and t = 2.7764."""
    found = difference([11, 12, 13], [1, 2, 3])
    half = 2.776445 * (2 / 3) ** 0.5
    assert (found.mean, found.low, found.high) == pytest.approx((10, 10 - half, 10 + half))
    assert difference([1, 1], [0, 0]) is None  # an interval of no width would say too much
    assert difference([1], [0, 1]) is None


def test_a_difference_that_may_be_none_is_not_bold_and_one_of_a_single_seed_not_there(tmp_path):
    paths = [
        write_run(tmp_path / "a", "cnn", {0: 0.5, 1: 0.6}),
        write_run(tmp_path / "b", "nfm", {0: 0.6, 1: 0.5}),
        write_run(tmp_path / "c", "cnn_matched", {1: 0.9}),
    ]
    text, content = report(tmp_path, *paths)
    assert [line["row"] for line in content["differences"]] == ["nfm"]
    assert "| nfm − cnn | +0.00 [" in text
    assert "**" not in text
    text, _ = report(tmp_path, paths[0])
    assert "Differences" not in text


def test_a_row_is_compared_with_the_row_of_the_model_that_has_its_settings(tmp_path):
    seeds = {0: 0.5, 1: 0.6}
    paths = [
        write_run(tmp_path / f"{model}{width}", model, seeds, width=width)
        for model in ("nfm", "cnn")
        for width in (8, 12)
    ]

    def pairs(*against):
        _, content = report(tmp_path, *paths, against=against)
        return [(line["row"], line["from"]) for line in content["differences"]]

    assert pairs("--against", "cnn") == [(f"nfm (width={w})", f"cnn (width={w})") for w in (8, 12)]
    assert pairs() == [(f"cnn (width={w})", f"nfm (width={w})") for w in (8, 12)]
    other = "cnn (width=12)"
    rows = ("nfm (width=8)", "nfm (width=12)", "cnn (width=8)")
    assert pairs("--against", other) == [(row, other) for row in rows]


def test_against_a_row_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
    run = write_run(tmp_path / "a", "cnn", {0: 0.5, 1: 0.6})
    with pytest.raises(ValueError, match=r"against: 'rn' is no row or model \(allowed: cnn\)"):
        main(["report", run, "--out", str(tmp_path / "report"), "--against", "rn"])
    assert not (tmp_path / "report").exists()


def test_the_picture_shows_every_seed_and_the_baseline_only_where_rows_are_near(
    tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda f, path, **_: (drawn.append(f), path.touch()))
    paths = [
        write_run(tmp_path / "a", "cnn", {0: 0.5, 1: 0.6}),
        write_run(tmp_path / "b", "nfm", {0: 0.7}),
    ]
    report(tmp_path, *paths)
    (figure,) = drawn
    axes = figure.axes[0]
    assert axes.get_title() == "exact_1 %"
    points = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
    assert points == [pytest.approx([50, 60]), pytest.approx([70])]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["cnn", "nfm"]
    (bar,) = axes.containers
    low, high = scipy.stats.ttest_1samp([50, 60], 0).confidence_interval(0.95)
    (ends,) = bar.lines[2][0].get_segments()
    assert ends[:, 0] == pytest.approx([low, high])
    assert axes.get_legend_handles_labels()[1] == ["nothing learned"]  # 10 %: within the interval
    write_run(tmp_path / "c", "nfm", {0: 0.7, 1: 0.701})
    report(tmp_path, str(tmp_path / "c"))
    assert drawn[1].axes[0].get_legend_handles_labels()[1] == []


def test_rows_of_one_model_are_compared_with_the_first_and_what_has_none_is_noted(tmp_path):
    seeds = {0: 0.5, 1: 0.6}
    paths = [write_run(tmp_path / f"{w}", "nfm", seeds, width=w) for w in (8, 12)]
    _, content = report(tmp_path, *paths)
    (line,) = content["differences"]
    assert (line["row"], line["from"]) == ("nfm (width=12)", "nfm (width=8)")
    text, content = report(tmp_path, *paths, against=("--against", "nfm"))
    assert not content["differences"]
    assert "* stacked_digits: nothing to compare with nfm" in text
