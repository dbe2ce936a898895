"""Arithmetic units on sums, differences, products and quotients of sums of their inputs.

The simple function task of NALU (Trask et al. 2018) in the form of Madsen & Johansen 2020
(arXiv 2001.05016, section 4.1 and appendix C): inputs from U[1, 2] in training, from U[2, 6] at
test; a and b are sums of subsets of them, the target is a op b.
  * `simple`: a = x1 + x2, b = x1 + x2 + x3 + x4 of 4 inputs. Published, of 100 seeds in 200,000
    updates on `mul`: NMU 94 %, NALU 26 % (shared weights), NAC 13 %.
  * `subsets`: neighbouring subsets of 100 inputs, each a quarter of them, half overlapping.

A seed succeeds if its extrapolation error, at the evaluation of its least interpolation error, is
below that of a perfect solution whose first weights are off by 1e-5. Two layers, hidden size 2:
`nmu` is NAU then NMU; `nac` is a NAC, then one in log space for mul and div; the others twice the
same. All seeds train as one batch; a seed's run is the same alone and among others.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from tqdm import tqdm

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
from rl_nfm.supervised.options import (
    RunConfig,
    choose_device,
    parse_config,
    plain,
    refuse_unused,
    write_config,
)
from rl_nfm.supervised.registry import register_task
from rl_nfm.supervised.reporting import MetricsLog, versions, write_result
from rl_nfm.supervised.seed_batch import SeedBatch, run_folder, seed_generator

NAME = "arithmetic"
EPSILON = 1e-5
TEST_SAMPLES = 10_000
CHUNK = 100
"""Updates whose batches are drawn at once."""

Positive = Annotated[float, Gt(0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArithmeticConfig(RunConfig):
    """Options of the arithmetic task."""

    op: Literal["add", "sub", "mul", "div"] = "mul"
    """Of the two sums a and b."""
    model: Literal["linear", "nac", "nalu", "inalu", "nau", "nmu"] = "nmu"
    """Two layers of which unit."""
    task: Literal["simple", "subsets"] = "simple"
    """simple: 4 inputs, fixed sums; subsets: `input_size` inputs, sums of subsets."""
    input_size: Annotated[int, Ge(4)] = 100
    """Inputs of task subsets."""
    subset_ratio: Annotated[float, Gt(0), Le(0.5)] = 0.25
    """Size of a subset, as a share of the inputs (task subsets)."""
    overlap_ratio: Annotated[float, Ge(0), Le(1)] = 0.5
    """Share of a subset that both have (task subsets)."""
    interpolation: tuple[float, float] = (1.0, 2.0)
    """Range of training inputs."""
    extrapolation: tuple[float, float] = (2.0, 6.0)
    """Range of test inputs."""
    hidden_size: Annotated[int, Gt(0)] = 2
    """Units between the layers."""
    share_weights: bool = False
    """NALU: one weight for both paths, as in its paper."""
    updates: Annotated[int, Gt(0)] = 200_000
    """Updates of each seed."""
    eval_every: Annotated[int, Gt(0)] = 1000
    """Updates between evaluations (and checkpoints)."""
    batch_size: Annotated[int, Gt(0)] = 128
    """Examples of a seed's update."""
    learning_rate: Positive = 1e-3
    """Step size of Adam."""
    clip_value: Annotated[float, Ge(0)] = 0.0
    """Gradients are cut at plus or minus this (iNALU: 0.1); 0: not cut."""
    regularizer: Annotated[float, Ge(0)] = 10.0
    """Factor of the units' own regulariser (inalu, nau, nmu), once the ramp is over."""
    ramp_start: Annotated[int, Ge(0)] = 1_000_000
    """Update at which the regulariser begins to count."""
    ramp_end: Annotated[int, Gt(0)] = 2_000_000
    """Update from which it counts in full."""


PRESETS = {
    "small": ArithmeticConfig(preset="small", trials=10, updates=50_000),
    "paper": ArithmeticConfig(preset="paper", task="subsets", trials=100, updates=5_000_000),
}
USED_BY = {
    "share_weights": ("nalu",),
    "regularizer": ("inalu", "nau", "nmu"),
    "ramp_start": ("inalu", "nau", "nmu"),
    "ramp_end": ("inalu", "nau", "nmu"),
}


