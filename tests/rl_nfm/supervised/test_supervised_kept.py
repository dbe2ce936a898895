"""Kept results of supervised tasks: real runs, reported from what was kept of them."""

import json
import shutil

import pytest

from rl_nfm.supervised.cli import main

OPTIONS = {
    "model": "lstm", "epochs": 1, "updates-per-epoch": 2, "hidden-size": 4, "batch-size": 2,
    "train-steps": 4, "test-steps": 5, "test-examples": 4,
}  # fmt: skip
TINY = ["adding", *(word for name, value in OPTIONS.items() for word in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep's folder with two seeds, as `rl-nfm sweep` leaves it."""
    root = tmp_path_factory.mktemp("sweep")
    for seed in "01":
        run = root / "adding" / "lstm" / f"seed-{seed}"
        assert main([*TINY, "--seed", seed, "--out", str(run)]) == 0
        log = f"# code at {seed}abc\nrun\n# code at def\n"
        run.with_name(run.name + ".log").write_text(log)
    return root


def report(tmp_path, *words):
    out = tmp_path / "report"
    assert main(["report", *map(str, words), "--out", str(out)]) == 0
    content = json.loads((out / "report.json").read_text())
    return content["supervised"], (out / "curves_adding.png").read_bytes()


def test_a_report_of_what_is_kept_is_the_same(sweep, tmp_path, capsys):
    kept = tmp_path / "kept"
    before = report(tmp_path, sweep, "--keep", kept)
    assert f"kept in {kept}: 2 more runs" in capsys.readouterr().out
    assert report(tmp_path, kept) == before
    files = sorted(str(file.relative_to(kept)) for file in kept.rglob("*") if file.is_file())
    one = ["config.json", "result.json", "trial0/metrics.jsonl"]
    assert files == [f"adding/lstm/seed-{seed}/{name}" for seed in "01" for name in one]
    text = (kept / "adding/lstm/seed-1/result.json").read_text()
    assert str(sweep) not in text
    assert json.loads(text)["code"] == ["1abc", "def"]


def test_what_is_kept_is_left_alone_and_another_setting_refused(sweep, tmp_path, capsys):
    kept = tmp_path / "kept"
    report(tmp_path, sweep, "--keep", kept)
    file = kept / "adding/lstm/seed-0/result.json"
    before = file.stat().st_mtime_ns
    (kept / "adding/lstm/seed-1/result.json").unlink()  # as if a writer had been killed
    report(tmp_path, sweep, "--keep", kept)
    assert "1 more runs" in capsys.readouterr().out
    assert file.stat().st_mtime_ns == before
    content = json.loads(file.read_text())
    content["config"]["hidden_size"] = 5
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"keep: .*seed-0 was made with another hidden_size"):
        report(tmp_path, sweep, "--keep", kept)


def test_two_runs_of_one_name_are_refused_and_neither_is_kept(sweep, tmp_path):
    runs = []
    for number in "01":
        runs.append(tmp_path / number / "run")
        shutil.copytree(sweep / "adding/lstm" / f"seed-{number}", runs[-1])
    with pytest.raises(ValueError, match=r"keep: .*0/run and .*1/run would be .*kept/run"):
        report(tmp_path, *runs, "--keep", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    report(tmp_path, runs[0], "--keep", tmp_path / "kept")
    assert (tmp_path / "kept/run/result.json").is_file()
