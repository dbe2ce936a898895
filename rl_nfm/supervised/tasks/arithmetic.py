"""Arithmetic units on sums, differences, products and quotients of sums of their inputs.

The simple function task of NALU (Trask et al. 2018) in the form of Madsen & Johansen 2020
(arXiv 2001.05016, section 4.1 and appendix C): inputs from U[1, 2] in training, from U[2, 6] at
test; a and b are sums of subsets of them, the target is a op b.
  * `simple`: a = x1 + x2, b = x1 + x2 + x3 + x4 of 4 inputs. Published, of 100 seeds in 200,000
    updates on `mul`: NMU 94 %, NALU 26 % (shared weights), NAC 13 %.
  * `subsets`: neighbouring subsets of 100 inputs, each a quarter of them, half overlapping.

A seed succeeds if its extrapolation error, at the evaluation of its least interpolation error, is
below that of a perfect solution whose first weights are off by 1e-5. There are two layers, with
hidden size 2: `nmu` is NAU then NMU; `nac` is a NAC, then one in log space for mul and div; the
others have two equal layers. All seeds train as one batch; each gives the same numbers as alone.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rl_nfm.arithmetic import (
    INALU,
    NAU,
    NMU,
    ArithmeticLayer,
    MultiplicativeAccumulatorCell,
    NeuralAccumulatorCell,
    NeuralArithmeticLogicUnit,
    project_,
    sparsity_error,
)
from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.loop.options import (
    parse_config,
    plain,
    run_folder,
    write_config,
)
from rl_nfm.supervised.loop.presets import Presets
from rl_nfm.supervised.loop.reporting import MetricsLog, versions, write_result
from rl_nfm.supervised.loop.seed_batch import SeedBatch, seed_generator
from rl_nfm.supervised.models import Models
from rl_nfm.supervised.registry import TaskEntry, register_task
from rl_nfm.supervised.tasks.arithmetic_function import ArithmeticConfig, FunctionTask, summarise
from rl_nfm.support.bare_flags import spell_out
from rl_nfm.support.device import choose_device
from rl_nfm.support.progress import Progress

NAME = "arithmetic"
TEST_SAMPLES = 10_000
CHUNK = 100
"""Number of updates whose batches are drawn together."""

PRESETS = Presets("arithmetic", ArithmeticConfig)
UNITS = Models("arithmetic")
"""A unit is registered as a function that makes a layer from the options, the numbers of its inputs
and outputs, and its index: 0 or 1."""
_RAMP = ("regularizer", "ramp_start", "ramp_end")

COLUMNS = Columns(
    shown=("success", "solved_at", "extrapolation", "sparsity_error"), percent=("success",)
)


class UnitStack(nn.Module):
    """Two layers of arithmetic units.

    Args:
        config: the options of the run.
        inputs: I, the number of inputs.
    """

    def __init__(self, config: ArithmeticConfig, inputs: int):
        super().__init__()
        hidden = config.hidden_size
        make = UNITS[config.model].build
        self.layers = nn.ModuleList((make(config, inputs, hidden, 0), make(config, hidden, 1, 1)))

    def forward(self, x: Tensor, *, extra: Literal["none", "penalty", "sparsity"] = "none") -> Any:
        """From [B, I] to [B]; `extra` adds a scalar: the regularisers' sum or sparsity error."""
        y = self.layers[1](self.layers[0](x)).squeeze(-1)
        if extra == "none":
            return y
        layers = [layer for layer in self.layers if isinstance(layer, ArithmeticLayer)]
        if extra == "penalty":
            return y, torch.stack([layer.regularizer() for layer in layers]).sum()
        weights = [w for layer in layers for w in layer.effective_weights()]
        weights += [layer.weight for layer in self.layers if isinstance(layer, nn.Linear)]
        return y, torch.stack([sparsity_error(weight) for weight in weights]).max()


@UNITS.register("linear", "linear layers without bias")
def _linear(config: ArithmeticConfig, inputs: int, outputs: int, index: int) -> nn.Module:
    del config, index
    return nn.Linear(inputs, outputs, bias=False)


