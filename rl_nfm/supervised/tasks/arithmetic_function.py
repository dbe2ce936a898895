"""The functions that arithmetic units should learn, the criterion of success, and its interval.

See `arithmetic` for the sources.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from rl_nfm.supervised.loop.options import RunConfig
from rl_nfm.supervised.loop.seed_batch import seed_generator

EPSILON = 1e-5

Positive = Annotated[float, Gt(0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArithmeticConfig(RunConfig):
    """Options of the arithmetic task."""

    FORMER_NAMES: ClassVar = {"eval_every": "eval_every_updates", "clip_value": "max_grad_value"}
    FORMER_VALUES: ClassVar = {"max_grad_value": {0: None}}

    op: Literal["add", "sub", "mul", "div"] = "mul"
    """Of the two sums a and b."""
    model: str = "nmu"
    """Two layers of one of the units listed above."""
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
    eval_every_updates: Annotated[int, Gt(0)] = 1000
    """Updates between evaluations (and checkpoints)."""
    batch_size: Annotated[int, Gt(0)] = 128
    """Examples of a seed's update."""
    learning_rate: Positive = 1e-3
    """Step size of Adam."""
    max_grad_value: Positive | None = None
    """Each entry of a gradient is clipped to plus or minus this (iNALU: 0.1); none: not clipped."""
    regularizer: Annotated[float, Ge(0)] = 10.0
    """Factor of the units' own regulariser (inalu, nau, nmu), once the ramp is over."""
    ramp_start: Annotated[int, Ge(0)] = 1_000_000
    """Update at which the regulariser begins to count."""
    ramp_end: Annotated[int, Gt(0)] = 2_000_000
    """Update from which it counts in full."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: one is out of its bounds, a range is empty, `simple` is given options of
                `subsets`, or the training ends before a given regulariser begins to count.
        """
        super().__post_init__()
        if self.task == "simple":
            for name in ("input_size", "subset_ratio", "overlap_ratio"):
                if getattr(self, name) != getattr(ArithmeticConfig, name):
                    raise ValueError(f"{name}: has no effect on task 'simple' (read by: subsets)")
        for name in ("interpolation", "extrapolation"):
            low, high = getattr(self, name)
            if not low < high:
                raise ValueError(f"{name}: ({low}, {high}) is no range (allowed: low < high)")
        if self.ramp_end <= self.ramp_start:
            raise ValueError(
                f"ramp_end: {self.ramp_end} must be above ramp_start {self.ramp_start}"
            )
        if self.regularizer != ArithmeticConfig.regularizer and self.updates <= self.ramp_start:
            raise ValueError(
                f"regularizer: has no effect in {self.updates} updates, since it begins to count "
                f"at ramp_start {self.ramp_start} (allowed: a lower ramp_start, or more updates)"
            )


class FunctionTask:
    """The sums a and b of each seed, and the function of them to be learned.

    Args:
        config: the options of the run.
        seeds: S seeds; in the task `subsets` each seed has different subsets.
    """

    def __init__(self, config: ArithmeticConfig, seeds: Sequence[int]):
        self.config = config
        self.inputs = 4 if config.task == "simple" else config.input_size
        self.sums = torch.stack([self._sums(seed) for seed in seeds])  # [S, I, 2]

    def _sums(self, seed: int) -> Tensor:
        """Whether each input is in a and in b: 0 or 1, [I, 2]."""
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
        return torch.empty(count, self.inputs).uniform_(*bounds, generator=generator)

    def threshold(self, samples: int = 1_000_000) -> float:
        """Mean squared error of a perfect solution whose first weights are off by 1e-5."""
        exact = self.sums[:1].double()
        near = exact + EPSILON * (1 - 2 * exact)  # 1 becomes 1 - eps, 0 becomes eps
        generator = torch.Generator().manual_seed(0)
        total, part = 0.0, 50_000
        for _ in range(samples // part):
            x = self.draw(part, self.config.extrapolation, generator).double()[None]
            total += float((self.targets(x, near) - self.targets(x, exact)).square().sum())
        return total / (samples // part * part)


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a success rate (Wilson 1927)."""
    rate = successes / trials
    scale = 1 / (1 + z * z / trials)
    centre = scale * (rate + z * z / (2 * trials))
    half = scale * z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def figures_of_seeds(
    history: Tensor, threshold: float, evaluated: Sequence[int], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """One row per seed: its errors where the interpolation error is least, and whether it solved.

    Args:
        history: [evaluations, 3, S]: interpolation, extrapolation and sparsity errors.
        threshold: extrapolation errors below it are successes.
        evaluated: updates at each evaluation.
        seeds: the S seeds.
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
                "solved_at": evaluated[int(below[0])] if len(below) else None,
                "interpolation": errors[0],
                "extrapolation": errors[1],
                "sparsity_error": errors[2],
            }
        )
    return rows


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The success rate with its interval, and what the successful seeds needed.

    That is the number of updates after which they first extrapolated, and their sparsity error.
    """
    good = [row for row in rows if row["success"]]
    low, high = wilson_interval(len(good), len(rows))
    solved = torch.tensor([float(row["solved_at"]) for row in good])
    sparsity = torch.tensor([row["sparsity_error"] for row in good])
    return {
        "success_rate": len(good) / len(rows),
        "success_low": low,
        "success_high": high,
        "solved_at_median": float(solved.quantile(0.5)) if good else None,
        "solved_at_mean": float(solved.mean()) if good else None,
        "sparsity_error_mean": float(sparsity.mean()) if good else None,
    }
