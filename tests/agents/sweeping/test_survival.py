"""Real processes and real faults: kill -9 of the sweep, of a run, of all; Ctrl-C; two sweeps."""

import contextlib
import os
import pty
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agents.saving.run_folder import read_metrics
from agents.sweeping.folder import held
from agents.sweeping.runs import saved_steps

STEPS, SEEDS = 800, range(3)
REQUEST = f"debug --seeds 0..2 --steps {STEPS} --env.max-num-frames-per-episode 80".split()


def begin(out: Path, log: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "agents.cli", "sweep", *REQUEST, "--out", str(out)]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def folder(out: Path, seed: int) -> Path:
    return out / "ms_pacman/nature" / f"seed-{seed}"


def children(pid: int) -> list[int]:
    """Runs that a sweep has begun, by what Linux says of its threads."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def works_on(pid: int, out: Path, seed: int) -> bool:
    return str(folder(out, seed)).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()


def wait_until(condition, seconds: float = 1500.0) -> None:
    """Long enough for a machine that is busy with twenty other things."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def under_way(out: Path) -> bool:
    """One run is done, another has a checkpoint and is not."""
    steps = [saved_steps(folder(out, seed)) for seed in SEEDS]
    return any(s >= STEPS for s in steps) and any(0 < s < STEPS for s in steps)


def metrics(out: Path, seed: int) -> list[dict]:
    return read_metrics(folder(out, seed) / "metrics.jsonl")


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return True
    return state == "Z"


@pytest.mark.slow
@pytest.mark.timeout(6000)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("victim", ["sweep", "run", "all"])
def test_killed_sweeps_go_on_and_repeat_nothing(victim, tmp_path):
    out, log = tmp_path / "sweep", tmp_path / "log"
    process = begin(out, log)
    try:
        wait_until(lambda: under_way(out))
        before = {seed: metrics(out, seed) for seed in SEEDS}
        saved = {seed: saved_steps(folder(out, seed)) for seed in SEEDS}
        runs = children(process.pid)
        one = [pid for pid in runs if any(works_on(pid, out, s) for s in SEEDS if saved[s] < STEPS)]
        assert one
        for pid in {"sweep": [process.pid], "run": one[:1], "all": [process.pid, *runs]}[victim]:
            os.kill(pid, signal.SIGKILL)
        if victim != "run":
            process.wait()
            wait_until(lambda: all(map(is_gone, runs)), 900)  # runs do not outlive their sweep
            process = begin(out, log)
        assert process.wait(1500) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    for seed in SEEDS:
        lines = metrics(out, seed)
        steps = [line["steps"] for line in lines]
        assert steps == sorted(set(steps))
        assert lines[-1]["steps"] >= STEPS
        assert not list(folder(out, seed).glob("checkpoints/*/replay-*")), "of a run that is done"
        if saved[seed] >= STEPS:
            assert lines == before[seed], "a finished run was touched"
        kept = [line for line in before[seed] if line["steps"] <= saved[seed]]
        assert lines[: len(kept)] == kept, "what was saved was done again"
    if victim == "run":
        assert "failed, goes on from its checkpoint: killed by SIGKILL" in log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(6000)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_control_c_leaves_a_checkpoint_of_each_run(tmp_path):
    out, log = tmp_path / "sweep", tmp_path / "log"
    process = begin(out, log)
    try:
        wait_until(lambda: under_way(out))
        runs = children(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(900) == 128 + signal.SIGINT, log.read_text()
        assert all(map(is_gone, runs))
        for seed in SEEDS:
            lines = metrics(out, seed)
            assert not lines or saved_steps(folder(out, seed)) == lines[-1]["steps"]
        assert "go on: the same command again" in log.read_text()
        process = begin(out, log)
        assert process.wait(1500) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert all(saved_steps(folder(out, seed)) >= STEPS for seed in SEEDS)


def processor_seconds(*arguments: str) -> float:
    """Of a command and all that it starts; steadier than the clock where others are at work."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "agents.cli", *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=3000)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
@pytest.mark.timeout(6000)
def test_a_sweep_takes_little_more_than_its_runs(tmp_path):
    common = ["--steps", "300", "--env.num-threads", "1"]
    sweep = ["sweep", "debug", "--games", "memory_cue", "--seeds", "0..7", *common]
    together = processor_seconds(*sweep, "--out", str(tmp_path / "sweep"))
    train = ["train", "debug", "--game", "memory_cue", *common]
    alone = min(processor_seconds(*train, "--out", str(tmp_path / f"run{i}")) for i in range(3))
    assert together < 1.3 * 8 * alone


LONG = "debug --games memory_cue --seeds 0 1 --steps 1000000 --run.checkpoint-every-steps 100"


@pytest.mark.slow
@pytest.mark.timeout(6000)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of Python 3.12: forks
@pytest.mark.parametrize("terminal", [True, False])
def test_a_second_control_c_ends_everything_at_once(terminal, tmp_path):
    """In a terminal it reaches the sweep alone, although its runs are processes of its own."""
    out, log = tmp_path / "sweep", tmp_path / "log"
    folders = [out / f"memory_cue/nature/seed-{seed}" for seed in range(2)]
    command = [sys.executable, "-m", "agents.cli", "sweep", *LONG.split(), "--out", str(out)]
    if terminal:
        pid, screen = pty.fork()
        if pid == 0:
            os.execv(command[0], command)
        reader = threading.Thread(target=copy_screen, args=(screen, log))
        reader.start()
    else:
        with log.open("wb") as file:
            nothing = subprocess.DEVNULL
            process = subprocess.Popen(command, stdin=nothing, stdout=file, stderr=file)
        pid = process.pid
    try:
        wait_until(lambda: all(saved_steps(path) > 0 for path in folders))
        runs = children(pid)
        assert len(runs) == 2
        for said in ("end with a checkpoint each (once more: at once)", "the runs end at once"):
            if terminal:
                os.write(screen, b"\x03")
            else:
                os.kill(pid, signal.SIGINT)
            wait_until(lambda said=said: said in log.read_text() or is_gone(pid))
        ended = os.waitpid(pid, 0)[1] if terminal else None
        code = process.wait() if ended is None else os.waitstatus_to_exitcode(ended)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        if terminal:
            reader.join()
    assert code == 128 + signal.SIGINT
    assert all(map(is_gone, runs))
    assert "go on: the same command again" in log.read_text()
    assert all(saved_steps(path) > 0 for path in folders), "checkpoints are whole"


def copy_screen(screen: int, log: Path) -> None:
    """What a terminal shows, until its process is gone."""
    with log.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while shown := os.read(screen, 2**16):
            file.write(shown)


def test_a_second_sweep_in_the_same_folder_is_refused(tmp_path):
    with held(tmp_path), pytest.raises(ValueError, match="another sweep is working on"):  # noqa: SIM117
        with held(tmp_path):
            pass
    with held(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"out: .* cannot be made"), held(tmp_path / "file/sweep"):
        pass
