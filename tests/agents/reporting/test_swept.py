"""Sweeps in reports: the two scores of a run, kept results, half-finished sweeps."""

import dataclasses
import json

import pytest

from agents.commands import report as command
from agents.config import write_config
from agents.presets import read_preset
from agents.reporting import report
from agents.reporting.kept import check_same, is_kept, keep, thinned
from agents.reporting.report import write_report
from agents.reporting.sources import read_results
from agents.reporting.swept import swept_runs


@pytest.fixture(scope="module")
def debug():
    return read_preset("debug")


def write_run(sweep, config, method="nature", *, steps=1000, lines=40, evaluated=range(4, 41, 4)):
    """One of 40 lines of 25 steps; the episode of line i returns i, an evaluation 100 + i."""
    config = dataclasses.replace(config, steps=steps)
    folder = sweep / config.game / method / f"seed-{config.seed}"
    folder.mkdir(parents=True)
    write_config(config, folder / "config.yaml")
    rows = []
    for i in range(1, lines + 1):
        row = {"steps": steps * i // 40, "loss": 0.123456789 * i, "episode_returns": [float(i)]}
        if i in evaluated:
            row["eval_return_mean"] = 100.0 + i
        rows.append(json.dumps(row) + "\n")
    (folder / "metrics.jsonl").write_text("".join(rows))
    return folder


def test_a_run_is_judged_by_its_last_tenth_and_its_last_five_evaluations(debug, tmp_path):
    write_run(tmp_path, debug)
    results, notes = read_results([tmp_path])
    scores = {result.source: result.returns for result in results}
    # The last tenth of 1000 steps are those after 900: lines 37 to 40.
    assert scores == {
        "last_tenth": [37.0, 38.0, 39.0, 40.0],
        "last_evaluations": [124.0, 128.0, 132.0, 136.0, 140.0],
    }
    assert {result.method for result in results} == {"nature"}
    assert not notes


def test_too_few_evaluations_are_no_score(debug, tmp_path):
    write_run(tmp_path, debug, evaluated=(10, 20, 30, 40))
    results, notes = read_results([tmp_path])
    assert [result.source for result in results] == ["last_tenth"]
    assert notes == [f"ms_pacman/nature/seed-{debug.seed}: 4 evaluations, not among those of 5"]


def test_a_run_that_learned_nothing_is_named(debug, tmp_path):
    folder = write_run(tmp_path, debug)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({**line, "updates": 0}) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    _, notes = read_results([tmp_path])
    assert notes == [f"{folder}: no update was made, so nothing was learned"]


def test_a_run_without_an_episode_in_its_last_tenth_is_named(debug, tmp_path):
    folder = write_run(tmp_path, debug)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    late = [json.dumps({**json.loads(line), "episode_returns": []}) for line in lines[36:]]
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:36], *late]) + "\n")
    _, notes = read_results([tmp_path])
    assert notes == [
        f"ms_pacman/nature/seed-{debug.seed}: no episode ended in its last tenth, not in that table"
    ]


def test_two_sweeps_are_put_together_only_if_their_settings_are_the_same(debug, tmp_path):
    other = dataclasses.replace(debug, learner=dataclasses.replace(debug.learner, n_steps=7))
    paths = [tmp_path / name for name in "abcd"]
    seeds = [dataclasses.replace(debug, seed=seed) for seed in (0, 1)]
    write_run(paths[0], seeds[0])
    write_run(paths[1], dataclasses.replace(other, seed=0))
    write_run(paths[2], dataclasses.replace(other, seed=1))
    write_run(paths[3], seeds[1])
    with pytest.raises(ValueError, match=r"one run, made with another learner.n_steps"):
        read_results([paths[0], paths[1]])
    with pytest.raises(ValueError, match=r"learner.n_steps: 7 in .*, but 3 in .*, both nature"):
        read_results([paths[0], paths[2]])
    results, _ = read_results([paths[0], paths[3], paths[0]])
    assert sorted(r.seed for r in results if r.source == "last_tenth") == [0, 1]


def test_sweeps_of_other_lengths_are_not_averaged(debug, tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "long", dataclasses.replace(debug, seed=seed))
    short = write_run(tmp_path / "short", dataclasses.replace(debug, seed=2), steps=800)
    results, notes = read_results([tmp_path / "long", tmp_path / "short"])
    of_short = [note for note in notes if short.name in note]
    why = "left out: at 800 of 800 steps, where others are at 1000"
    for source in ("last_tenth", "last_evaluations"):
        assert sorted(r.seed for r in results if r.source == source) == [0, 1]
        assert any(f"{source} of nature on ms_pacman {why}" in note for note in of_short)