class UnitStack(nn.Module):
    """Two layers of one unit.

    Args:
        config: of the run.
        inputs: I.
    """

    def __init__(self, config: ArithmeticConfig, inputs: int):
        super().__init__()
        hidden = config.hidden_size
        self.layers = nn.ModuleList(
            (_layer(config, inputs, hidden, 0), _layer(config, hidden, 1, 1))
        )

    def forward(self, x: Tensor, *, extra: Literal["none", "penalty", "sparsity"] = "none") -> Any:
        """[B, I] to [B], and with `extra` a scalar: the regularisers' sum or the sparsity error."""
        y = self.layers[1](self.layers[0](x)).squeeze(-1)
        if extra == "none":
            return y
        layers = [layer for layer in self.layers if isinstance(layer, ArithmeticLayer)]
        if extra == "penalty":
            return y, torch.stack([layer.regularizer() for layer in layers]).sum()
        weights = [w for layer in layers for w in layer.effective_weights()]
        weights += [layer.weight for layer in self.layers if isinstance(layer, nn.Linear)]
        return y, torch.stack([sparsity_error(weight) for weight in weights]).max()


def _layer(config: ArithmeticConfig, inputs: int, outputs: int, index: int) -> nn.Module:
    match config.model:
        case "linear":
            return nn.Linear(inputs, outputs, bias=False)
        case "nac":
            in_log_space = index == 1 and config.op in ("mul", "div")
            cell = MultiplicativeAccumulatorCell if in_log_space else NeuralAccumulatorCell
            return cell(inputs, outputs)
        case "nalu":
            return NeuralArithmeticLogicUnit(
                inputs, outputs, share_weights=config.share_weights, eps=1e-7
            )
        case "inalu":
            return INALU(inputs, outputs)
        case "nau":
            return NAU(inputs, outputs)
        case "nmu":
            return (NAU, NMU)[index](inputs, outputs)


