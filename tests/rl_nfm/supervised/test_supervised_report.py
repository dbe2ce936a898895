"""The table of supervised runs: who shares a row, the published row beside it, what is refused."""

import csv
import json
from pathlib import Path

import pytest

from rl_nfm.supervised.cli import main
from rl_nfm.supervised.columns import Columns, Published
from rl_nfm.supervised.loop.options import plain
from rl_nfm.supervised.registry import TaskEntry, register_task, task_entry, task_names
from rl_nfm.supervised.report.finished import distinguish, settings_of
from rl_nfm.supervised.tasks.published import TABLE_8


def write_run(folder, seeds, accuracies, *, model="cnn", preset="paper", **options):
    """A finished run of stacked digits as the loop leaves it: two epochs of four updates."""
    config = plain(task_entry("stacked_digits").presets[preset]) | {"model": model} | options
    trials = []
    for index, (seed, accuracy) in enumerate(zip(seeds, accuracies, strict=True)):
        metrics = {f"exact_{count}": accuracy for count in range(1, 6)}
        trials.append(
            {
                "seed": seed,
                "parameters": 1234,
                "epochs": 2,
                "updates": 8,
                "train_seconds": 90.0,
                "metrics": metrics,
            }
        )
        (folder / f"trial{index}").mkdir(parents=True)
        rows = [{"epoch": e, "train_loss": 1 / e, "exact_1": accuracy / 3 * e} for e in (1, 2)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"trial{index}" / "metrics.jsonl").write_text(lines)
    content = {"task": "stacked_digits", "config": config, "trials": trials, "mean": {}}
    (folder / "config.json").write_text(json.dumps({"task": "stacked_digits", "config": config}))
    (folder / "result.json").write_text(json.dumps(content))
    return str(folder)


def report(tmp_path, *paths):
    out = tmp_path / "report"
    assert main(["report", *paths, "--out", str(out)]) == 0
    return (out / "report.md").read_text(), json.loads((out / "report.json").read_text())