def test_an_error_half_way_does_not_make_the_folder_a_strange_one(debug, tmp_path, monkeypatch):
    write_run(tmp_path / "sweep", debug)
    with monkeypatch.context() as patch:
        patch.setattr(report, "write_page", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_report([tmp_path / "sweep"], tmp_path / "out")
    write_report([tmp_path / "sweep"], tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"no database at all", "half"])
def test_a_damaged_study_is_noted(debug, tmp_path, content):
    optuna = pytest.importorskip("optuna", reason="needs the extra search")
    write_run(tmp_path / "sweep", debug)
    file = tmp_path / "sweep/study.db"
    if content == "half":
        optuna.create_study(study_name="search", storage=f"sqlite:///{file}")
        content = file.read_bytes()[: file.stat().st_size // 2]
    file.write_bytes(content)
    write_report([tmp_path / "sweep"], tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text()
    assert "study.db is damaged" in text


def test_report_of_a_half_finished_sweep(debug, tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "sweep", dataclasses.replace(debug, seed=seed))
    write_run(tmp_path / "sweep", dataclasses.replace(debug, seed=2), lines=13)
    write_run(tmp_path / "sweep", debug, "nfm", lines=20)
    (tmp_path / "sweep/ms_pacman/rim/seed-0").mkdir(parents=True)  # not begun
    write_report([tmp_path / "sweep"], tmp_path / "report")
    tables = json.loads((tmp_path / "report/report.json").read_text())["tables"]
    for source in ("last_tenth", "last_evaluations"):
        assert [(row["method"], row["over"]) for row in tables[source]["scores"]] == [
            ("nature", "2 seeds")
        ]
    results, _ = read_results([tmp_path / "sweep"])
    curves = {(result.method, result.seed) for result in results}
    assert curves == {("nature", 0), ("nature", 1), ("nfm", debug.seed)}
    text = (tmp_path / "report/report.md").read_text()
    assert "ms_pacman/nature/seed-2: at step 325 of 1000, not in the tables yet" in text
    assert f"ms_pacman/nfm/seed-{debug.seed}: at step 500 of 1000" in text
    assert (tmp_path / "report/curves_ms_pacman.png").stat().st_size > 10_000


def test_a_finished_run_that_lost_the_end_of_its_metrics_is_not_judged_by_what_is_left(
    debug, tmp_path
):
    folder = write_run(tmp_path, debug, lines=39)
    (folder / "checkpoints/step_000001000").mkdir(parents=True)
    results, notes = read_results([tmp_path])
    assert [result.returns for result in results] == [[]]
    name = f"ms_pacman/nature/seed-{debug.seed}"
    assert notes == [f"{name}: its metrics end at step 975 of 1000, not in the tables"]


def test_a_finished_run_stands_for_its_unfinished_copy_in_either_order(debug, tmp_path):
    write_run(tmp_path / "sweep", debug)
    keep(tmp_path / "sweep", tmp_path / "kept")
    write_run(tmp_path / "again", debug, lines=10)
    for paths in (["again", "kept"], ["kept", "again"]):
        results, notes = read_results([tmp_path / path for path in paths])
        assert [result.source for result in results] == ["last_tenth", "last_evaluations"]
        assert not notes


def test_a_sweep_whose_runs_are_all_kept_elsewhere_can_be_reported_with_them(debug, tmp_path):
    write_run(tmp_path / "sweep", debug)
    keep(tmp_path / "sweep", tmp_path / "kept")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sweep.yaml").write_text("games: [ms_pacman]")
    results, notes = read_results([tmp_path / "out", tmp_path / "kept"])
    assert len(results) == 2
    assert notes == [f"{tmp_path / 'out'}: a sweep in which no run has begun"]
    with pytest.raises(ValueError, match="nothing to report"):
        write_report([tmp_path / "out"], tmp_path / "report")


def test_report_of_a_sweep_without_a_finished_run_has_its_curves(debug, tmp_path):
    write_run(tmp_path / "sweep", debug, lines=5)
    write_report([tmp_path / "sweep"], tmp_path / "report")
    assert (tmp_path / "report/curves_ms_pacman.png").is_file()
    assert "at step 125 of 1000" in (tmp_path / "report/report.md").read_text()


def test_kept_results_tell_the_same_scores_in_less_space(debug, tmp_path):
    long = write_run(tmp_path / "sweep", debug)
    unfinished = write_run(tmp_path / "sweep", debug, "nfm", lines=39)
    long.with_suffix(".log").write_text(
        "# code at abc\nnoise\n# code at def-dirty\n# code at abc\n"
    )
    assert keep(tmp_path / "sweep", tmp_path / "kept") == [
        tmp_path / "kept/ms_pacman/nature" / long.name
    ]
    assert keep(tmp_path / "sweep", tmp_path / "kept") == []
    assert is_kept(tmp_path / "kept/ms_pacman/nature" / long.name)
    assert not is_kept(tmp_path / "kept/ms_pacman/nfm" / unfinished.name)
    told = json.loads((tmp_path / "kept/ms_pacman/nature" / long.name / "kept.json").read_text())
    assert told["code"] == ["abc", "def-dirty"]

    def scores(folder):
        found, _ = read_results([folder])
        return {r.source: r.returns for r in found if r.method == "nature"}

    assert scores(tmp_path / "kept") == scores(tmp_path / "sweep")
    both, _ = read_results([tmp_path / "sweep", tmp_path / "kept"])
    assert len([r for r in both if r.method == "nature"]) == 2, "the same run counts once"


@pytest.mark.parametrize("count", [1, 3, 7, 40, 99])
@pytest.mark.parametrize("steps", [1000, 970])  # the last line may be beyond the planned steps
def test_thinning_loses_no_episode_no_evaluation_and_no_border(count, steps):
    lines = [
        {"steps": 10 * i, "loss": i / 3, "episode_returns": [float(i)] * (i % 3)}
        | ({"eval_return_mean": float(i)} if i % 29 == 0 else {})
        for i in range(1, 101)
    ]
    thin = thinned(lines, steps, count)
    assert len(thin) <= count + 3 + 2  # three evaluations, the border and the end

    def episodes(some):
        return [r for line in some for r in line["episode_returns"]]

    def late(some):
        return [line for line in some if line["steps"] > 0.9 * steps]

    assert episodes(thin) == episodes(lines)
    assert episodes(late(thin)) == episodes(late(lines))
    assert [x["eval_return_mean"] for x in thin if "eval_return_mean" in x] == [29.0, 58.0, 87.0]
    assert thin[-1]["steps"] == 1000
    assert thin[-1]["loss"] == 33.3333


def test_a_kept_run_of_other_settings_is_refused(debug, tmp_path):
    folder = write_run(tmp_path / "sweep", debug)
    keep(tmp_path / "sweep", tmp_path / "kept")
    kept = tmp_path / "kept/ms_pacman/nature" / folder.name
    same = dataclasses.replace(debug, steps=1000)
    check_same(same, kept)
    check_same(dataclasses.replace(same, device="cpu"), kept)
    for field, other in (
        ("steps", dataclasses.replace(same, steps=2000)),
        (
            "learner.discount",
            dataclasses.replace(same, learner=dataclasses.replace(same.learner, discount=0.5)),
        ),
    ):
        with pytest.raises(ValueError, match=f"another {field}"):
            check_same(other, kept)


@pytest.mark.parametrize("lines", [None, 39])
def test_a_kept_run_that_is_not_whole_is_refused(debug, tmp_path, lines):
    folder = write_run(tmp_path / "sweep", debug)
    keep(tmp_path / "sweep", tmp_path / "kept")
    metrics = tmp_path / "kept/ms_pacman/nature" / folder.name / "metrics.jsonl"
    rows = metrics.read_text().splitlines(keepends=True)
    metrics.unlink()
    if lines is not None:
        metrics.write_text("".join(rows[:lines]))
    with pytest.raises(ValueError, match=r"metrics.jsonl is missing or ends too early"):
        check_same(dataclasses.replace(debug, steps=1000), metrics.parent)


def test_keep_on_the_command_line(debug, tmp_path, capsys):
    write_run(tmp_path / "sweep", debug)
    words = [str(tmp_path / "sweep"), "--out", str(tmp_path / "report")]
    assert command.main([*words, "--keep", str(tmp_path / "kept")]) == 0
    assert "1 more runs" in capsys.readouterr().out
    assert len(swept_runs(tmp_path / "kept")) == 1
    with pytest.raises(ValueError, match="no sweep"):
        keep(tmp_path / "report", tmp_path / "kept")


def test_the_last_tenth_begins_where_episodes_ended_not_where_they_were_logged(tmp_path):
    """One line for each half: by lines, half of the episodes would be of the last tenth."""
    folder = tmp_path / "sweep/ms_pacman/nature/seed-1"
    folder.mkdir(parents=True)
    write_config(read_preset("debug"), folder / "config.yaml")
    lines = [
        {"steps": 150, "episode_returns": [1.0, 2.0], "episode_ends": [70, 140]},
        {"steps": 300, "episode_returns": [3.0, 4.0, 5.0], "episode_ends": [200, 272, 290]},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results, _ = read_results([tmp_path / "sweep"])
    (late,) = (r for r in results if r.source == "last_tenth")
    assert late.returns == [4.0, 5.0]
    assert late.curve.episode_steps.tolist() == [70, 140, 200, 272, 290]
