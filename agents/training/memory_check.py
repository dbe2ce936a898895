"""Whether the replay fits, before it is allocated."""

from pathlib import Path

import torch


def free_bytes(device: torch.device) -> int | None:
    """Memory free on the device; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024


def check_memory(needed: int, for_states: int, device: torch.device) -> None:
    """Say what the replay takes, and refuse one that does not fit.

    Args:
        needed: bytes in all.
        for_states: bytes of these for recurrent states.
        device: where it is allocated.

    Raises:
        ValueError: naming what is needed, what is free and the option that shrinks it.
    """
    states = f", {for_states / 1e9:.2f} GB of it recurrent states" if for_states else ""
    if for_states:
        print(f"replay: {needed / 1e9:.2f} GB on {device.type}{states}")
    free = free_bytes(device)
    if free is not None and needed > free:
        raise ValueError(
            f"replay.capacity_steps: needs {needed / 1e9:.1f} GB on {device.type}{states}, where "
            f"{free / 1e9:.1f} GB are free; lower --replay.capacity-steps"
        )
