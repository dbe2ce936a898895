"""A replay that does not fit is told before it is allocated, and so is memory that runs out."""

import resource
import subprocess
import sys

import pytest
import torch

from agents import cli
from agents.training.memory_check import check_memory, explained_out_of_memory
from rl_nfm.support import memory

CPU = torch.device("cpu")


def test_a_replay_larger_than_the_machine_is_refused_before_it_is_allocated(tmp_path, capsys):
    flags = ["--replay.capacity-steps", "1000000000000", "--out", str(tmp_path / "run")]
    assert cli.main(["train", "debug", *flags]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "replay.capacity_steps: needs 7" in err  # 10^12 frames of 84 x 84 and a few bytes
    assert "GB are free; lower --replay.capacity-steps" in err
    assert not (tmp_path / "run").exists()


def test_a_real_failure_to_allocate_says_what_takes_the_memory():
    reason = r"^device: out of memory on cpu: the replay takes 7\.1 GB, [0-9.]+ GB are free; lower"
    with pytest.raises(ValueError, match=reason), explained_out_of_memory(7_100_000_000, CPU):
        torch.empty(2**60, dtype=torch.uint8)


def test_networks_that_do_not_fit_are_told(tmp_path, capsys):
    flags = ["--head.hidden-size", "2000000000", "--out", str(tmp_path / "run")]
    assert cli.main(["train", "debug", *flags]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "out of memory on cpu" in err
    assert err.rstrip().endswith("or the sizes of the networks")
    assert not (tmp_path / "run").exists()


def fail(*args: object, **options: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("part", ["trainer.Collector", "train.initialize"])
def test_what_comes_after_the_replay_is_told_with_it(part, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(f"agents.training.{part}", fail)
    flags = ["--replay.capacity-steps", "10000", "--out", str(tmp_path / "run")]
    assert cli.main(["train", "debug", *flags]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "out of memory on cpu: the replay takes 0.1 GB, " in err
    assert "lower --replay.capacity-steps, --replay.batch-size" in err


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_errors_of_the_device_and_of_python_are_told_alike(error):
    with pytest.raises(ValueError, match="out of memory"), explained_out_of_memory(1, CPU):
        raise error


def test_a_replay_that_is_elsewhere_is_not_blamed():
    reason = r"cpu: [0-9.]+ GB are free; lower --replay.batch-size, --env.num-envs or the sizes"
    for needed in (0, 40_000_000):
        with pytest.raises(ValueError, match=reason), explained_out_of_memory(needed, CPU):
            raise MemoryError


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="a bug"), explained_out_of_memory(1, CPU):
        raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("limit", "current", "cache", "free"),
    [
        ("1000000\n", "400000\n", "inactive_file 100000", 700_000),
        ("1000\n", "4000\n", "inactive_file 0", 0),
        ("max\n", "4000\n", "inactive_file 0", 5000 * 1024),  # no limit: the machine counts
    ],
)
def test_the_limit_of_a_container_counts(tmp_path, monkeypatch, limit, current, cache, free):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(current)
    (tmp_path / "memory.stat").write_text(f"anon 7\n{cache}\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "groups").write_text("0::/\n")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    assert memory.free_bytes(CPU) == free
    check_memory(free, 0, CPU)
    with pytest.raises(ValueError, match="needs"):
        check_memory(free + 1, 0, CPU)
    check_memory(free // 2, 0, CPU, sharing=2)
    with pytest.raises(ValueError, match=r"needs .* GB on cpu for each of 2 ranks, where"):
        check_memory(free // 2 + 1, 0, CPU, sharing=2)


@pytest.mark.parametrize(
    ("line", "root", "limit_file", "used_file", "cache"),
    [
        ("0::/jobs/7/step", "", "memory.max", "memory.current", "inactive_file"),
        (
            "4:cpu,memory:/jobs/7/step",
            "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ],
)
def test_the_limit_of_a_batch_job_counts(
    tmp_path, monkeypatch, line, root, limit_file, used_file, cache
):
    job = tmp_path / root / "jobs" / "7"  # the step within it has no limit of its own
    (job / "step").mkdir(parents=True)
    (job / limit_file).write_text("5000000\n")
    (job / used_file).write_text("1000000\n")
    (job / "memory.stat").write_text(f"anon 7\n{cache} 200000\n")
    (tmp_path / "groups").write_text(f"9:name=systemd:/\n3:cpuset:/jobs\n{line}\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    assert memory.free_bytes(CPU) == 4_200_000


def test_the_limit_of_a_process_counts():
    """Told by the kernel: an allocation just below what is free succeeds, one above fails."""
    code = """
import torch
from rl_nfm.support.memory import free_bytes
free = free_bytes(torch.device("cpu"))
torch.empty(free - 2**26, dtype=torch.uint8)
try:
    torch.empty(free + 2**26, dtype=torch.uint8)
except RuntimeError:
    print("as told", free)
"""
    limit = 6 * 2**30
    out = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert out.startswith("as told")
    assert 0 < int(out.split()[-1]) < limit
