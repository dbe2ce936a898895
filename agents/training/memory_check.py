"""Checks that the replay fits into memory, and explains an allocation that fails."""

import contextlib
from collections.abc import Iterator

import torch

from rl_nfm.support.memory import free_bytes


def check_memory(needed: int, for_states: int, device: torch.device, *, sharing: int = 1) -> None:
    """Print how much memory the replay takes, and refuse one that does not fit.

    Args:
        needed: bytes in all.
        for_states: bytes of these for recurrent states.
        device: where it is allocated.
        sharing: processes that each allocate as much in the same memory.

    Raises:
        ValueError: naming what is needed, what is free and the option that shrinks it.
    """
    states = f", {for_states / 1e9:.2f} GB of it recurrent states" if for_states else ""
    if for_states:
        print(f"replay: {needed / 1e9:.2f} GB on {device.type}{states}")
    free = free_bytes(device)
    if free is not None and sharing * needed > free:
        each = f" for each of {sharing} ranks" if sharing > 1 else ""
        raise ValueError(
            f"replay.capacity_steps: needs {needed / 1e9:.1f} GB on {device.type}{states}{each}, "
            f"where {free / 1e9:.1f} GB are free; lower --replay.capacity-steps{_elsewhere(device)}"
        )


_NOTEWORTHY = 50_000_000
"""Bytes below which a replay is not what to shrink."""


@contextlib.contextmanager
def explained_out_of_memory(needed: int, device: torch.device) -> Iterator[None]:
    """Turn an allocation that fails inside into one line that says where the memory went.

    Args:
        needed: bytes of the replay on the device; 0 where it is elsewhere.
        device: whose memory may run out.

    Raises:
        ValueError: when memory runs out; names what the replay takes and what is free.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # Of the CPU's allocator torch tells only by the text of a plain RuntimeError.
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and "allocate memory" not in str(error):
            raise
        free = free_bytes(device)
        told = [] if free is None else [f"{free / 1e9:.1f} GB are free"]
        fewer = "--replay.batch-size, --env.num-envs or the sizes of the networks"
        if needed >= _NOTEWORTHY:
            told.insert(0, f"the replay takes {needed / 1e9:.1f} GB")
            fewer = f"--replay.capacity-steps, {fewer}{_elsewhere(device)}"
        raise ValueError(
            f"device: out of memory on {device.type}: {', '.join(told)}; lower {fewer}"
        ) from None


def _elsewhere(device: torch.device) -> str:
    return "" if device.type == "cpu" else ", or set --replay.storage host"
