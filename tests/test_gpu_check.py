import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "scripts" / "gpu_check.py"


@pytest.fixture
def gpu_check():
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_networks_are_measured_on_the_gpu(gpu_check):
    """Once the NFM benchmark ran on the CPU there, by its default."""
    for name in ("nfm", "nfm, written layers", "rims"):
        command, _ = gpu_check.JOBS[name]
        assert command[command.index("--device") + 1] == "cuda"


def test_limits_fit_into_ten_minutes(gpu_check):
    assert gpu_check.BUDGET_SECONDS < 600
    assert all(limit <= gpu_check.BUDGET_SECONDS for _, limit in gpu_check.JOBS.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_that_there_is_no_gpu(gpu_check, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    assert gpu_check.main() == 0
    assert "no CUDA device" in capsys.readouterr().out
