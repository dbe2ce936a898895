"""One training-set size of the modular task: its models, its training and its metrics."""

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rl_nfm.modular import (
    BooleanTask,
    HierarchicallyModular,
    boolean_task,
    known_routing,
    redraw,
    wiring,
)
from rl_nfm.modular.routing import gumbel_noise
from rl_nfm.supervised.data.modular_data import (
    BitRows,
    DigitRows,
    epoch_data,
    make_rows,
    split_rows,
)
from rl_nfm.supervised.loop.options import plain
from rl_nfm.supervised.loop.reporting import MetricsLog
from rl_nfm.supervised.loop.seed_batch import SeedBatch, seed_generator
from rl_nfm.supervised.tasks.modular_config import ModularConfig, check_config
from rl_nfm.supervised.tasks.modular_models import MODELS
from rl_nfm.support.device import choose_device
from rl_nfm.support.progress import Progress


def make_tasks(config: ModularConfig) -> tuple[list[BooleanTask], BitRows]:
    """The tasks of a run and their rows.

    Raises:
        ValueError: a modularity, number of tasks or data that does not fit.
    """
    tasks = [boolean_task(config.modularity, task) for task in range(config.num_tasks)]
    rows = make_rows(
        config.modularity, tasks, config.dataset_noise, config.data, config.data_folder
    )
    check_config(config)
    return tasks, rows


