"""The parts of a run whose state a checkpoint holds, and putting it back into them.

A checkpoint knows nothing of what its parts hold: they give their state as named tensors, and take
back tensors of the same names, shapes and types.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from agents.learning.network import QNetwork
from agents.saving.checkpoint import Checkpoint, ReplayMeta, fitting


class Part(Protocol):
    """What a checkpoint needs of each object whose state survives a resume."""

    def state(self) -> dict[str, Tensor]:
        """The tensors to save, by name."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned."""
        ...


class LearnerPart(Part, Protocol):
    """The owner of the online network, which is saved in a file of its own."""

    online: QNetwork
    device: torch.device
    updates: int


class ReplayPart(Part, Protocol):
    """A ring of rows, written one after the other, beside its state."""

    rows: int
    added_rows: int

    @property
    def row_stores(self) -> dict[str, Tensor]:
        """Everything kept per row, each [rows, ...]."""
        ...


def restore(
    checkpoint: Checkpoint,
    learner: LearnerPart,
    replay: ReplayPart,
    others: Mapping[str, Part] = MappingProxyType({}),
    *,
    of_rank: bool = True,
) -> bool:
    """Put networks, optimiser, replay and random states back; returns whether it had a replay.

    Args:
        checkpoint: what to go on from.
        learner: owner of the networks.
        replay: the ring of rows.
        others: further parts by name, whose states are put back last.
        of_rank: also put back what belongs to one rank alone: the replay and the random states.

    Raises:
        CheckpointError: if something is missing or does not fit.
    """
    weights, state = checkpoint.tensors("network"), checkpoint.tensors("training")
    # Checkpoints of version 0.1.0 have these two in their meta data only.
    state.setdefault("updates", torch.tensor(checkpoint.meta.counters["updates"]))
    if checkpoint.meta.replay is not None:
        added = torch.tensor(checkpoint.meta.replay.added_rows)
        state.setdefault("replay.added_rows", added)
    with fitting(checkpoint.path):
        _check_count(state, "updates", checkpoint.meta.counters["updates"])
        learner.online.load_state_dict(weights)
        learner.load_state(state)
        if of_rank:
            _restore_random_states(state, learner.device)
        else:
            state = {}
        if of_rank and checkpoint.meta.replay is not None:
            current = {f"replay.{name}": value for name, value in replay.state().items()}
            _check_like(current, state)
            _check_count(state, "replay.added_rows", checkpoint.meta.replay.added_rows)
            _restore_rows(checkpoint, checkpoint.meta.replay, replay)
            replay.load_state({name.removeprefix("replay."): state[name] for name in current})
        for part, other in others.items():
            prefix = f"{part}."
            other.load_state(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )
    return of_rank and checkpoint.meta.replay is not None


def _restore_random_states(state: Mapping[str, Tensor], device: torch.device) -> None:
    _check_like({"rng.cpu": torch.get_rng_state()}, state)
    torch.set_rng_state(state["rng.cpu"])
    if device.type == "cuda" and "rng.cuda" in state:
        torch.cuda.set_rng_state(state["rng.cuda"], device)


def _restore_rows(checkpoint: Checkpoint, saved: ReplayMeta, replay: ReplayPart) -> None:
    if saved.rows != replay.rows:
        raise ValueError(f"replay of {saved.rows} rows, must be {replay.rows}")
    stores, filled = replay.row_stores, 0
    for name in sorted(n for n in checkpoint.meta.files if n.startswith("replay-")):
        begin = int(name.split("-")[1])
        chunk = checkpoint.tensors(name.removesuffix(".safetensors"))
        rows = slice(begin, begin + len(next(iter(chunk.values()))))
        if begin != filled:
            raise ValueError(f"rows {filled} to {begin} of the replay are missing")
        _check_like({key: store[rows] for key, store in stores.items()}, chunk)
        for key, store in stores.items():
            store[rows] = chunk[key].to(store.device)
        filled = rows.stop
    if filled < min(saved.added_rows, saved.rows):
        raise ValueError(f"rows from {filled} of the replay are missing")


def _check_like(current: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raise for a tensor that is missing, or saved in another shape or type than it has now."""
    for name, value in current.items():
        shape, dtype = tuple(saved[name].shape), saved[name].dtype
        if shape != tuple(value.shape) or dtype != value.dtype:
            raise ValueError(
                f"{name} is {dtype} {shape}, must be {value.dtype} {tuple(value.shape)}"
            )


def _check_count(saved: Mapping[str, Tensor], name: str, count: int) -> None:
    """Raise for a count that is not that of the meta data."""
    if not torch.equal(saved[name], torch.tensor(count)):
        raise ValueError(f"{name} is not {count}")
