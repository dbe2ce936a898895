"""One seed of a supervised run: epochs, evaluation and checkpoints.

A checkpoint is written after every evaluation. It holds the states of torch's global generators,
from which all randomness of training comes, so a resumed run on the same device gives the same
numbers bit for bit.
"""

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl_nfm.supervised.loop.options import plain
from rl_nfm.supervised.loop.reporting import MetricsLog, read_metrics
from rl_nfm.supervised.loop.task import LoopConfig, Metrics, Task
from rl_nfm.support.optimizer import load_optimizer_state, optimizer_state
from rl_nfm.support.progress import Progress
from rl_nfm.support.storage import load_meta, load_tensors, save_directory

KIND = "rl-nfm supervised trial"
CHECKPOINT, BEST = "checkpoint", "best"


class Trial:
    """One seed: its task, model, optimiser and folder."""

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
        if (folder / CHECKPOINT).is_dir():
            self._load()

    def run(self) -> dict[str, Any]:
        """Train to the last epoch or until patience runs out; returns the trial's result."""
        log = MetricsLog(self.folder, last_epoch=self.epoch)
        history = read_metrics(self.folder)
        progress = Progress(None, begun=self.updates, unit="update", name=self.folder.name)
        with contextlib.closing(log):
            while self.epoch < self.config.epochs and not self._has_stopped(history):
                start = time.perf_counter()
                loss = self._train_epoch(progress)
                self.seconds += time.perf_counter() - start
                progress.expect(self.updates // self.epoch * self.config.epochs)
                if (
                    self.epoch % self.config.eval_every_epochs == 0
                    or self.epoch == self.config.epochs
                ):
                    metrics = {"train_loss": loss, **self._evaluate()}
                    log.write(self.epoch, metrics)
                    log.write_pictures(self.epoch, self._pictures())
                    progress.write(f"{self.folder.name} epoch {self.epoch}: {_one_line(metrics)}")
                    history.append({"epoch": self.epoch, **metrics})
                    if "validation" in metrics and self._best(history) is history[-1]:
                        self._save_best(metrics)
                    self._save()
        progress.close()
        return self._result()

    def _best(self, history: Sequence[Metrics]) -> Metrics:
        return history[self.task.best_index(history)]

    def _has_stopped(self, history: Sequence[Metrics]) -> bool:
        """Whether the best evaluation is `patience_epochs` epochs ago or more."""
        patience = self.config.patience_epochs
        if patience is None or not history:
            return False
        return self.epoch - self._best(history)["epoch"] >= patience

    def _train_epoch(self, progress: Progress) -> float:
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
            if self.config.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
            self.optimizer.step()
            total += loss.detach()
            count += 1
            progress.advance()
        self.epoch += 1
        self.updates += count
        mean = float(total) / max(count, 1)
        if not math.isfinite(mean):
            raise ValueError(
                f"the loss of epoch {self.epoch} is {mean}: lower learning_rate "
                f"(now {self.config.learning_rate}) or set max_grad_norm"
            )
        return mean

    def _evaluate(self) -> Metrics:
        self.model.eval()
        with torch.no_grad(), self._autocast():
            return self.task.evaluate(self.model)

    def _pictures(self) -> Mapping[str, Tensor]:
        with torch.no_grad(), self._autocast():
            return self.task.pictures(self.model)

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.task.device.type, torch.bfloat16, enabled=enabled)

    def _result(self) -> dict[str, Any]:
        history = [
            {k: v for k, v in row.items() if k != "epoch"} for row in read_metrics(self.folder)
        ]
        if not history:  # epochs = 0: the untrained model
            history = [self._evaluate()]
        if self.task.tested_weights == "best" and (self.folder / BEST).is_dir():
            load_weights(self.folder / BEST, self.model)
        self.model.eval()
        with torch.no_grad(), self._autocast():
            more = self.task.test(self.model)
            by_step = self.task.by_step(self.model)
        best = self._best(read_metrics(self.folder) or [{"epoch": 0}])
        return {
            "seed": self.seed,
            "best_epoch": best["epoch"],
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "epochs": self.epoch,
            "updates": self.updates,
            "train_seconds": round(self.seconds, 1),
            "metrics": {**self.task.summarise(history), **more},
            **({"by_step": by_step} if by_step else {}),
        }

    def _save_best(self, metrics: Metrics) -> None:
        save_directory(
            self.folder / BEST,
            kind=KIND,
            meta={"epoch": self.epoch, "updates": self.updates, "metrics": metrics},
            tensors={"model": self.model.state_dict()},
        )

    def _save(self) -> None:
        state = optimizer_state(self.optimizer)
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        scalars = {key: value for key, value in state.items() if key not in tensors}
        groups = self.optimizer.state_dict()["param_groups"]
        rng = {"cpu": torch.get_rng_state()}
        if self.task.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.task.device)
        save_directory(
            self.folder / CHECKPOINT,
            kind=KIND,
            meta={
                "config": plain(self.config),
                "epoch": self.epoch,
                "updates": self.updates,
                "seconds": self.seconds,
                "optimizer": {"groups": groups, "scalars": scalars},
            },
            tensors={"model": self.model.state_dict(), "optimizer": tensors, "rng": rng},
        )

    def _load(self) -> None:
        folder = self.folder / CHECKPOINT
        meta = load_weights(folder, self.model)
        moments = load_tensors(folder / "optimizer.safetensors")
        saved_optimizer = meta["optimizer"]
        load_optimizer_state(
            self.optimizer,
            {**moments, **saved_optimizer["scalars"]},
            groups=saved_optimizer["groups"],
        )
        rng = load_tensors(folder / "rng.safetensors")
        torch.set_rng_state(rng["cpu"])
        if self.task.device.type == "cuda" and "cuda" in rng:
            torch.cuda.set_rng_state(rng["cuda"], self.task.device)
        self.epoch, self.updates, self.seconds = meta["epoch"], meta["updates"], meta["seconds"]


def load_weights(folder: Path, model: nn.Module) -> dict[str, Any]:
    """Put the weights of a trial's `checkpoint` or `best` into a model; returns its meta data.

    Raises:
        ValueError: missing, damaged, or of another model.
    """
    meta = load_meta(folder, kind=KIND)
    weights = load_tensors(folder / "model.safetensors")
    _check_fit(folder, weights, model)
    model.load_state_dict(weights)
    return meta


def _check_fit(folder: Path, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise ValueError, naming the first difference, if a checkpoint belongs to another model."""
    for name, value in model.state_dict().items():
        saved = tuple(weights[name].shape) if name in weights else "missing"
        if saved != tuple(value.shape):
            raise ValueError(
                f"{folder}: does not fit this model: {name} is {saved} in the checkpoint and "
                f"{tuple(value.shape)} here (other data or other options?)"
            )


def _one_line(metrics: Metrics) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
