"""How much memory is free (GPU, machine or container), and keeping freed memory on a CPU."""

import contextlib
import ctypes
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`, from glibc's malloc.h."""
_LARGEST_KEPT = (2**30, 2**25)
"""Sizes to try for the largest block that is kept, in bytes; older glibc refuses above 32 MiB."""


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, have glibc keep the memory that this process frees, for its next allocations.

    An update allocates and frees the same blocks again and again. By default the large ones go back
    to the system each time, which then hands out pages anew and fills them with zeros: 18,000 page
    faults and a tenth of the processor time of an update of preset `quickstart`. Blocks above
    1 GiB, a replay for example, still go back. Without glibc, nothing happens.
    """
    if device.type != "cpu":
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_KEPT)


def free_bytes(device: torch.device) -> int | None:
    """Bytes of free memory on the device; None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [free for free in (_free_in_machine(), _free_in_container()) if free is not None]
    return min(known, default=None)


def _free_in_machine() -> int | None:
    try:
        lines = MEMINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _free_in_container() -> int | None:
    """Bytes free under the limit of a control group (version 2); page cache counts as free."""
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="utf-8").strip()
        used = int((CGROUP / "memory.current").read_text(encoding="utf-8"))
        pairs = (CGROUP / "memory.stat").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    if not limit.isdecimal():  # "max": none
        return None
    cache = dict(zip(pairs[::2], pairs[1::2], strict=False)).get("inactive_file", "0")
    return max(0, int(limit) - used + int(cache))
