"""A replay that does not fit is told before it is allocated, and so is memory that runs out."""

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


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_errors_of_the_device_and_of_python_are_told_alike(error):
    with pytest.raises(ValueError, match="out of memory"), explained_out_of_memory(1, CPU):
        raise error


def test_a_replay_that_is_elsewhere_is_not_blamed():
    reason = r"cpu: [0-9.]+ GB are free; lower --replay.batch-size or --env.num-envs$"
    with pytest.raises(ValueError, match=reason), explained_out_of_memory(0, CPU):
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
    assert memory.free_bytes(CPU) == free
    check_memory(free, 0, CPU)
    with pytest.raises(ValueError, match="needs"):
        check_memory(free + 1, 0, CPU)
    check_memory(free // 2, 0, CPU, sharing=2)
    with pytest.raises(ValueError, match=r"needs .* GB on cpu for each of 2 ranks, where"):
        check_memory(free // 2 + 1, 0, CPU, sharing=2)
