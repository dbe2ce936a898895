"""Hierarchically modular networks on Boolean tasks, to see whether they generalise from few rows.

From "How Can Knowledge of a Task's Modular Structure Improve Generalization and Training
Efficiency?" (TMLR 2025); the flags are those of its code. A network is trained on some rows of a
truth table and tested on the others. In the task 6 3 2 2 each output is 1 in a quarter of all rows,
so always answering 0 is right in 75 % of them.

Differs from the published code: boolean flags need no value; `dataset_split` takes several shares;
`trials` seeds are trained as one batch; a run writes JSON, a table and a plot, never pickles;
rows not trained on are split evenly between validation and test. With `routing_candidates` above 1
the routing is searched (`rl_nfm.modular.search`), where gradients alone mostly find none.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.modular import (
    BooleanTask,
    Draws,
    HierarchicallyModular,
    boolean_task,
    redraw,
)
from rl_nfm.modular.routing import gumbel_noise
from rl_nfm.supervised.data.modular_data import (
    BitRows,
    DigitRows,
    epoch_data,
    make_rows,
    split_rows,
    write_tables,
)
from rl_nfm.supervised.loop.run import register_loop_task
from rl_nfm.supervised.loop.seed_batch import SeedBatch, SeedBatchTask, seed_generator
from rl_nfm.supervised.loop.trainee import Metrics, Part, Schedule
from rl_nfm.supervised.tasks.modular_config import PRESETS, ModularConfig, check_config
from rl_nfm.supervised.tasks.modular_models import MODELS, right_modules
from rl_nfm.supervised.tasks.modular_report import means, write_report

NAME = "modular"
_REDRAWS = 500_000
"""What is added to the epoch for random numbers other than those of its order of examples."""


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


class ModularTask(SeedBatchTask[ModularConfig]):
    """All seeds of one training-set size; a seed may have several candidates of a network."""

    models = MODELS
    free_in_evaluation: ClassVar = ("data", "data_folder")

    def __init__(self, config: ModularConfig, device: torch.device):
        super().__init__(config, device)
        self.share = config.dataset_split[0]
        candidates = range(config.routing_candidates)
        self.network_seeds = [seed + 1_000_003 * c for seed in self.seeds for c in candidates]
        self.noise_shapes: list[tuple[int, ...]] = []
        self.tasks, self.rows = make_tasks(config)
        self.data_digest = self.rows.digest
        self.split = split_rows(len(self.rows.bits), self.share, config.dataset_split_seed)
        self.test_inputs = self.rows.test_inputs().to(device)

    @classmethod
    def parts(cls, config: ModularConfig) -> list[Part]:
        """Each share of rows to train on."""
        count = len(make_tasks(config)[1].bits)
        parts = []
        for share in dict.fromkeys(config.dataset_split):
            split_rows(count, share, config.dataset_split_seed)  # refuses a share that is too large
            part = dataclasses.replace(config, dataset_split=(share,))
            parts.append(Part(folder=f"split{share:g}", config=part, seed=config.seed))
        return parts

    @property
    def schedule(self) -> Schedule:
        """That of the options."""
        return Schedule(epochs=self.config.epochs, eval_every_epochs=self.config.eval_every_epochs)

    def build_one(self) -> nn.Module:
        """See `modular_models`."""
        return MODELS[self.config.model].build(self.config, self.tasks, self.rows.input_size)

    def build_model(self) -> nn.Module:
        """All candidates of all seeds, those of a seed together."""
        batch = SeedBatch(self.build_one, self.network_seeds)
        first: Any = batch.first
        self.noise_shapes = first.noise_shapes(self.config.batch_size)
        return batch

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser, with step sizes of their own for the routing."""
        assert isinstance(model, SeedBatch)
        config = self.config
        rates = {
            "module_input_logits": config.learning_rate_module_input,
            "location_logits": config.learning_rate_module_location,
            "": config.learning_rate,
        }
        return model.make_optimizer(config.optimizer, rates, weight_decay=config.weight_decay)

    def rate_factor(self, epoch: int) -> float:
        """See `scheduler`."""
        return rate_factor(self.config, epoch)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor, list[Tensor]]]:
        """One pass over the training rows, in each seed's own order, with the routing's noise."""
        config = self.config
        if epoch == 0 and config.dataset_path is not None:
            write_tables(config.dataset_path, config.modularity, self.tasks)
        data = epoch_data(self.rows, self.split.train, config.samples_per_row, self.seeds, epoch)
        parts = [
            tensor.to(self.device)
            .repeat_interleave(config.routing_candidates, 0)
            .split(config.batch_size, dim=1)
            for tensor in vars(data).values()
        ]
        noise = self._noise(len(parts[0]), epoch)
        for update, (inputs, labels, task_id) in enumerate(zip(*parts, strict=True)):
            now = [samples[:, update] for samples in noise]
            if config.per_sample_routing:
                now = [samples[:, : inputs.shape[1]] for samples in now]
            yield inputs, labels, task_id, now

    def _noise(self, updates: int, epoch: int) -> list[Tensor]:
        """Routing noise of an epoch, each [S, updates, ...]."""
        generators = [seed_generator(seed, -1 - epoch) for seed in self.network_seeds]
        return [
            torch.stack([gumbel_noise((updates, *shape), g) for g in generators]).to(self.device)
            for shape in self.noise_shapes
        ]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor, list[Tensor]]) -> Tensor:
        """See `batch_losses`."""
        inputs, labels, task_id, noise = batch
        return batch_losses(self.config.loss, model(inputs, task_id, noise), labels)

    def after_epoch(self, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        """Replace bad candidates when it is due, but not in the last quarter of the epochs."""
        config = self.config
        due = epoch % config.search_every_epochs == 0 and epoch <= 0.75 * config.epochs
        if config.routing_candidates == 1 or not due:
            return
        assert isinstance(model, SeedBatch)
        assert isinstance(model.first, HierarchicallyModular)
        redraw(
            model.first,
            model.values,
            optimizer,
            self._train_losses(model.eval()),
            config.routing_candidates,
            Draws([seed_generator(seed, _REDRAWS + epoch) for seed in self.seeds]),
        )

    def evaluate(self, model: nn.Module) -> Metrics:
        """Means over seeds of their figures."""
        return means(self.figures(model, []))

    def figures(self, model: nn.Module, history: Sequence[Metrics]) -> list[dict[str, Any]]:
        """The metrics of each seed, for its candidate with the smallest training loss."""
        del history
        assert isinstance(model, SeedBatch)
        losses = self._train_losses(model).nan_to_num(math.inf)  # one that diverged is not best
        best = losses.view(len(self.seeds), -1).argmin(1).cpu()
        best += torch.arange(len(self.seeds)) * self.config.routing_candidates
        labels = self.rows.labels[:, :, None].bool()  # [T, R, 1, outputs]
        right = ((self._logits(model) > 0) == labels[:, None]).float()  # [T, S P, R, C, outputs]
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
            known = not isinstance(self.rows, DigitRows)
            if wired := right_modules(model, self.tasks, index) if known else []:
                row["right_modules"] = sum(wired) / len(wired)
            row["per_row"] = correct.mean((0, 2, 3)).tolist()
            rows.append(row)
        return rows

    def _logits(self, model: SeedBatch) -> Tensor:
        """Logits for all rows, [T, S P, R, C, outputs]."""
        models, count = len(model.seeds), len(self.test_inputs)
        inputs = self.test_inputs.expand(models, *self.test_inputs.shape)
        answers = []
        for task in range(len(self.tasks)):
            task_id = torch.full((models, count), task, device=self.device)
            answers.append(model(inputs, task_id, []).cpu())
        return torch.stack(answers).unflatten(2, (-1, self.rows.copies))

    @torch.no_grad()
    def _train_losses(self, model: SeedBatch) -> Tensor:
        """Loss of each model on the clean training rows, [S P]."""
        logits = self._logits(model)[:, :, self.split.train]
        labels = self.rows.labels[:, None, self.split.train, None].expand_as(logits)
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return losses.mean((0, 2, 3, 4))

    def baseline(self) -> float:
        """Test accuracy of always answering 0."""
        return 1 - float(self.rows.labels[:, self.split.test].mean())

    def outcome(self, facts: Mapping[str, Any], figures: list[dict[str, Any]]) -> dict[str, Any]:
        """The figures of one share of the rows."""
        split = {
            "dataset_split": self.share,
            "train_rows": len(self.split.train),
            "test_rows": len(self.split.test),
            "baseline": self.baseline(),
            "train_seconds": facts["train_seconds"],
            "mean": means(figures),
            "trials": figures,
        }
        split |= {name: facts[name] for name in ("learning_rates", "data_digest") if name in facts}
        return {"parameters": facts["parameters"], "split": split}

    @classmethod
    def result(cls, outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Parameters of one network, and the figures of all shares."""
        splits = [outcome["split"] for outcome in outcomes]
        return {"parameters": outcomes[0]["parameters"], "splits": splits}

    @classmethod
    def report(cls, folder: Path, result: Mapping[str, Any]) -> str:
        """The table, which is written beside the result, with its plot."""
        model, parameters = result["config"]["model"], result["parameters"]
        begun = f"{NAME} {model}, {parameters} parameters: {folder / 'result.json'}\n"
        return begun + write_report(folder, [result])


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


register_loop_task(
    NAME,
    "hierarchically modular networks on Boolean tasks, from few rows",
    ModularTask,
    PRESETS,
    description=__doc__ or "",
    write_table=write_report,
)
