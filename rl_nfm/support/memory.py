"""How much memory is free (GPU, machine, control group), and keeping freed memory on a CPU."""

import contextlib
import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")
STATM = Path("/proc/self/statm")

_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
"""By version of control groups: the files of limit and use, and what is page cache in
`memory.stat`."""

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
    known = [_free_in_machine(), *_free_in_groups(), _free_in_process()]
    return min((free for free in known if free is not None), default=None)


def _free_in_machine() -> int | None:
    try:
        lines = MEMINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _free_in_groups() -> Iterator[int | None]:
    """Bytes free under the limit of each control group around this process, of either version.

    A container sees its group as the root; a job of a batch system, or a service, lies deeper.
    """
    try:
        lines = GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:  # as in "0::/user.slice" (version 2) and "4:memory:/user.slice"
        _, controllers, path = line.split(":", 2)
        version = 1 if "memory" in controllers.split(",") else 2
        if version == 1 or not controllers:
            root = CGROUP / "memory" if version == 1 else CGROUP
            group = PurePosixPath(path.lstrip("/"))
            for around in (group, *group.parents):
                yield _free_in_group(root / around, *_FILES[version])


def _free_in_group(group: Path, limit_file: str, used_file: str, cache: str) -> int | None:
    """Bytes free under the limit of one control group; page cache counts as free."""
    try:
        limit = (group / limit_file).read_text(encoding="utf-8").strip()
        used = int((group / used_file).read_text(encoding="utf-8"))
        pairs = (group / "memory.stat").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    if not limit.isdecimal():  # "max": none
        return None
    cached = dict(zip(pairs[::2], pairs[1::2], strict=False)).get(cache, "0")
    return max(0, int(limit) - used + int(cached))


def _free_in_process() -> int | None:
    """Bytes free under the limit of this process (`ulimit -v`)."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        pages = int(STATM.read_text(encoding="utf-8").split()[0])
    except OSError:
        return None
    return max(0, limit - pages * resource.getpagesize())
