"""Where Triton kernels are used, and what is said where they are not."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from rl_nfm.support.triton_guard import TritonGuard

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setenv("RL_NFM_KERNELS", "triton")


def check_with(results, calls):
    def check(device, *case):
        calls.append((device, case, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return results()

    return check


def agreeing():
    return [(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.00001], dtype=torch.float64))]


def test_checks_once_a_case_whatever_modes_the_caller_is_in(caplog):
    calls = []
    guard = TritonGuard("sum", check_with(agreeing, calls))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert [guard.ready(CPU, "a"), guard.ready(CPU, "b"), guard.ready(CPU, "a")] == [True] * 3
    assert calls == [(CPU, ("a",), True, False), (CPU, ("b",), True, False)]
    assert not caplog.records


def test_a_difference_means_the_plain_path_and_one_warning(caplog):
    wrong = lambda: [*agreeing(), (torch.ones(3), 1.001 * torch.ones(3))]  # noqa: E731
    guard = TritonGuard("sum", check_with(wrong, []))
    assert [guard.ready(CPU, case) for case in "aab"] == [False] * 3
    assert [record.message for record in caplog.records] == [
        "slower on cpu without the Triton sum: differs from the plain path by 1.0e-03"
    ]
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_is_a_difference(number):
    results = lambda: [(torch.tensor([number]), torch.ones(1))]  # noqa: E731
    assert not TritonGuard("sum", check_with(results, [])).ready(CPU)


def test_half_precision_may_be_off_by_its_rounding():
    pair = lambda dtype: [(torch.ones(3, dtype=dtype), 1.01 * torch.ones(3))]  # noqa: E731
    assert TritonGuard("sum", lambda device: pair(torch.bfloat16)).ready(CPU)
    assert not TritonGuard("sum", lambda device: pair(torch.float16)).ready(CPU)


def test_after_a_failed_launch(caplog):
    guard = TritonGuard("norm", check_with(agreeing, []))
    assert guard.ready(CPU)
    guard.give_up(CPU, error=RuntimeError("out of resources\nsecond line"))
    guard.give_up(CPU, error=RuntimeError("out of resources"))
    assert not guard.ready(CPU)
    assert [record.message for record in caplog.records] == [
        "slower on cpu without the Triton norm: out of resources"
    ]


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # so that importing it fails, as where it is not installed
import torch
from rl_nfm.encoders import make_encoder

net = make_encoder("nfm", obs_shape=(4, 84, 84), width=8, depth=10)
obs = torch.zeros(1, 2, 4, 84, 84, dtype=torch.uint8)
reset = torch.zeros(1, 2, dtype=torch.bool)
net(obs, net.initial_state(2), reset, {})[0].sum().backward()
assert all(p.grad is not None for p in net.parameters())
"""


def test_without_triton_networks_are_plain_with_one_warning():
    """In a process of its own: norms, linear layers and attention all ask for Triton."""
    env = {**os.environ, "RL_NFM_KERNELS": "triton", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT_TRITON]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("slower on cpu without Triton: ")


@pytest.mark.parametrize("switch", ["0", "1"])
def test_switched_off_nothing_is_checked(switch, monkeypatch):
    monkeypatch.setenv("RL_NFM_KERNELS", switch)
    calls = []
    assert not TritonGuard("sum", check_with(agreeing, calls)).ready(CPU)
    assert not TritonGuard("sum", check_with(agreeing, calls)).ready(torch.device("meta"))
    assert not calls


@pytest.mark.gpu
def test_nothing_is_checked_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setenv("RL_NFM_KERNELS", "1")
    device = torch.device("cuda", 0)
    calls = []
    guard = TritonGuard("sum", check_with(agreeing, calls))
    x = torch.ones(2, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.add_(1)
        assert not guard.ready(device)
    assert not calls
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert guard.ready(device)
        assert torch.cuda.get_sync_debug_mode() == 2
    finally:
        torch.cuda.set_sync_debug_mode("default")
