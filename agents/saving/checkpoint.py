"""Checkpoints of a training run: what is needed to evaluate it, and to continue it.

`checkpoints/step_000250000/` holds `network.safetensors` (the online network alone),
`training.safetensors` (what each part gives as its state, and the random states) and the replay in
immutable chunks `replay-*.safetensors`. `checkpoints/best` holds the network of the best
evaluation. `agents.saving.writer` writes them; here they are found, checked and read;
`agents.saving.restoring` puts what they hold back into the parts of a run.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from agents.config import CONFIG_FILE, Config, make_config
from agents.learning.auxiliary import make_auxiliaries
from agents.learning.network import QNetwork
from agents.saving import zoo
from rl_nfm.encoders import make_encoder
from rl_nfm.support import storage
from rl_nfm.support.configuration import validate
from rl_nfm.support.storage import CheckpointError

KIND = "rl-nfm agent 1"
BEST = "best"
_STEP = re.compile(r"step_\d{9,}")
_LEFT_OVER = re.compile(r"\.(step_\d{9,}|best)\.(partial|old|removed)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayMeta:
    """The size of the replay when it was saved."""

    rows: Annotated[int, Gt(0)]
    """Rows of the ring."""
    added_rows: Annotated[int, Ge(0)]
    """Rows written since the run began."""


Side = Annotated[int, Gt(0), Le(2**16)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta:
    """The meta data of a checkpoint."""

    kind: str
    files: dict[str, str]
    """File name to SHA-256."""
    config: dict[str, Any]
    counters: dict[str, Any]
    """At least `steps` and `updates`; the others belong to the training loop."""
    obs_shape: tuple[Side, Side, Side]
    """(C, H, W)."""
    num_actions: Side
    torch: str
    replay: ReplayMeta | None = None
    ranks: Annotated[int, Gt(0)] = 1
    """Processes that trained the run, each with a checkpoint of its own."""
    which: Literal["last", "best"] | None = None
    """Of what was exported: which checkpoint of its run it was."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint's place and meta data."""

    path: Path
    meta: Meta

    @property
    def config(self) -> Config:
        """The run's config."""
        return make_config(self.meta.config, where=str(self.path), saved=True)

    @property
    def counters(self) -> dict[str, Any]:
        """Where the training loop was, `steps` among it, without the learner's `updates`."""
        return {key: value for key, value in self.meta.counters.items() if key != "updates"}

    @property
    def steps(self) -> int:
        """Agent steps when it was written."""
        return self.meta.counters["steps"]

    @property
    def which(self) -> Literal["last", "best"]:
        """Whether it is that of the best evaluation in training, or one of the last."""
        in_run = self.path.parent.name == "checkpoints"
        return self.meta.which or ("best" if in_run and self.path.name == BEST else "last")

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """The tensors of one of its files, on the CPU.

        Raises:
            CheckpointError: missing or damaged, or numbers that are not finite.
        """
        name = f"{stem}.safetensors"
        if name not in self.meta.files:
            raise CheckpointError(f"{self.path / name}: missing")
        tensors = storage.load_tensors(self.path / name)
        if (bad := first_not_finite(tensors)) is not None:
            raise CheckpointError(
                f"{self.path / name}: {bad} is not finite (the training had diverged)"
            )
        return tensors


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; one host synchronisation."""
    floating = {name: value for name, value in tensors.items() if value.is_floating_point()}
    if not floating:
        return None
    finite = torch.stack([value.isfinite().all() for value in floating.values()]).tolist()
    return next((name for name, good in zip(floating, finite, strict=True) if not good), None)


def list_checkpoints(folder: Path) -> list[Path]:
    """The step checkpoints in a `checkpoints` folder, oldest first; other names are left alone."""
    if not folder.is_dir():
        return []
    folders = [path for path in folder.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=step_of)


def step_of(path: Path) -> int:
    """The agent steps in the name of a step checkpoint."""
    return int(path.name.removeprefix("step_"))


def tidy(folder: Path) -> None:
    """Remove what a killed process has left half-written or half-removed in `checkpoints`."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if (match := _LEFT_OVER.fullmatch(path.name)) is not None:
            storage.tidy(folder / match[1])


