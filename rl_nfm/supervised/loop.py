"""One short training loop for the supervised tasks: epochs, evaluation, checkpoints, trials.

A task says what its data, model, loss and figures are (`Task`); the loop does the rest. A plain
loop, because on one device Lightning Fabric would replace about five of its lines (moving to the
device), while its checkpoints are pickles and it brings a dozen packages along.

A checkpoint is written after every evaluation, so a resumed run repeats the same numbers bit for
bit on the same device: all randomness of training comes from torch's global generators, whose
states it holds.
"""

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from tqdm import tqdm

from rl_nfm.storage import load_meta, load_tensors, save_directory
from rl_nfm.supervised.options import (
    RunConfig,
    choose_device,
    parse_config,
    plain,
    refuse_unused,
    write_config,
)
from rl_nfm.supervised.registry import register_task
from rl_nfm.supervised.reporting import (
    MetricsLog,
    format_metrics,
    mean_and_deviation,
    read_metrics,
    versions,
    write_result,
)

KIND = "rl-nfm supervised trial"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig(RunConfig):
    """Options of every task that the shared loop trains."""

    epochs: Annotated[int, Ge(0)] = 1
    """Passes over the training set (or `updates_per_epoch` batches of a generated one)."""
    batch_size: Annotated[int, Gt(0)] = 64
    """Examples an update."""
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    """Step size at the start."""
    clip_norm: Annotated[float, Ge(0)] = 0.0
    """Largest norm of the gradient over all parameters; 0: not clipped."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast, with weights, optimiser and losses in float32."""
    eval_every: Annotated[int, Gt(0)] = 1
    """Epochs between evaluations (and checkpoints); the last epoch is always evaluated."""


C = TypeVar("C", bound=LoopConfig)
Metrics = dict[str, float]


