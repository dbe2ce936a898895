"""How much memory is free: of a GPU, of the machine, or of the container the process lives in."""

from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int | None:
    """Memory free on the device; None where the system does not tell."""
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
    """Of a limit by control groups (version 2); page cache counts as free."""
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
