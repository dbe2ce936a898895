"""What `benchmark.py count` tells of the GPU path on a machine without a GPU."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

SCRIPTS = Path(__file__).parent.parent / "scripts"
needs_cpu_build = pytest.mark.skipif(torch.version.cuda is not None, reason="for CPU builds")


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("benchmarks._counting")


def count(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "benchmark.py"), "count", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def rows(text: str) -> dict[tuple[str, str], list[str]]:
    lines = [line.split() for line in text.splitlines()[1:] if not line.startswith(" ")]
    return {(preset, part): numbers for preset, part, *numbers in lines}


@needs_cpu_build
def test_an_update_a_step_and_a_row_of_a_preset():
    done = count("rainbow_iqn")
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(done.stdout)
    assert list(found) == [("rainbow_iqn", part) for part in ("update", "act", "add")]
    kernels, most, gigabytes, gigaflops = map(float, found["rainbow_iqn", "update"])
    assert 400 < kernels <= most
    assert gigabytes > 0.5
    # 32 x 64 samples through two hidden layers of 3136 x 512, forward for the target and the
    # online network, 32 of them for the selection, and twice backward: 2 x 2 x (1 + 1 + 0.5 + 2).
    hidden = 32 * 64 * 3136 * 512 * 2 * 2 * 4.5 / 1e9
    assert hidden < gigaflops < 1.2 * hidden


@needs_cpu_build
@pytest.mark.slow
def test_no_preset_waits_for_the_device_or_has_too_many_kernels():
    done = count()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "waits" not in done.stdout
    assert len(rows(done.stdout)) == 3 * 8


@needs_cpu_build
@pytest.mark.slow
def test_what_is_compiled_stays_whole():
    """Pixels were once scaled into `out=`, which made 11 graphs of the loss, and 40 s of 23."""
    done = count("rainbow_iqn", "--compiled")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rainbow_iqn: 0 breaks" in done.stdout


def counted(counting, run):
    with FakeTensorMode():
        x, layer = torch.randn(6, 5, requires_grad=True), nn.Linear(5, 3)
        with counting.Counter() as counter:
            run(layer, x)
    return counter


def test_a_layer_and_its_backward(counting):
    """By hand: addmm, relu, sum; ones, threshold, mm for each of x and W, bias."""
    forward = counted(counting, lambda layer, x: F.relu(layer(x)))
    assert forward.total.kernels == 2
    assert forward.total.flops == 2 * 6 * 5 * 3
    # read x, W, b and write y; read and write y
    assert forward.total.bytes == 4 * (6 * 5 + 5 * 3 + 3 + 6 * 3) + 4 * 2 * 6 * 3
    both = counted(counting, lambda layer, x: F.relu(layer(x)).sum().backward())
    assert both.total.flops == 3 * forward.total.flops
    assert both.by_name["mm"].kernels == 2


def test_views_are_free(counting):
    counter = counted(counting, lambda _, x: x.t().unflatten(0, (1, 5))[..., 2:].detach())
    assert counter.total.kernels == counter.total.bytes == 0


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: x[x > 0], "nonzero|index"),
        (lambda x: bool((x > 0).all()), "_local_scalar_dense"),
    ],
)
def test_what_waits_for_the_device_is_found(counting, run, name):
    with pytest.raises(RuntimeError, match=f"({name}) waits for the device"):
        counted(counting, lambda _, x: run(x.detach()))


def test_operators_that_run_over_many_tensors(counting):
    tensors = [torch.ones(3, 7) for _ in range(250)]
    with counting.Counter() as counter:
        torch._foreach_mul_(tensors, 2.0)
    assert counter.total.kernels == 3  # a hundred tensors each
    assert counter.total.bytes == 2 * 4 * 3 * 7 * 250


def test_bad_names_are_refused():
    done = count("no_such_preset")
    assert done.returncode == 2
    assert "no_such_preset" in done.stderr
    assert "Traceback" not in done.stderr