class Task(ABC, Generic[C]):
    """One trial's data, model, loss and figures.

    Args:
        config: of the run.
        device: where data and model live.

    The loop seeds torch's global generators before it makes a task, so data and weights may draw
    from them freely; test data should come from a generator of their own, equal for all trials.
    """

    used_by: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Option to the models that read it; with any other model, setting it is refused."""

    def __init__(self, config: C, device: torch.device):
        self.config = config
        self.device = device

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The model, on the CPU."""

    @abstractmethod
    def batches(self, epoch: int) -> Iterable[Any]:
        """The batches of one epoch (counted from 0), on the device."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The scalar loss of one batch."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> Metrics:
        """Figures after an epoch; the model is in eval mode and no gradient is recorded."""

    def test(self, model: nn.Module) -> Metrics:
        """More figures, once, of the trained model."""
        del model
        return {}

    def summarise(self, history: Sequence[Metrics]) -> Metrics:
        """The trial's figures from those of all evaluations; here: the last ones."""
        return dict(history[-1])

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser; here: Adam."""
        return torch.optim.Adam(model.parameters(), lr=self.config.learning_rate)

    def learning_rate(self, epoch: int) -> float:
        """Step size of an epoch (counted from 0); here: constant."""
        del epoch
        return self.config.learning_rate


def register_loop_task(
    name: str, summary: str, task: type[Task[Any]], presets: Mapping[str, LoopConfig]
) -> None:
    """Register a task that this loop trains.

    Args:
        name: on the command line.
        summary: one line.
        task: makes one trial.
        presets: name to config, the default one first.
    """

    @register_task(name, summary)
    def main(argv: Sequence[str]) -> int:
        config = parse_config(argv, task=name, presets=presets, description=summary)
        if "model" in vars(config):
            refuse_unused(config, presets, task.used_by)
        run_trials(name, task, config)
        return 0


def run_trials(name: str, task: type[Task[Any]], config: LoopConfig) -> dict[str, Any]:
    """Train `config.trials` seeds and write the result; returns it.

    Raises:
        ValueError: a bad option or run folder, or a loss that is not finite.
        OSError: a file cannot be written.
    """
    device = choose_device(config.device)
    folder = _run_folder(name, config)
    write_config(folder, dataclasses.replace(config, resume=None), task=name)
    rows = []
    for index in range(config.trials):
        trial = _Trial(task, config, device, folder / f"trial{index}", config.seed + index)
        rows.append(trial.run())
    mean, deviation = mean_and_deviation([row["metrics"] for row in rows])
    result = {
        "task": name,
        "config": plain(config),
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "trials": rows,
        "mean": mean,
        "deviation": deviation,
    }
    write_result(result, folder / "result.json", *([config.json] if config.json else []))
    print(f"{name}: {config.trials} trial(s), {folder / 'result.json'}")
    print(format_metrics(mean, deviation))
    return result


def _run_folder(name: str, config: LoopConfig) -> Path:
    if config.resume is not None:
        return config.resume
    model = vars(config).get("model", "model")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = config.out or Path("runs") / "supervised" / f"{name}-{model}-{stamp}"
    if (folder / "config.json").exists():
        raise ValueError(f"out: {folder} already holds a run; continue it with --resume {folder}")
    return folder


class _Trial:
    """One seed: its task, model, optimiser and place."""

    def __init__(
        self,
        task: type[Task[Any]],
        config: LoopConfig,
        device: torch.device,
        folder: Path,
        seed: int,
    ):
        torch.manual_seed(seed)
        self.seed = seed
        self.config = config
        self.folder = folder
        self.task = task(config, device)
        self.model = self.task.build_model().to(device)
        self.optimizer = self.task.build_optimizer(self.model)
        self.epoch = 0
        self.updates = 0
        self.seconds = 0.0
        if (folder / "checkpoint").is_dir():
            self._load()

    def run(self) -> dict[str, Any]:
        """Train to the last epoch; the trial's row of the result."""
        log = MetricsLog(self.folder, last_epoch=self.epoch)
        bar = tqdm(
            total=self.config.epochs,
            initial=self.epoch,
            desc=self.folder.name,
            unit="epoch",
            disable=None,
        )
        while self.epoch < self.config.epochs:
            start = time.perf_counter()
            loss = self._train_epoch()
            self.seconds += time.perf_counter() - start
            bar.update()
            if self.epoch % self.config.eval_every == 0 or self.epoch == self.config.epochs:
                metrics = {"train_loss": loss, **self._evaluate()}
                log.write(self.epoch, metrics)
                bar.write(f"{self.folder.name} epoch {self.epoch}: {_one_line(metrics)}")
                self._save()
        bar.close()
        log.close()
        return self._result()

    def _train_epoch(self) -> float:
        """One epoch; returns its mean loss."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.task.learning_rate(self.epoch)
        total, count = torch.zeros((), device=self.task.device), 0
        for batch in self.task.batches(self.epoch):
            with self._autocast():
                loss = self.task.loss(self.model, batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if self.config.clip_norm > 0:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
            self.optimizer.step()
            total += loss.detach()
            count += 1
        self.epoch += 1
        self.updates += count
        mean = float(total) / max(count, 1)
        if mean != mean or mean in (float("inf"), float("-inf")):
            raise ValueError(
                f"the loss of epoch {self.epoch} is {mean}: lower learning_rate "
                f"(now {self.config.learning_rate}) or set clip_norm"
            )
        return mean

    def _evaluate(self) -> Metrics:
        self.model.eval()
        with torch.no_grad(), self._autocast():
            return self.task.evaluate(self.model)

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(self.task.device.type, torch.bfloat16, enabled=enabled)

    def _result(self) -> dict[str, Any]:
        history = [
            {k: v for k, v in row.items() if k != "epoch"} for row in read_metrics(self.folder)
        ]
        if not history:  # epochs = 0: the untrained model
            history = [self._evaluate()]
        self.model.eval()
        with torch.no_grad(), self._autocast():
            more = self.task.test(self.model)
        return {
            "seed": self.seed,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "epochs": self.epoch,
            "updates": self.updates,
            "train_seconds": round(self.seconds, 1),
            "metrics": {**self.task.summarise(history), **more},
        }

    def _save(self) -> None:
        state = self.optimizer.state_dict()
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, Any] = {}
        for index, values in state["state"].items():
            for name, value in values.items():
                target = tensors if isinstance(value, Tensor) else scalars
                target[f"{index}.{name}"] = value
        rng = {"cpu": torch.get_rng_state()}
        if self.task.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.task.device)
        save_directory(
            self.folder / "checkpoint",
            kind=KIND,
            meta={
                "config": plain(self.config),
                "epoch": self.epoch,
                "updates": self.updates,
                "seconds": self.seconds,
                "optimizer": {"groups": state["param_groups"], "scalars": scalars},
            },
            tensors={"model": self.model.state_dict(), "optimizer": tensors, "rng": rng},
        )

    def _load(self) -> None:
        folder = self.folder / "checkpoint"
        meta = load_meta(folder, kind=KIND)
        weights = load_tensors(folder / "model.safetensors")
        _check_fit(folder, weights, self.model)
        self.model.load_state_dict(weights)
        state: dict[int, dict[str, Any]] = {}
        saved = load_tensors(folder / "optimizer.safetensors")
        for key, value in {**saved, **meta["optimizer"]["scalars"]}.items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(
            {"state": state, "param_groups": meta["optimizer"]["groups"]}
        )
        rng = load_tensors(folder / "rng.safetensors")
        torch.set_rng_state(rng["cpu"])
        if self.task.device.type == "cuda" and "cuda" in rng:
            torch.cuda.set_rng_state(rng["cuda"], self.task.device)
        self.epoch, self.updates, self.seconds = meta["epoch"], meta["updates"], meta["seconds"]


def _check_fit(folder: Path, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise ValueError, naming the first difference, if a checkpoint is of another model."""
    for name, value in model.state_dict().items():
        saved = tuple(weights[name].shape) if name in weights else "missing"
        if saved != tuple(value.shape):
            raise ValueError(
                f"{folder}: does not fit this model: {name} is {saved} in the checkpoint and "
                f"{tuple(value.shape)} here (other data or other options?)"
            )


def _one_line(metrics: Metrics) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
