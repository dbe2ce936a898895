"""Checkpoints of a training run: everything to evaluate, and everything to go on.

`checkpoints/step_000250000/` holds `network.safetensors` (the online network alone),
`training.safetensors` (target, optimiser, random states, priorities) and the replay in immutable
chunks `replay-*.safetensors`, of which only changed ones are written again: the others are hard
links to the files of the checkpoint before. `checkpoints/best` holds the network of the best
evaluation.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.config import Config, make_config, to_plain
from agents.learning.learner import Learner, with_prefix
from agents.learning.network import QNetwork
from agents.replay.buffer import Replay
from rl_nfm.encoders import make_encoder
from rl_nfm.support import storage

KIND = "rl-nfm agent 1"
CHUNK_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint's place and meta data."""

    path: Path
    meta: dict[str, Any]

    @property
    def config(self) -> Config:
        """The run's config."""
        return make_config(self.meta["config"], where=str(self.path))

    @property
    def steps(self) -> int:
        """Agent steps when it was written."""
        return self.meta["counters"]["steps"]


def list_checkpoints(folder: Path) -> list[Path]:
    """The step checkpoints in a `checkpoints` folder, oldest first."""
    return sorted(folder.glob("step_*"))


def find(path: Path, which: str = "last") -> Path:
    """The checkpoint that a path given by a user means: a run's, or itself.

    Raises:
        CheckpointError: if there is none.
    """
    if (path / storage.META).is_file():
        return path
    if not path.exists():
        raise storage.CheckpointError(f"{path}: does not exist")
    folder = path / "checkpoints"
    found = list_checkpoints(folder)[-1:] if which == "last" else [folder / "best"]
    if not found or not found[0].is_dir():
        raise storage.CheckpointError(f"{path}: no {which} checkpoint in it")
    return found[0]


def open_checkpoint(path: Path, *, replay: bool = False) -> Checkpoint:
    """Read and check a checkpoint; the replay's files only where they are needed.

    Raises:
        CheckpointError: missing, truncated, foreign or tampered with.
    """
    skip = () if replay else ("replay-",)
    meta = storage.load_meta(path, kind=KIND, skip=skip)
    if not isinstance(meta.get("config"), dict) or not isinstance(meta.get("counters"), dict):
        raise storage.CheckpointError(f"{path}: damaged (no config or counters)")
    return Checkpoint(path=path, meta=meta)


def build_network(config: Config, obs_shape: tuple[int, int, int], num_actions: int) -> QNetwork:
    """A fresh network as the config says."""
    group = getattr(config, config.encoder)
    trunk = getattr(group, "trunk", None)
    encoder = make_encoder(
        config.encoder,
        obs_shape=obs_shape,
        num_actions=num_actions,
        config=group,
        trunk_config=None if trunk is None else getattr(config, trunk),
    )
    return QNetwork(encoder, num_actions, config.head)


def load_network(checkpoint: Checkpoint, device: torch.device) -> QNetwork:
    """The trained network.

    Raises:
        CheckpointError: if the weights do not fit the config.
    """
    meta = checkpoint.meta
    network = build_network(checkpoint.config, tuple(meta["obs_shape"]), meta["num_actions"])
    weights = storage.load_tensors(checkpoint.path / "network.safetensors")
    _load_state(network, weights, checkpoint.path)
    return network.to(device)


def _load_state(network: QNetwork, weights: dict[str, Tensor], path: Path) -> None:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise _misfit(path, error) from None


def _misfit(path: Path, error: RuntimeError) -> storage.CheckpointError:
    problem = str(error).splitlines()[1].strip()
    return storage.CheckpointError(f"{path}: weights do not fit the config ({problem})")


def save(
    folder: Path,
    *,
    config: Config,
    learner: Learner,
    replay: Replay,
    counters: dict[str, Any],
    previous: Path | None,
) -> Path:
    """Write the checkpoint of this step, then drop older ones.

    Raises:
        OSError: when it cannot be written; the checkpoint before is then still whole.
    """
    meta = _meta(config, learner, replay, counters)
    tensors = {"network": learner.online.state_dict(), "training": _training_state(learner, replay)}
    links: dict[str, tuple[Path, str]] = {}
    if config.run.save_replay:
        before = storage.load_meta(previous, kind=KIND, skip=("",)) if previous else None
        for name, rows in _chunks(replay).items():
            if before and previous and name in before["files"]:
                links[name] = (previous / name, before["files"][name])
            else:
                stores = {key: value[rows] for key, value in replay.row_stores.items()}
                tensors[name.removesuffix(".safetensors")] = stores
        meta["replay"] = {"added_rows": replay.added_rows, "rows": replay.rows}
    target = folder / f"step_{counters['steps']:09d}"
    storage.save_directory(target, kind=KIND, meta=meta, tensors=tensors, links=links)
    for old in list_checkpoints(folder):
        if old != target:
            shutil.rmtree(old)
    return target