@UNITS.register("nac", "neural accumulators, the second in log space for mul and div")
def _nac(config: ArithmeticConfig, inputs: int, outputs: int, index: int) -> nn.Module:
    in_log_space = index == 1 and config.op in ("mul", "div")
    return (MultiplicativeAccumulatorCell if in_log_space else NeuralAccumulatorCell)(
        inputs, outputs
    )


@UNITS.register("nalu", "neural arithmetic logic units", reads=("share_weights",))
def _nalu(config: ArithmeticConfig, inputs: int, outputs: int, index: int) -> nn.Module:
    del index
    return NeuralArithmeticLogicUnit(inputs, outputs, share_weights=config.share_weights, eps=1e-7)


@UNITS.register("inalu", "improved NALUs", reads=_RAMP)
def _inalu(config: ArithmeticConfig, inputs: int, outputs: int, index: int) -> nn.Module:
    del config, index
    return INALU(inputs, outputs)


@UNITS.register("nau", "neural addition units", reads=_RAMP)
def _nau(config: ArithmeticConfig, inputs: int, outputs: int, index: int) -> nn.Module:
    del config, index
    return NAU(inputs, outputs)


@UNITS.register("nmu", "a neural addition unit, then a neural multiplication unit", reads=_RAMP)
def _nmu(config: ArithmeticConfig, inputs: int, outputs: int, index: int) -> nn.Module:
    del config
    return (NAU, NMU)[index](inputs, outputs)


def ramp(config: ArithmeticConfig, update: int) -> float:
    """Factor of the regulariser at an update (Madsen & Johansen, section 2.2)."""
    if "regularizer" not in UNITS[config.model].reads:
        return 0.0
    share = (update - config.ramp_start) / (config.ramp_end - config.ramp_start)
    return config.regularizer * min(max(share, 0.0), 1.0)