def find(path: Path, which: str = "last") -> Path:
    """The checkpoint that a user's path means: a run's folder, a checkpoint, or `zoo:NAME`.

    Raises:
        CheckpointError: if there is none.
        ValueError: `which` is neither `last` nor `best`.
    """
    if which not in ("last", "best"):
        raise ValueError(f"which: {which!r} is not allowed: must be 'last' or 'best'")
    path = zoo.locate(path)
    if (path / storage.META).is_file():
        if which != "last":
            raise CheckpointError(f"which: {path} holds one agent, no run with its {which} one")
        return path
    if not path.exists():
        shipped = str(path) in zoo.agent_names()
        hint = f"; did you mean {zoo.PREFIX}{path}?" if shipped else ""
        raise CheckpointError(f"{path}: does not exist{hint}")
    if (path / "config.json").is_file():
        raise CheckpointError(f"{path}: a supervised run; see rl-nfm supervised evaluate")
    folder = path / "checkpoints"
    last = list_checkpoints(folder)[-1:]
    found = (last[0] if last else None) if which == "last" else storage.present(folder / BEST)
    if found is None and not folder.is_dir() and not (path / CONFIG_FILE).is_file():
        raise CheckpointError(f"{path}: neither a run nor an exported agent nor a checkpoint")
    if found is None:
        raise CheckpointError(f"{path}: no {which} checkpoint in it yet")
    return found


def open_checkpoint(path: Path, *, replay: bool = False, tensors: bool = True) -> Checkpoint:
    """Read and check a checkpoint.

    Args:
        path: its folder.
        replay: check the files of the replay too.
        tensors: check files at all, apart from the meta data.

    Raises:
        CheckpointError: missing, truncated, foreign or tampered with.
    """
    unchecked = () if replay else ("replay-",) if tensors else ("",)
    saved = storage.load_meta(path, kind=KIND, skip=unchecked)
    with fitting(path):
        meta = validate(Meta, saved)
        for name in ("steps", "updates"):
            count = meta.counters[name]
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise ValueError(f"counters.{name} is no count")
    return Checkpoint(path=path, meta=meta)


def best_return(folder: Path) -> float | None:
    """The mean return of `best` in a `checkpoints` folder; None where there is none to be read."""
    found = storage.present(folder / BEST)
    try:
        value = None if found is None else open_checkpoint(found).counters.get("best_return")
    except CheckpointError:
        return None
    return value if isinstance(value, (int, float)) else None


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
    auxiliary = make_auxiliaries(
        config.learner.auxiliary,
        encoder,
        obs_shape=obs_shape,
        num_actions=num_actions,
        frame_channels=obs_shape[0] // config.protocol.stack_num,
    )
    return QNetwork(encoder, num_actions, config.head, auxiliary)


def load_network(checkpoint: Checkpoint, device: torch.device) -> QNetwork:
    """The trained network.

    Raises:
        CheckpointError: if the weights do not fit the config, or are not finite.
    """
    meta, config = checkpoint.meta, checkpoint.config
    weights = checkpoint.tensors("network")
    with fitting(checkpoint.path):
        network = build_network(config, meta.obs_shape, meta.num_actions)
        network.load_state_dict(weights)
    return network.to(device)


@contextlib.contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Report errors inside as a checkpoint that does not fit, in one line.

    The digests of its files were right, so it is of another config or version, or made by hand.
    """
    try:
        yield
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{path}: {error} is missing") from None
    except (ValueError, TypeError, RuntimeError, IndexError, OverflowError, StopIteration) as error:
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        reason = lines[1] if lines[0].startswith("Error(s) in loading") else lines[0]
        raise CheckpointError(f"{path}: does not fit ({reason})") from None
