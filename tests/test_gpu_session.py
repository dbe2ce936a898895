"""The script for a GPU: its limits, its table, and a rehearsal of its stages on a CPU."""

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "gpu_session.py"


@pytest.fixture
def session(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("gpu_session", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_call_takes_less_than_four_minutes(session):
    assert session.CALL_SECONDS < 240
    for stages in session.CALLS.values():
        assert all(limit < session.CALL_SECONDS for limit in stages.values())


def test_every_goal_is_measured_by_a_stage(session):
    assert {session.stage_of(name) for name in session.GOALS} <= set(session.all_stages())


def test_every_stage_has_a_function(session, tmp_path):
    for name in session.all_stages():
        assert callable(session.stage_function(name, tmp_path))
    with pytest.raises(ValueError, match="unknown"):
        session.stage_function("nonsense", tmp_path)


def test_the_tests_for_a_gpu_are_found(session):
    """Also those that say so by a fixture alone."""
    basics = importlib.import_module("gpu_stages.basics")
    names = {Path(path).name for path in basics.gpu_test_files()}
    kernels = {"test_linear.py", "test_triton_attention.py", "test_rims_triton.py", "test_norms.py"}
    assert kernels | {"test_gpu.py"} <= names
    assert "test_counting.py" not in names


def test_the_table_compares_with_the_goals(session, capsys):
    results = [
        {"stage": "speed:rim", "run_steps_s": 9000.0},
        {"stage": "speed:rim", "smaller_of_parts_steps_s": 10_000.0},
        {"stage": "nfm", "batch": 256, "nfm_over_backbone": 1.2},
        {"stage": "syncs", "case": "rim", "passed": False, "problem": "a copy waits"},
    ]
    session.print_table(results, ["speed:rim", "nfm", "syncs"])
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["speed:rim run_steps_s"].endswith("NO")
    assert lines["speed:rim run_over_parts"].split()[-2:] == ["0.90", "yes"]
    assert lines["nfm:256 nfm_over_backbone"].endswith("yes")
    assert lines["nfm:256 memory_over_backbone"].endswith("not measured")
    assert not any(name.startswith("speed:r2d2") for name in lines)  # nobody asked for it
    assert any("a copy waits" in line for line in lines.values())


def test_what_a_call_did_not_reach_is_said(session, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", "nfm", "rims", "--seconds", "2"])
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--rehearse", "--out", str(tmp_path)])
    assert session.main() == 1
    out = capsys.readouterr().out
    assert "== rims: not run: out of time" in out
    assert out.endswith("not reached, for a further call: nfm rims\n")
    assert not list(tmp_path.iterdir())


def test_an_unknown_stage_is_refused(session, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", "nonsense", "--out", str(tmp_path / "x")])
    with pytest.raises(SystemExit) as ended:
        session.main()
    assert ended.value.code == 2
    assert "stage: 'nonsense' is unknown (allowed: a, b, c, ceilings" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_stage_that_hangs_is_stopped_and_keeps_what_it_wrote(session, tmp_path, monkeypatch):
    fake = tmp_path / "fake.py"
    fake.write_text(
        "import pathlib, sys, time\n"
        "sys.stdout.buffer.write(b'\\xff not text')\n"
        f"out = pathlib.Path({str(tmp_path)!r}, 'ceilings.jsonl')\n"
        "out.write_text('{\"stage\": 1}\\n{half')\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(session, "__file__", str(fake))
    ended = list(session.supervise({"ceilings": 1.5}, 60, tmp_path, dict(os.environ)))
    assert ended == [("ceilings", "stopped after 2 s")]
    assert session.read_results("ceilings", tmp_path) == [{"stage": 1}]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_that_there_is_no_gpu(session, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", "--out", str(tmp_path)])
    assert session.main() == 0
    assert "no CUDA device" in capsys.readouterr().out


def test_a_stage_that_cannot_be_started_does_not_end_the_others(session, tmp_path, monkeypatch):
    fake = tmp_path / "fake.py"
    fake.write_text("")
    monkeypatch.setattr(session, "__file__", str(fake))
    (tmp_path / "nfm.log").mkdir()
    ended = dict(session.supervise({"nfm": 60.0, "rims": 60.0}, 60, tmp_path, dict(os.environ)))
    assert ended["nfm"].startswith("not run: [Errno")
    assert ended["rims"].startswith("exit 0")


def test_an_interrupted_call_leaves_no_stage_behind(session, tmp_path, monkeypatch):
    fake = tmp_path / "fake.py"
    fake.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(session, "__file__", str(fake))
    processes = []
    start = session.start
    monkeypatch.setattr(session, "start", lambda *a: processes.append(start(*a)) or processes[-1])
    limits = {"nfm": 0.2, "rims": 60.0, "graph": 60.0}
    ended = session.supervise(limits, 60, tmp_path, dict(os.environ), jobs=2)
    assert next(ended) == ("nfm", "stopped after 0 s")
    assert [stage.process.poll() for stage in processes] == [-signal.SIGKILL, None]
    ended.close()
    assert processes[-1].process.poll() == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_stage_at_work_in_one_line(tmp_path, number):
    command = [sys.executable, str(SCRIPT), "--rehearse", "learning", "--out", str(tmp_path)]
    call = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # ignored in the background
    )
    children = Path(f"/proc/{call.pid}/task/{call.pid}/children")
    while not (started := (tmp_path / "learning.log").exists() and children.read_text().split()):
        assert call.poll() is None
        time.sleep(0.05)
    call.send_signal(number)
    assert (call.wait(30), call.communicate()[1]) == (1, "gpu_session: interrupted\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int(started[0]), 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.longest
@pytest.mark.timeout(600)
def test_every_stage_runs_on_a_cpu(session, tmp_path):
    command = [sys.executable, str(SCRIPT), "--rehearse", *session.CALLS, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in session.all_stages():
        rows = session.read_results(stage, tmp_path)
        assert rows
        assert {row["stage"] for row in rows} == {stage}
        assert all(row.get("passed", True) for row in rows)
        assert f"== {stage}: exit 0 (" in done.stdout