class Run:
    """All seeds of a run: their models, data and history."""

    def __init__(self, config: ArithmeticConfig):
        self.config = config
        self.device = choose_device(config.device)
        seeds = range(config.seed, config.seed + config.trials)
        self.task = FunctionTask(config, seeds)
        self.batch = SeedBatch(
            lambda: UnitStack(config, self.task.inputs),
            seeds,
            learning_rates={"": config.learning_rate},
            device=self.device,
        )
        self.tests = [
            self.task.draw(TEST_SAMPLES, bounds, torch.Generator().manual_seed(index))
            for index, bounds in enumerate((config.interpolation, config.extrapolation))
        ]
        self.threshold = self.task.threshold()
        self.history = torch.zeros(0, 3, config.trials)
        """Evaluation, (interpolation error, extrapolation error, sparsity error), seed."""
        self.evaluated: list[int] = []
        """The number of updates before each evaluation."""
        self.updates = 0
        self.seconds = 0.0

    def train(self, folder: Path) -> None:
        """Train to the last update, with evaluations and checkpoints."""
        config = self.config
        if (folder / "checkpoint").is_dir():
            meta, more = self.batch.load(folder / "checkpoint")
            self.updates, self.seconds = meta["updates"], meta["seconds"]
            self.history, self.evaluated = more["history"], meta["evaluated"]
        log = MetricsLog(folder, last_epoch=self.updates)
        progress = Progress(config.updates, begun=self.updates, unit="update", name=folder.name)
        with contextlib.closing(log):
            while self.updates < config.updates:
                start = time.perf_counter()
                count = min(config.eval_every_updates, config.updates - self.updates)
                self._train_updates(count, progress)
                self.seconds += time.perf_counter() - start
                self.evaluate()
                solved = float((self.history[-1, 1] < self.threshold).float().mean())
                middle = self.history[-1].nan_to_num(math.inf).median(1).values.tolist()
                names = ("interpolation_median", "extrapolation_median", "sparsity_median")
                log.write(self.updates, {**dict(zip(names, middle, strict=True)), "solved": solved})
                self.batch.save(
                    folder / "checkpoint",
                    {
                        "config": plain(config),
                        "updates": self.updates,
                        "evaluated": self.evaluated,
                        "seconds": self.seconds,
                    },
                    {"history": self.history},
                )
        progress.close()

    def _train_updates(self, count: int, progress: Progress) -> None:
        for first in range(self.updates, self.updates + count, CHUNK):
            size = min(CHUNK, self.updates + count - first)
            inputs, targets = self._chunk(first, size)
            for index in range(size):
                self._update(inputs[:, index], targets[:, index], ramp(self.config, first + index))
                progress.advance()
        self.updates += count

    def _chunk(self, first: int, size: int) -> tuple[Tensor, Tensor]:
        """Batches of `size` updates: inputs [S, size, B, I], targets [S, size, B]."""
        config = self.config
        rows = [
            self.task.draw(
                size * config.batch_size, config.interpolation, seed_generator(seed, 1 + first)
            )
            for seed in self.batch.seeds
        ]
        inputs = torch.stack(rows)
        targets = self.task.targets(inputs)
        shape = (len(rows), size, config.batch_size)
        return inputs.view(*shape, -1).to(self.device), targets.view(shape).to(self.device)

    def _update(self, inputs: Tensor, targets: Tensor, factor: float) -> None:
        if factor > 0:
            outputs, penalties = self.batch(inputs, extra="penalty")
            losses = (outputs - targets).square().mean(1) + factor * penalties
        else:
            losses = (self.batch(inputs) - targets).square().mean(1)
        self.batch.update(losses, self.config.max_grad_value)
        project_(self.batch.model, self.batch.parameters)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Append the errors of all seeds to `history`."""
        errors, sparsity = [], torch.zeros(0)
        for inputs in self.tests:
            targets = self.task.targets(inputs[None]).to(self.device)
            every = inputs.to(self.device).expand(len(self.batch.seeds), *inputs.shape)
            outputs, sparsity = self.batch(every, extra="sparsity")
            errors.append((outputs - targets).square().mean(1))
        row = torch.stack([*errors, sparsity]).cpu()
        self.history = torch.cat([self.history, row[None]])
        self.evaluated.append(self.updates)


def _check(config: ArithmeticConfig) -> None:
    for name in ("interpolation", "extrapolation"):
        low, high = getattr(config, name)
        if not low < high:
            raise ValueError(f"{name}: ({low}, {high}) is no range (allowed: low < high)")
    if config.ramp_end <= config.ramp_start:
        raise ValueError(
            f"ramp_end: {config.ramp_end} must be above ramp_start {config.ramp_start}"
        )


def parse(argv: Sequence[str]) -> ArithmeticConfig:
    """See `TaskEntry.parse`."""
    config = parse_config(
        spell_out(argv, ArithmeticConfig),
        task=NAME,
        presets=PRESETS,
        description=__doc__ or "",
        models=UNITS,
    )
    _check(config)
    return config


def main(argv: Sequence[str]) -> int:
    """Train all seeds and write the result."""
    config = parse(argv)
    run = Run(config)
    folder = run_folder(config, task=NAME)
    write_config(folder, config, task=NAME)
    run.train(folder)
    rows, summary = summarise(run.history, run.threshold, run.evaluated, run.batch.seeds)
    result = {
        "task": NAME,
        "config": plain(config),
        "versions": versions(),
        "device": torch.cuda.get_device_name() if run.device.type == "cuda" else "cpu",
        "threshold": run.threshold,
        "train_seconds": round(run.seconds, 1),
        "summary": summary,
        "trials": rows,
    }
    write_result(result, folder / "result.json", *([config.json] if config.json else []))
    print(f"{NAME} {config.op} {config.model}: {folder / 'result.json'}")
    print(
        f"success {100 * summary['success_rate']:.0f} % of {len(rows)} seeds "
        f"(95 %: {100 * summary['success_low']:.0f} to {100 * summary['success_high']:.0f} %), "
        f"extrapolation error below {run.threshold:.3g}"
    )
    if summary["success_rate"] > 0:
        print(
            f"solved at {summary['solved_at_median']:,.0f} updates (median), "
            f"sparsity error {summary['sparsity_error_mean']:.2g} (mean)"
        )
    return 0


register_task(
    TaskEntry(
        name=NAME,
        summary="add, sub, mul, div beyond the training range; all seeds in one batch",
        main=main,
        parse=parse,
        presets=PRESETS,
        models=UNITS,
        columns=COLUMNS,
    )
)