def test_a_row_is_mean_and_deviation_beside_what_was_published(tmp_path, capsys):
    one = write_run(tmp_path / "a", [0, 1], [0.5, 0.7])
    two = write_run(tmp_path / "b", [2], [0.9])
    nfm = write_run(tmp_path / "c", [0], [0.25], model="nfm")
    text, content = report(tmp_path, one, two, nfm)
    assert text in capsys.readouterr().out
    # mean (50 + 70 + 90) / 3 = 70; squared deviations 400 + 0 + 400, / 2 = 400, root 20
    cells = " | ".join(["70.00 ± 20.00"] * 5)
    assert f"| cnn | 1,234 | 0, 1, 2 | {cells} | 1.5 |" in text
    assert "| nfm | 1,234 | 0 | 25.00 |" in text
    beside = "99.27 | 76.70 | 87.83 | 62.57 | 24.27"
    assert f"| *cnn, published: Lamb et al. 2021, table 5* |  |  | {beside} |" in text
    rows = content["supervised"]["stacked_digits"]["rows"]
    assert [row["seeds"] for row in rows] == [[0, 1, 2], [0]]
    assert rows[0]["mean"]["exact_1"] == pytest.approx(0.7)
    assert rows[0]["deviation"]["exact_1"] == pytest.approx(0.2)
    assert rows[1]["deviation"] == {}
    assert "Not at the published setting" not in text
    picture = (tmp_path / "report/curves_stacked_digits.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    with (tmp_path / "report/runs.csv").open() as file:
        table = [*csv.DictReader(file)]
    assert [(row["model"], row["seed"], row["exact_5"]) for row in table] == [
        ("cnn", "0", "0.5"),
        ("cnn", "1", "0.7"),
        ("cnn", "2", "0.9"),
        ("nfm", "0", "0.25"),
    ]


def test_other_settings_are_other_rows_and_no_published_row_stands_where_it_does_not_belong(
    tmp_path,
):
    paths = [
        write_run(tmp_path / "a", [0], [0.5]),
        write_run(tmp_path / "b", [0], [0.6], data="digits", width=8),
        write_run(tmp_path / "c", [1], [0.7], data="digits", width=8, device="cuda"),
    ]
    text, content = report(tmp_path, *paths)
    rows = content["supervised"]["stacked_digits"]["rows"]
    assert [row["name"] for row in rows] == [
        "cnn (data=mnist, width=32)",
        "cnn (data=digits, width=8)",
    ]
    assert [row["seeds"] for row in rows] == [[0], [0, 1]], "a device makes no other setting"
    assert rows[0]["published"]["source"] == "Lamb et al. 2021, table 5"
    assert rows[1]["published"] is None
    assert "* cnn (data=digits, width=8): data digits (mnist), width 8 (32)" in text


@pytest.mark.parametrize(("option", "value"), [("passes", 3), ("top_k_mode", "dense")])
def test_published_rows_of_nfm_are_for_two_passes_and_sparse_attention(tmp_path, option, value):
    nfm = plain(task_entry("stacked_digits").presets["paper"])["nfm"]
    other = write_run(tmp_path / "b", [0], [0.5], model="nfm", nfm={**nfm, option: value})
    _, content = report(tmp_path, write_run(tmp_path / "a", [0], [0.5], model="nfm"), other)
    rows = content["supervised"]["stacked_digits"]["rows"]
    assert [row["published"] is None for row in rows] == [False, True]


def test_what_the_row_beside_it_is_published_for_is_no_difference(tmp_path):
    options = {"data": "mnist", "train_counts": [1, 5]}
    run = write_run(tmp_path / "a", [0], [0.5], **options, width=8)
    text, _ = report(tmp_path, run)
    assert "| 99.22 | 74.69 | 57.11 | 75.90 | 68.87 |" in text
    assert "width 8 (32)" in text
    assert "train_counts" not in text
    text, _ = report(tmp_path, write_run(tmp_path / "b", [0], [0.5], train_counts=[1, 4]))
    assert "train_counts [1, 4] ([1, 3])" in text


def test_options_that_a_model_does_not_read_are_no_difference(tmp_path):
    """The preset `small` has another form of NFM than `paper`, which the cnn does not read."""
    other = plain(task_entry("stacked_digits").presets["small"])["nfm"]
    text, _ = report(tmp_path, write_run(tmp_path / "a", [0], [0.5], nfm=other))
    assert "Not at the published setting" not in text


def test_runs_of_earlier_versions_are_read_under_todays_names(tmp_path):
    paths = [write_run(tmp_path / name, [seed], [0.5]) for seed, name in enumerate("ab")]
    file = tmp_path / "b" / "result.json"
    content = json.loads(file.read_text())
    config = content["config"]
    del config["validation_frames"]  # an option that is newer: its default
    config["eval_every"] = config.pop("eval_every_epochs")
    config["clip_norm"], config["precision"] = 0, "float32"
    del config["max_grad_norm"]
    file.write_text(json.dumps(content))
    rows = report(tmp_path, *paths)[1]["supervised"]["stacked_digits"]["rows"]
    assert [row["seeds"] for row in rows] == [[0, 1]]


def test_names_say_what_differs_unless_it_is_too_much():
    notes = []
    settings = [{"a": 1, "b": [1, 3], "c": 0}, {"a": 1, "b": [1, 5], "c": 0}, {"a": 2, "b": 7}]
    assert distinguish(["x", "x", "y"], settings, notes) == ["x (b=1 3)", "x (b=1 5)", "y"]
    wide = [dict.fromkeys("abcd", 0), dict.fromkeys("abcd", 1)]
    assert distinguish(["x", "x"], wide, notes) == ["x #1", "x #2"]
    assert notes == ["x #1: a=0, b=0, c=0, d=0", "x #2: a=1, b=1, c=1, d=1"]


def test_runs_prolonged_under_other_step_sizes_have_a_row_of_their_own(tmp_path):
    one, two = (write_run(tmp_path / name, [seed], [0.5]) for name, seed in (("a", 0), ("b", 1)))
    file = tmp_path / "b" / "result.json"
    content = json.loads(file.read_text())
    content["trials"][0]["learning_rates"] = [[0, 0.1], [2, 0.05]]
    file.write_text(json.dumps(content))
    _, report_content = report(tmp_path, one, two)
    rows = report_content["supervised"]["stacked_digits"]["rows"]
    assert [row["seeds"] for row in rows] == [[0], [1]]


def test_runs_on_the_same_data_in_other_places_share_a_row_that_names_no_path(tmp_path):
    paths = [
        write_run(tmp_path / str(seed), [seed], [0.5], data="mnist", data_folder=folder)
        for seed, folder in enumerate(["/here/fashion", "there/fashion/", "/here/digits"])
    ]
    text, content = report(tmp_path, *paths)
    rows = content["supervised"]["stacked_digits"]["rows"]
    assert [(row["name"], row["seeds"]) for row in rows] == [
        ("cnn (data_folder=fashion)", [0, 1]),
        ("cnn (data_folder=digits)", [2]),
    ]
    assert "here/" not in text


def test_each_kind_of_data_has_its_own_baseline(tmp_path):
    paths = []
    for seed, (train, chance) in enumerate([(60, 0.25), (60, 0.25), (90, 0.5)]):
        paths.append(write_run(tmp_path / str(seed), [seed], [0.75], train_frames=train))
        file = tmp_path / str(seed) / "result.json"
        content = json.loads(file.read_text()) | {"baselines": {"exact_1": chance}}
        file.write_text(json.dumps(content))
    text, _ = report(tmp_path, *paths)
    empty = " | ".join(["-"] * 4)
    label = "*baseline: nothing learned, for cnn (train_frames={})*"
    assert f"| {label.format(60)} |  |  | 25.00 | {empty} |  |" in text
    assert f"| {label.format(90)} |  |  | 50.00 | {empty} |  |" in text
    assert text.count("nothing learned") == 2
    text, _ = report(tmp_path, *paths[:2])
    assert f"| *baseline: nothing learned* |  |  | 25.00 | {empty} |  |" in text


def test_the_same_seed_twice_and_nothing_finished_are_refused(tmp_path):
    one, two = (write_run(tmp_path / name, [3], [0.5]) for name in "ab")
    with pytest.raises(ValueError, match=r"seed: 3 twice with equal settings: .*a/.* and .*b/"):
        report(tmp_path, one, two)
    assert report(tmp_path, one, one)[1]["supervised"]["stacked_digits"]["rows"][0]["seeds"] == [3]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no supervised run in .*empty$"):
        report(tmp_path, str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"nothing to report: .*nowhere does not exist"):
        report(tmp_path, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="path: at least one run is needed"):
        main(["report"])


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"task": "x"}', '{"task": "adding", "config": {}, "trials": [{}]}']
)
def test_damaged_results_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ValueError, match=r"result\.json: damaged, or no result") as told:
        report(tmp_path, str(tmp_path / "result.json"))
    assert "\n" not in str(told.value)
    assert not (tmp_path / "report").exists()


