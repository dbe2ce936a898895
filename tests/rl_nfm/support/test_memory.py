"""What becomes of memory that is freed."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
import torch
from rl_nfm.support.memory import keep_freed_memory

def faults(bytes):
    for _ in range(30):  # aligned blocks leave gaps until the heap has grown around them
        torch.ones(bytes, dtype=torch.uint8)
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(bytes, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin

keep_freed_memory(torch.device(sys.argv[1]))
print(faults(40 << 20))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_freed_blocks_are_used_again_on_a_cpu():
    def run(device: str) -> int:
        command = [sys.executable, "-c", CODE, device]
        out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        return int(out.stdout)

    pages = 10 * (40 << 20) // 4096
    assert run("cpu") < pages / 50
    assert run("cuda") > 100  # left as it is; pages may be of 2 MiB
