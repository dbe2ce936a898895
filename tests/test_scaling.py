"""The model of docs/scaling.md: its arithmetic by hand, and how well it meets what was measured."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
scaling = importlib.import_module("benchmarks.scaling")

LINK = scaling.Link(name="test", bytes_per_second=100.0, hop_seconds=0.5)
CASE = scaling.Case(
    num_envs=8,
    steps_per_update=16,
    update_seconds=0.010,
    kernels=2000,
    parameters=0,
    env_steps_per_second=4000,
    measured=1.0,
    cores=4,
    prioritised=False,
)


def test_an_all_reduce_moves_twice_all_but_one_part_and_hops():
    assert LINK.all_reduce(300.0, 1) == 0
    assert LINK.all_reduce(300.0, 2) == pytest.approx(3.0 + 0.5)  # 2 * 1/2 * 300 / 100
    assert LINK.all_reduce(300.0, 6) == pytest.approx(5.0 + 1.5)  # 2 * 5/6 * 3; three hops


def test_a_round_adds_up_by_hand(monkeypatch):
    monkeypatch.setattr(scaling, "NVLINK", LINK)
    # 2000 kernels of 1.5 us do not shrink, 7 ms do; two ranks hop once
    assert scaling.update_seconds(CASE, 1) == pytest.approx(0.010)
    assert scaling.update_seconds(CASE, 2) == pytest.approx(0.003 + 0.0035 + 0.5)
    # a core takes 1 ms per step: 8 on 4 cores 2 ms, 4 on 4 cores 1 ms, 2 on 4 cores no less
    assert scaling.emulate_seconds(CASE, 1, 4) == pytest.approx(0.002)
    assert scaling.emulate_seconds(CASE, 2, 4) == pytest.approx(0.001)
    assert scaling.emulate_seconds(CASE, 4, 4) == pytest.approx(0.001)
    # half an update per round: 5 ms beside 2 ms
    added = scaling.round_seconds(CASE, 1, cores_per_gpu=4, overlap=1.0)
    assert added == pytest.approx(0.007)
    hidden = scaling.round_seconds(CASE, 1, cores_per_gpu=4, overlap=50.0)
    assert hidden == pytest.approx(0.005)


def test_the_model_meets_every_run_that_was_measured_within_a_fifth():
    for name, case in scaling.CASES.items():
        assert scaling.steps_per_second(case, 1) == pytest.approx(case.measured, rel=0.2), name


def test_runs_add_up_until_the_storage_is_full():
    fleet = scaling.Fleet(
        storage_bytes_per_second=1000.0, step_bytes=1, start_seconds=5.0, steps=100
    )
    # 20 steps/s take 5 s, and 5 s to begin: half the rate
    assert fleet.total(CASE, 20.0, 3) == (pytest.approx(30.0), "GPUs")
    assert fleet.total(CASE, 20.0, 1000) == (pytest.approx(1000.0), "storage")


def test_the_tables_are_printed(capsys):
    scaling.main([])
    told = capsys.readouterr().out
    assert all(name in told for name in scaling.CASES)