def test_a_folder_of_other_things_is_not_written_to(tmp_path):
    run = write_run(tmp_path / "a", [0], [0.5])
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="not empty and holds no report"):
        report(tmp_path, run)
    (tmp_path / "report" / "thesis.tex").unlink()
    report(tmp_path, run)
    report(tmp_path, run)  # an earlier report is replaced


def test_a_report_that_an_error_ended_can_be_written_again(tmp_path, monkeypatch):
    run = write_run(tmp_path / "a", [0], [0.5])
    with monkeypatch.context() as broken:
        broken.setattr("rl_nfm.supervised.report.command._section", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            report(tmp_path, run)
    assert any((tmp_path / "report").glob("*.png"))
    report(tmp_path, run)


def test_a_run_of_a_model_that_is_gone_is_left_out_with_a_note(tmp_path):
    run = write_run(tmp_path / "a", [0], [0.5])
    gone = write_run(tmp_path / "b", [0], [0.5], model="patches", patches={"stride": 2})
    text, content = report(tmp_path, run, gone)
    assert len(content["supervised"]["stacked_digits"]["rows"]) == 1
    (note,) = content["notes"]
    assert "left out" in note
    assert "model: 'patches' is unknown" in note
    assert "needs that package installed" in note
    assert note in text
    for command in (["evaluate", gone], ["stacked_digits", "--resume", gone]):
        with pytest.raises(ValueError, match=r"'patches' is unknown .* needs that package"):
            main(command)


def test_losses_by_step_that_were_not_finite_leave_gaps(tmp_path):
    run = tmp_path / "a"
    write_run(run, [0, 1], [0.5, 0.7])
    result = json.loads((run / "result.json").read_text())
    for trial, curve in zip(result["trials"], ([1.0, None, 2.0], [None] * 3), strict=True):
        trial["by_step"] = {"test": curve}
    (run / "result.json").write_text(json.dumps(result))
    report(tmp_path, str(run))
    assert (tmp_path / "report/steps_stacked_digits.png").is_file()


def test_a_sweep_of_which_a_run_is_not_finished(tmp_path):
    sweep = tmp_path / "sweep"
    write_run(sweep / "stacked_digits/cnn/seed-0", [0], [0.5])
    write_run(sweep / "stacked_digits/cnn/seed-1", [1], [0.7])
    (sweep / "stacked_digits/cnn/seed-1/result.json").unlink()
    text, _ = report(tmp_path, str(sweep))
    assert "seed-1 is not finished" in text
    (sweep / "stacked_digits/cnn/seed-2.log").write_text("cannot begin")  # it left nothing else
    assert "seed-2 is not finished" in report(tmp_path, str(sweep))[0]


def test_a_metric_that_was_not_finite_leaves_a_gap_in_its_curve(tmp_path):
    run = write_run(tmp_path / "a", [0], [0.5])
    rows = [{"epoch": 1, "exact_1": None}, {"epoch": 2, "exact_1": 0.5}]
    (tmp_path / "a/trial0/metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    report(tmp_path, run)
    assert any((tmp_path / "report").glob("*.png"))


def test_a_picture_has_a_panel_for_each_figure_and_no_empty_one(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    real = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (drawn.append(f), real(f, *a, **k)))
    file = tmp_path / "a/trial0/metrics.jsonl"
    run = write_run(tmp_path / "a", [0], [0.5])
    rows = [{"epoch": e, "train_loss": 1 / e, "validation": e / 9, "exact_1": 0.5} for e in (1, 2)]
    rows = [row | {"exact_2": 0.25} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report(tmp_path, run)
    (_, figure) = drawn
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["train_loss", "validation %", "exact_1 %", "exact_2 %"]
    (line,) = figure.axes[2].lines
    assert (line.get_xdata(), line.get_ydata()) == (pytest.approx([4, 8]), pytest.approx([50, 50]))
    file.write_text(json.dumps(rows[0]) + "\n")  # of a single point a line shows nothing
    report(tmp_path, run)
    assert {line.get_marker() for axes in drawn[3].axes for line in axes.lines} == {"o"}


def test_table_8_stands_beside_its_twelve_settings_alone():
    columns = task_entry("classification").columns
    rows = {
        tuple(row.setting[f"nfm.{name}"] for name in ("heads", "top_k", "key_size", "value_size"))
        for row in columns.published
        if row.source.endswith("table 8")
    }
    assert rows == set(TABLE_8)
    assert TABLE_8[2, 4, 8, 32] == 80.77


@pytest.mark.parametrize("name", [n for n in task_names() if task_entry(n).columns.published])
def test_published_rows_name_options_and_figures_that_the_task_has(name):
    entry = task_entry(name)
    options = settings_of(plain(entry.presets["paper"]))
    for row in entry.columns.published:
        assert entry.columns.choose(list(row.mean)) == list(row.mean)
        assert set(row.deviation) <= set(row.mean)
        for option, value in row.setting.items():
            assert type(value) is type(options[option])
    for model in {row.setting["model"] for row in entry.columns.published}:
        entry.parse(["--model", model])


def test_columns_without_a_match_show_everything():
    assert Columns(shown=("b*", "a")).choose(["a", "b2", "b1", "c"]) == ["b2", "b1", "a"]
    assert Columns(shown=("z",)).choose(["a", "b"]) == ["a", "b"]
    assert not Columns(percent=("acc*",)).is_share("loss")
    assert Published(source="x", setting={}, mean={}).deviation == {}


def test_a_table_of_its_own_is_a_task_s_to_write(tmp_path, monkeypatch):
    entry = task_entry("adding")
    name = "adding_with_a_table"
    monkeypatch.setattr("rl_nfm.supervised.registry._TASKS", {})
    own = TaskEntry(
        name=name,
        summary="",
        main=entry.main,
        parse=entry.parse,
        presets={},
        write_table=lambda folder, results: f"{len(results)} in {folder.name}",
    )
    register_task(own)
    result = {"task": name, "config": {}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    text, content = report(tmp_path, str(tmp_path / "result.json"))
    assert "1 in report" in text
    assert content["supervised"][name] == {"results": [result]}


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("trials", []),
        ("seed", [1]),
        ("seed", "zero"),
        ("seed", 1.5),
        ("metrics", {"exact_1": 10**400}),
        ("baselines", 5),
        ("baselines", {"exact_1": "x"}),
        ("by_step", 5),
        ("by_step", {"a": ["x"]}),
        ("parameters", "many"),
        ("baselines_by_step", {"a": 5}),
    ],
)
def test_a_result_of_other_kinds_of_values_is_refused_by_its_name(tmp_path, change, value):
    file = Path(write_run(tmp_path / "a", [0], [0.5])) / "result.json"
    content = json.loads(file.read_text())
    place = content if change in ("trials", "baselines", "baselines_by_step") else None
    (content["trials"][0] if place is None else place)[change] = value
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"result\.json: damaged, or no result of a supervised"):
        report(tmp_path, str(tmp_path / "a"))
    assert not (tmp_path / "report").exists()


def test_a_folder_of_runs_is_reported_and_one_of_agents_told_apart(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"run{seed}", [seed], [0.5])
    rows = report(tmp_path, str(tmp_path / "runs"))[1]["supervised"]["stacked_digits"]["rows"]
    assert [row["seeds"] for row in rows] == [[0, 1]]
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "config.yaml").touch()
    with pytest.raises(ValueError, match=r"no supervised run in .*; rl-nfm report takes agents"):
        report(tmp_path, str(tmp_path / "agent"))