class Run:
    """All seeds of one training-set size: models, data and metrics.

    Args:
        config: the options of the run.
        share: the share of the rows to train on.
    """

    def __init__(self, config: ModularConfig, share: float):
        self.config = config
        self.device = choose_device(config.device)
        self.tasks, self.rows = make_tasks(config)
        self.split = split_rows(len(self.rows.bits), share, config.dataset_split_seed)
        self.seeds = range(config.seed, config.seed + config.trials)
        candidates = range(config.routing_candidates)
        self.batch = SeedBatch(
            lambda: MODELS[config.model].build(config, self.tasks, self.rows.input_size),
            [seed + 1_000_003 * candidate for seed in self.seeds for candidate in candidates],
            learning_rates={
                "module_input_logits": config.learning_rate_module_input,
                "location_logits": config.learning_rate_module_location,
                "": config.learning_rate,
            },
            weight_decay=config.weight_decay,
            optimizer=config.optimizer,
            device=self.device,
        )
        self.test_inputs = self.rows.test_inputs().to(self.device)
        self.epoch = 0
        self.seconds = 0.0

    def train(self, folder: Path) -> None:
        """Train to the last epoch, with evaluations and checkpoints."""
        config = self.config
        if (folder / "checkpoint").is_dir():
            meta, _ = self.batch.load(folder / "checkpoint")
            self.epoch, self.seconds = meta["epoch"], meta["seconds"]
        log = MetricsLog(folder, last_epoch=self.epoch)
        rows = len(self.split.train) * config.samples_per_row
        updates = -(-rows // config.batch_size)
        progress = Progress(
            config.epochs * updates,
            begun=self.epoch * updates,
            unit="update",
            name=folder.name,
        )
        with contextlib.closing(log):
            while self.epoch < config.epochs:
                start = time.perf_counter()
                self.train_epoch(progress)
                self._search()
                self.seconds += time.perf_counter() - start
                if self.epoch % config.eval_every_epochs == 0 or self.epoch == config.epochs:
                    log.write(self.epoch, means(self.figures()))
                    meta = {"config": plain(config), "epoch": self.epoch, "seconds": self.seconds}
                    self.batch.save(folder / "checkpoint", meta, {})
        progress.close()

    def train_epoch(self, progress: Progress | None = None) -> None:
        """One pass over the training rows; each seed has its own order."""
        config = self.config
        train, copies = self.split.train, config.samples_per_row
        data = epoch_data(self.rows, train, copies, self.seeds, self.epoch)
        parts = [
            tensor.to(self.device)
            .repeat_interleave(config.routing_candidates, 0)
            .split(config.batch_size, dim=1)
            for tensor in vars(data).values()
        ]
        noise = self._noise(len(parts[0]))
        self.batch.scale_rates(rate_factor(config, self.epoch))
        self.batch.model.train()
        for update, (inputs, labels, task_id) in enumerate(zip(*parts, strict=True)):
            now = [samples[:, update] for samples in noise]
            if config.per_sample_routing:
                now = [samples[:, : inputs.shape[1]] for samples in now]
            logits = self.batch(inputs, task_id, now)
            self.batch.update(batch_losses(config.loss, logits, labels))
            if progress is not None:
                progress.advance()
        self.epoch += 1

    def _search(self) -> None:
        """Replace bad candidates when it is due, but not in the last quarter of the epochs."""
        config, model = self.config, self.batch.model
        due = self.epoch % config.search_every_epochs == 0 and self.epoch <= 0.75 * config.epochs
        if config.routing_candidates == 1 or not due:
            return
        assert isinstance(model, HierarchicallyModular)
        generator = seed_generator(config.seed, self.epoch)
        redraw(
            model,
            self.batch.parameters,
            self.batch.optimizer,
            self._train_losses(),
            config.routing_candidates,
            generator,
        )

    def _noise(self, updates: int) -> list[Tensor]:
        """Routing noise of an epoch, each [S, updates, ...]."""
        shapes = self.batch.model.noise_shapes(self.config.batch_size)  # pyright: ignore[reportCallIssue]
        generators = [seed_generator(seed, -1 - self.epoch) for seed in self.batch.seeds]
        return [
            torch.stack([gumbel_noise((updates, *shape), g) for g in generators]).to(self.device)
            for shape in shapes
        ]

    @torch.no_grad()
    def figures(self) -> list[dict[str, Any]]:
        """The metrics of each seed, for its candidate with the smallest training loss."""
        best = self._train_losses().view(len(self.seeds), -1).argmin(1).cpu()
        best += torch.arange(len(self.seeds)) * self.config.routing_candidates
        labels = self.rows.labels[:, :, None].bool()  # [T, R, 1, outputs]
        right = ((self._logits() > 0) == labels[:, None]).float()  # [T, S P, R, C, outputs]
        tests = {"train": self.split.train, "val": self.split.validation, "test": self.split.test}
        rows = []
        for seed, index in zip(self.seeds, best.tolist(), strict=True):
            correct = right[:, index]
            row: dict[str, Any] = {"seed": seed}
            for name, chosen in tests.items():
                row[f"{name}_accuracy"] = float(correct[:, chosen].mean())
                row[f"{name}_rows"] = float(correct[:, chosen].prod(-1).mean())
            per_output = correct[:, self.split.test].mean((0, 1, 2)).tolist()
            row |= {f"test_output_{i}": value for i, value in enumerate(per_output)}
            row["all_rows"] = float(correct.prod(-1).mean())
            if right_modules := self._right_modules(index):
                row["right_modules"] = sum(right_modules) / len(right_modules)
            row["per_row"] = correct.mean((0, 2, 3)).tolist()
            rows.append(row)
        return rows

    def _logits(self) -> Tensor:
        """Logits for all rows, [T, S P, R, C, outputs]."""
        self.batch.model.eval()
        models, count = len(self.batch.seeds), len(self.test_inputs)
        inputs = self.test_inputs.expand(models, *self.test_inputs.shape)
        answers = []
        for task in range(len(self.tasks)):
            task_id = torch.full((models, count), task, device=self.device)
            answers.append(self.batch(inputs, task_id, []).cpu())
        return torch.stack(answers).unflatten(2, (-1, self.rows.copies))

    @torch.no_grad()
    def _train_losses(self) -> Tensor:
        """Loss of each model on the clean training rows, [S P]."""
        logits = self._logits()[:, :, self.split.train]
        labels = self.rows.labels[:, None, self.split.train, None].expand_as(logits)
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return losses.mean((0, 2, 3, 4))

    def _right_modules(self, index: int) -> list[bool]:
        """For each output of each task, whether its modules are wired as in the task.

        Empty where that is not known: it is for bits and modules that read two units.
        """
        model = self.batch.model
        if not isinstance(model, HierarchicallyModular) or isinstance(self.rows, DigitRows):
            return []
        chosen = [units[index] for units in model.chosen_units(self.batch.parameters)]
        found = []
        for number, task in enumerate(self.tasks):
            levels = [units[number].T.tolist() for units in chosen]  # level, position, units
            wanted = known_routing([task], [len(level) for level in task.levels])
            learned = wiring(levels)
            found += [a == b for a, b in zip(learned, wiring(wanted.module_inputs[0]), strict=True)]
        return found

    def baseline(self) -> float:
        """Test accuracy of always answering 0."""
        return 1 - float(self.rows.labels[:, self.split.test].mean())


def rate_factor(config: ModularConfig, epoch: int) -> float:
    """The factor of the learning rates in an epoch, counted from 0."""
    if config.scheduler == "cosine":
        return 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
    return config.gamma**epoch


def batch_losses(loss: Literal["BCE", "MSE", "CE"], logits: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of each seed, [S], of logits and labels [S, B, outputs]."""
    if loss == "BCE":
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean((1, 2))
    if loss == "MSE":
        return (logits.sigmoid() - labels).square().mean((1, 2))
    return -(labels * logits.sigmoid().log_softmax(-1)).sum(-1).mean(1)


def means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over seeds of all metrics that are numbers."""
    names = [n for n, value in rows[0].items() if isinstance(value, float)]
    return {name: sum(row[name] for row in rows) / len(rows) for name in names}