def save_best(
    folder: Path, *, config: Config, learner: Learner, replay: Replay, counters: dict[str, Any]
) -> None:
    """Write the network alone, as the best one so far."""
    storage.save_directory(
        folder / "best",
        kind=KIND,
        meta=_meta(config, learner, replay, counters),
        tensors={"network": learner.online.state_dict()},
    )


def _meta(
    config: Config, learner: Learner, replay: Replay, counters: dict[str, Any]
) -> dict[str, Any]:
    return {
        "config": to_plain(config),
        "counters": {**counters, "updates": learner.updates},
        "obs_shape": [replay.stack_num, *replay.frame.shape[2:]],
        "num_actions": learner.online.head.num_actions,
        "torch": torch.__version__,
    }


def _chunks(replay: Replay) -> dict[str, slice]:
    """File name to rows. The name tells the last row written in it, so it changes with them."""
    row_bytes = sum(s[0].numel() * s.element_size() for s in replay.row_stores.values())
    size = max(1, CHUNK_BYTES // row_bytes)
    chunks = {}
    for begin in range(0, min(replay.added_rows, replay.rows), size):
        end = min(begin + size, replay.rows)
        newest = replay.added_rows - 1
        # the youngest absolute row at or before `newest` that lies in begin..end
        lap, position = divmod(newest, replay.rows)
        if position >= end:
            last = lap * replay.rows + end - 1
        elif position >= begin:
            last = newest
        else:
            last = (lap - 1) * replay.rows + end - 1
        chunks[f"replay-{begin:08d}-{last:012d}.safetensors"] = slice(begin, end)
    return chunks


def _training_state(learner: Learner, replay: Replay) -> dict[str, Tensor]:
    state = learner.state()
    state |= {f"replay.{name}": value for name, value in replay.state().items()}
    state["rng.cpu"] = torch.get_rng_state()
    if learner.device.type == "cuda":
        state["rng.cuda"] = torch.cuda.get_rng_state(learner.device)
    return state


def restore(checkpoint: Checkpoint, learner: Learner, replay: Replay) -> bool:
    """Put networks, optimiser, replay and random states back; returns whether a replay was there.

    Raises:
        CheckpointError: if something is missing or does not fit.
    """
    _load_state(
        learner.online,
        storage.load_tensors(checkpoint.path / "network.safetensors"),
        checkpoint.path,
    )
    state = storage.load_tensors(checkpoint.path / "training.safetensors")
    state.setdefault("updates", torch.tensor(checkpoint.meta["counters"]["updates"]))
    try:
        learner.load_state(state)
    except RuntimeError as error:
        raise _misfit(checkpoint.path, error) from None
    torch.set_rng_state(state["rng.cpu"])
    if learner.device.type == "cuda" and "rng.cuda" in state:
        torch.cuda.set_rng_state(state["rng.cuda"], learner.device)
    if "replay" not in checkpoint.meta:
        return False
    _restore_replay(checkpoint, replay, state)
    return True


def _restore_replay(checkpoint: Checkpoint, replay: Replay, state: dict[str, Tensor]) -> None:
    told = checkpoint.meta["replay"]
    if told["rows"] != replay.rows:
        raise storage.CheckpointError(f"{checkpoint.path}: replay of {told['rows']} rows")
    for name in sorted(n for n in checkpoint.meta["files"] if n.startswith("replay-")):
        begin = int(name.split("-")[1])
        for key, value in storage.load_tensors(checkpoint.path / name).items():
            replay.row_stores[key][begin : begin + len(value)] = value.to(replay.device)
    state.setdefault("replay.added_rows", torch.tensor(told["added_rows"]))
    replay.load_state(with_prefix(state, "replay."))
