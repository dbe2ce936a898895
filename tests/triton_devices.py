"""Where tests of Triton kernels run: in its interpreter on the CPU, or with -m gpu on a device."""

import importlib.util
import os

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton")
CPU = pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="no interpreter"))
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
interpreted_only = pytest.mark.parametrize("device", [CPU], indirect=True)
"""What a device need not show too: each combination of sizes and types takes seconds to compile."""
