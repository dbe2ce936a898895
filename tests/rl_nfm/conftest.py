"""The devices of Triton kernels."""

import pytest

from tests.triton_devices import CPU, CUDA


@pytest.fixture(params=[CPU, CUDA])
def device(request, monkeypatch) -> str:
    """A device whose kernels are switched on."""
    monkeypatch.setenv("RL_NFM_KERNELS", "triton" if request.param == "cpu" else "1")
    return request.param
