"""From the option `--device` to a device, and how many cores there are."""

import os

import torch


def choose_device(name: str) -> torch.device:
    """The device named by `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is CUDA if it is available.

    Raises:
        ValueError: another name, or CUDA was requested and is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, index = str(name).partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and index.isdecimal())):
        raise ValueError(f"device: {name!r} is not allowed: must be auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {name!r} is not available on this machine (allowed: auto, cpu)")
    return torch.device(name)


def cores() -> int:
    """Processor cores that this process may use."""
    count = getattr(os, "sched_getaffinity", None)
    return len(count(0)) if count else os.cpu_count() or 1
