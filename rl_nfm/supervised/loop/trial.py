"""The training loop: epochs, evaluations and checkpoints of one part of a run.

A part is one seed, or a batch of them. A checkpoint is written after every evaluation. It holds the
states of torch's global generators, from which all randomness of a seed's training comes (a batch
of seeds has a generator for each, which begins anew with the epoch), so a resumed run on the same
device gives the same numbers bit for bit.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl_nfm.supervised.loop.options import plain
from rl_nfm.supervised.loop.reporting import MetricsLog, read_metrics
from rl_nfm.supervised.loop.seed_batch import SeedBatch
from rl_nfm.supervised.loop.trainee import Metrics, Trainee
from rl_nfm.support.optimizer import load_optimizer_state, optimizer_state
from rl_nfm.support.progress import Progress
from rl_nfm.support.storage import load_meta, load_tensors, save_directory, tidy

CHECKPOINT, BEST = "checkpoint", "best"


class Trial:
    """One part of a run: its task, model, optimiser and folder."""

    def __init__(
        self,
        task: type[Trainee[Any]],
        config: Any,
        device: torch.device,
        folder: Path,
        seed: int,
    ):
        torch.manual_seed(seed)
        self.seed = seed
        self.config = config
        self.folder = folder
        self.task = task(config, device)
        self.model = self.task.place_model()
        self.optimizer = self.task.build_optimizer(self.model)
        self.schedule = self.task.schedule
        self.epoch = 0
        self.updates = 0
        self.seconds = 0.0
        self.rates: list[list[float]] | None = []
        """Step sizes trained with, each with the epoch from which it held; none: not known."""
        for name in (CHECKPOINT, BEST):
            tidy(folder / name)  # a process killed while it wrote one left the former beside it
        if (folder / CHECKPOINT).is_dir():
            self._load()

    def run(self) -> dict[str, Any]:
        """Train to the last epoch or until patience runs out; returns the task's `outcome`."""
        log = MetricsLog(self.folder, last_epoch=self.epoch)
        history = self._history()
        progress = Progress(None, begun=self.updates, unit="update", name=self.folder.name)
        with contextlib.closing(log):
            while self.epoch < self.schedule.epochs and not self._has_stopped(history):
                start, before = time.perf_counter(), self.updates
                losses = self._train_epoch(progress)
                self.seconds += time.perf_counter() - start
                left = (self.updates - before) * (self.schedule.epochs - self.epoch)
                progress.expect(self.updates + left)
                if (
                    self.epoch % self.schedule.eval_every_epochs == 0
                    or self.epoch == self.schedule.epochs
                ):
                    metrics = {"train_loss": float(losses.mean()), **self._evaluate()}
                    log.write(self.epoch, metrics)
                    log.write_pictures(self.epoch, self._pictures())
                    progress.write(f"{self.folder.name} epoch {self.epoch}: {_one_line(metrics)}")
                    history.append({"epoch": self.epoch, **metrics})
                    if "validation" in metrics and self._best(history) is history[-1]:
                        self._save_best(metrics)
                    self._save()
        progress.close()
        return self._outcome()

    def _best(self, history: Sequence[Metrics]) -> Metrics:
        return history[self.task.best_index(history)]

    def _has_stopped(self, history: Sequence[Metrics]) -> bool:
        """Whether an evaluation just made is the `patience_epochs`th epoch since the best one."""
        patience = self.schedule.patience_epochs
        if patience is None or not history or history[-1]["epoch"] != self.epoch:
            return False  # epochs without an evaluation say nothing, and would not be kept
        return self.epoch - self._best(history)["epoch"] >= patience

    def _train_epoch(self, progress: Progress) -> Tensor:
        """One epoch; returns its mean loss, a scalar or that of each seed, [S]."""
        self.model.train()
        self._set_rate(self.rates, self.epoch)
        total, count = torch.zeros((), device=self.task.device), 0
        for batch in self.task.batches(self.epoch):
            total = total + self.task.update(self.model, self.optimizer, batch)
            count += 1
            progress.advance()
        if not count:
            raise ValueError(f"epoch {self.epoch + 1}: the task gave no batch to train on")
        self.epoch += 1
        self.updates += count
        self.task.after_epoch(self.model, self.optimizer, self.epoch)
        mean = total.double() / count
        self.task.check_losses(mean, self.epoch)
        return mean

    def _set_rate(self, rates: list[list[float]] | None, epoch: int) -> None:
        """Set the step sizes of an epoch, and note the first where it is not the one before."""
        self.task.set_learning_rates(self.optimizer, epoch)
        rate = self.optimizer.param_groups[0]["lr"]
        if rates is not None and (not rates or rates[-1][1] != rate):
            rates.append([epoch, rate])

    def _other_rates(self) -> list[list[float]] | None:
        """The step sizes trained with, where this config alone would not have led to them.

        So it is after a run was resumed with more epochs, if the step size depends on their number.
        """
        planned: list[list[float]] = []
        for epoch in range(self.epoch):
            self._set_rate(planned, epoch)
        return None if self.rates in (None, planned) else self.rates

    def _evaluate(self) -> Metrics:
        self.model.eval()
        with torch.no_grad(), self.task.autocast():
            return _numbers(self.task.evaluate(self.model))

    def _pictures(self) -> Mapping[str, Tensor]:
        with torch.no_grad(), self.task.autocast():
            return self.task.pictures(self.model)

    def _outcome(self) -> dict[str, Any]:
        history = self._history()
        if len(history) > len(read_metrics(self.folder)):
            print(f"note: {self.folder} has lost metrics: the best epoch is known, no curve")
        history = history or [{"epoch": self.epoch, **self._evaluate()}]
        if self.task.tested_weights == "best" and (self.folder / BEST).is_dir():
            load_weights(self.folder / BEST, self.model)
        self.model.eval()
        with torch.no_grad(), self.task.autocast():
            figures = self.task.figures(self.model, history)
        facts = {
            "seed": self.seed,
            "best_epoch": self._best(history)["epoch"],
            "parameters": sum(p.numel() for p in self.model.parameters()) // len(self._seeds),
            "epochs": self.epoch,
            "updates": self.updates,
            "train_seconds": round(self.seconds, 1),
        }
        if (rates := self._other_rates()) is not None:
            facts["learning_rates"] = rates
        if self.task.data_digest is not None:
            facts["data_digest"] = self.task.data_digest
        return self.task.outcome(facts, figures)

    def _history(self) -> list[Metrics]:
        """The metrics of each evaluation; of the best one also where its line was lost."""
        lines = read_metrics(self.folder)
        if (self.folder / BEST).is_dir():
            meta = load_meta(self.folder / BEST, kind=_kind(self.model))
            known = {line["epoch"] for line in lines}
            if meta["epoch"] <= self.epoch and meta["epoch"] not in known:
                lines = [{"epoch": meta["epoch"], **meta["metrics"]}, *lines]
        return sorted(lines, key=lambda line: line["epoch"])

    @property
    def _seeds(self) -> list[int]:
        """The seed of each model that is trained."""
        return [*self.model.seeds] if isinstance(self.model, SeedBatch) else [self.seed]

    def _of_data(self) -> dict[str, Any]:
        """What weights say of the data that they were trained on."""
        return {"data": self.task.data_digest, "data_facts": self.task.data_facts()}

    def _save_best(self, metrics: Metrics) -> None:
        save_directory(
            self.folder / BEST,
            kind=_kind(self.model),
            meta={
                "epoch": self.epoch,
                "updates": self.updates,
                "metrics": metrics,
                **self._of_data(),
            },
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
        saved = {"model": self.model.state_dict(), "optimizer": tensors, "rng": rng}
        if more := self.task.state():
            saved["more"] = more
        save_directory(
            self.folder / CHECKPOINT,
            kind=_kind(self.model),
            meta={
                "config": plain(self.config),
                "seeds": self._seeds,
                "epoch": self.epoch,
                "updates": self.updates,
                "seconds": self.seconds,
                "learning_rates": self.rates,
                **self._of_data(),
                "optimizer": {"groups": groups, "scalars": scalars},
            },
            tensors=saved,
        )

    def _load(self) -> None:
        folder = self.folder / CHECKPOINT
        meta = load_meta(folder, kind=_kind(self.model))
        if (seeds := meta.get("seeds", self._seeds)) != self._seeds:
            raise ValueError(
                f"trials: seeds {self._seeds} are not allowed: {folder} holds {seeds}, which are "
                "trained as one batch"
            )
        if meta.get("data", self.task.data_digest) != self.task.data_digest:
            raise ValueError(f"data_folder: holds other data than {self.folder} was trained on")
        load_weights(folder, self.model)
        # Batches of seeds were once saved without groups, generators and one of the two counters.
        saved_optimizer = meta.get("optimizer", {"groups": None, "scalars": {}})
        load_optimizer_state(
            self.optimizer,
            {**load_tensors(folder / "optimizer.safetensors"), **saved_optimizer["scalars"]},
            groups=saved_optimizer["groups"],
        )
        if (folder / "rng.safetensors").is_file():
            rng = load_tensors(folder / "rng.safetensors")
            torch.set_rng_state(rng["cpu"])
            if self.task.device.type == "cuda" and "cuda" in rng:
                torch.cuda.set_rng_state(rng["cuda"], self.task.device)
        if (folder / "more.safetensors").is_file():
            self.task.load_state(load_tensors(folder / "more.safetensors"), meta)
        self.epoch = meta["epoch"] if "epoch" in meta else meta["updates"]
        self.updates, self.seconds = meta.get("updates", 0), meta["seconds"]
        self.rates = meta.get("learning_rates")
        if self.epoch > self.schedule.epochs:
            raise ValueError(
                f"epochs: {self.schedule.epochs} is not allowed: {self.folder} has been trained "
                f"for {self.epoch}"
            )


def _kind(model: nn.Module) -> str:
    """What a checkpoint is called, which says whether parameters have a seed axis."""
    return f"rl-nfm supervised {'seeds' if isinstance(model, SeedBatch) else 'trial'}"


def load_weights(folder: Path, model: nn.Module) -> dict[str, Any]:
    """Put the weights of a trial's `checkpoint` or `best` into a model; returns its meta data.

    Raises:
        ValueError: missing, damaged, or of another model.
    """
    meta = load_meta(folder, kind=_kind(model))
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


def _numbers(metrics: Mapping[str, Any]) -> Metrics:
    """A task's metrics as numbers of Python, whatever kind of scalar they are.

    Raises:
        ValueError: one is none.
    """
    found: dict[str, float] = {}
    for name, value in metrics.items():
        try:
            found[name] = value if isinstance(value, int) else float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{name}: the task's metric must be a number, got {value!r}") from None
    return found


def _one_line(metrics: Metrics) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