class FunctionTask:
    """The sums a and b of each seed, and their combination.

    Args:
        config: of the run.
        seeds: S of them; with task subsets each has subsets of its own.
    """

    def __init__(self, config: ArithmeticConfig, seeds: Sequence[int]):
        self.config = config
        self.inputs = 4 if config.task == "simple" else config.input_size
        self.sums = torch.stack([self._sums(seed) for seed in seeds])  # [S, I, 2]

    def _sums(self, seed: int) -> Tensor:
        """0 and 1 for each input in a and in b, [I, 2]."""
        sums = torch.zeros(self.inputs, 2)
        if self.config.task == "simple":
            sums[:2, 0] = 1
            sums[:, 1] = 1
            return sums
        size = max(1, math.floor(self.config.subset_ratio * self.inputs))
        overlap = math.floor(self.config.overlap_ratio * size)
        room = self.inputs - 2 * size + overlap
        start = int(torch.randint(room + 1, (), generator=seed_generator(seed, 0)))
        sums[start : start + size, 0] = 1
        sums[start + size - overlap : start + 2 * size - overlap, 1] = 1
        return sums

    def targets(self, x: Tensor, sums: Tensor | None = None) -> Tensor:
        """Targets [S, B] of inputs [S, B, I] (or [1, B, I], for all seeds)."""
        a, b = (x @ (self.sums.to(x) if sums is None else sums)).unbind(-1)
        return {"add": a + b, "sub": a - b, "mul": a * b, "div": a / b}[self.config.op]

    def draw(self, count: int, bounds: tuple[float, float], generator: torch.Generator) -> Tensor:
        """Uniform inputs [count, I]."""
        low, high = bounds
        return low + (high - low) * torch.rand(count, self.inputs, generator=generator)

    def threshold(self, samples: int = 1_000_000) -> float:
        """Mean squared error of the perfect solution with its first weights off by 1e-5."""
        exact = self.sums[:1].double()
        near = exact + EPSILON * (1 - 2 * exact)  # 1 becomes 1 - eps, 0 becomes eps
        generator = torch.Generator().manual_seed(0)
        total, part = 0.0, 50_000
        for _ in range(samples // part):
            x = self.draw(part, self.config.extrapolation, generator).double()[None]
            total += float((self.targets(x, near) - self.targets(x, exact)).square().sum())
        return total / (samples // part * part)


def ramp(config: ArithmeticConfig, update: int) -> float:
    """Factor of the regulariser at an update (Madsen & Johansen, section 2.2)."""
    if config.model not in USED_BY["regularizer"]:
        return 0.0
    share = (update - config.ramp_start) / (config.ramp_end - config.ramp_start)
    return config.regularizer * min(max(share, 0.0), 1.0)


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a success rate (Wilson 1927)."""
    rate = successes / trials
    scale = 1 / (1 + z * z / trials)
    centre = scale * (rate + z * z / (2 * trials))
    half = scale * z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return max(centre - half, 0.0), min(centre + half, 1.0)


class _Run:
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
        self.updates = 0
        self.seconds = 0.0

    def train(self, folder: Any) -> None:
        """Run to the last update, evaluating and saving on the way."""
        config = self.config
        if (folder / "checkpoint").is_dir():
            meta, more = self.batch.load(folder / "checkpoint")
            self.updates, self.seconds = meta["updates"], meta["seconds"]
            self.history = more["history"]
        log = MetricsLog(folder, last_epoch=self.updates)
        bar = tqdm(total=config.updates, initial=self.updates, unit="update", disable=None)
        while self.updates < config.updates:
            start = time.perf_counter()
            count = min(config.eval_every, config.updates - self.updates)
            self._train_updates(count)
            self.seconds += time.perf_counter() - start
            bar.update(count)
            self._evaluate()
            solved = float((self.history[-1, 1] < self.threshold).float().mean())
            middle = self.history[-1].nan_to_num(math.inf).median(1).values.tolist()
            names = ("interpolation_median", "extrapolation_median", "sparsity_median")
            log.write(self.updates, {**dict(zip(names, middle, strict=True)), "solved": solved})
            self.batch.save(
                folder / "checkpoint",
                {"config": plain(config), "updates": self.updates, "seconds": self.seconds},
                {"history": self.history},
            )
        bar.close()
        log.close()

    def _train_updates(self, count: int) -> None:
        for first in range(self.updates, self.updates + count, CHUNK):
            size = min(CHUNK, self.updates + count - first)
            inputs, targets = self._chunk(first, size)
            for index in range(size):
                self._update(inputs[:, index], targets[:, index], ramp(self.config, first + index))
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
        self.batch.update(losses, self.config.clip_value)
        project_(self.batch.model, self.batch.parameters)

    @torch.no_grad()
    def _evaluate(self) -> None:
        row = []
        for inputs in self.tests:
            targets = self.task.targets(inputs[None]).to(self.device)
            every = inputs.to(self.device).expand(len(self.batch.seeds), *inputs.shape)
            outputs, sparsity = self.batch(every, extra="sparsity")
            row.append((outputs - targets).square().mean(1).cpu())
        row.append(sparsity.cpu())
        self.history = torch.cat([self.history, torch.stack(row)[None]])


def summarise(
    history: Tensor, threshold: float, eval_every: int, seeds: Sequence[int]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of seeds and the summary of a run.

    Args:
        history: [evaluations, 3, S]: interpolation, extrapolation and sparsity errors.
        threshold: extrapolation errors below it are successes.
        eval_every: updates between evaluations.
        seeds: S of them.

    Returns:
        One row a seed, and the success rate with its interval; the updates at which the
        successful seeds first extrapolated and their sparsity error.
    """
    best = history[:, 0].nan_to_num(math.inf).argmin(0)
    rows = []
    for index, seed in enumerate(seeds):
        errors = history[int(best[index]), :, index].tolist()
        below = (history[:, 1, index] < threshold).nonzero()
        rows.append(
            {
                "seed": seed,
                "success": errors[1] < threshold,
                "solved_at": (int(below[0]) + 1) * eval_every if len(below) else None,
                "interpolation": errors[0],
                "extrapolation": errors[1],
                "sparsity_error": errors[2],
            }
        )
    good = [row for row in rows if row["success"]]
    low, high = wilson_interval(len(good), len(rows))
    solved = torch.tensor([float(row["solved_at"]) for row in good])
    sparsity = torch.tensor([row["sparsity_error"] for row in good])
    return rows, {
        "success_rate": len(good) / len(rows),
        "success_low": low,
        "success_high": high,
        "solved_at_median": float(solved.quantile(0.5)) if good else None,
        "solved_at_mean": float(solved.mean()) if good else None,
        "sparsity_error_mean": float(sparsity.mean()) if good else None,
    }


def _check(config: ArithmeticConfig) -> None:
    for name in ("interpolation", "extrapolation"):
        low, high = getattr(config, name)
        if not low < high:
            raise ValueError(f"{name}: ({low}, {high}) is no range (allowed: low < high)")
    if config.ramp_end <= config.ramp_start:
        raise ValueError(
            f"ramp_end: {config.ramp_end} must be above ramp_start {config.ramp_start}"
        )


@register_task(NAME, "add, sub, mul, div beyond the training range; all seeds in one batch")
def main(argv: Sequence[str]) -> int:
    """Train all seeds and write the result."""
    config = parse_config(argv, task=NAME, presets=PRESETS, description=__doc__ or "")
    _check(config)
    refuse_unused(config, PRESETS, USED_BY)
    run = _Run(config)
    folder = run_folder(NAME, config)
    write_config(folder, dataclasses.replace(config, resume=None))
    run.train(folder)
    rows, summary = summarise(run.history, run.threshold, config.eval_every, run.batch.seeds)
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
