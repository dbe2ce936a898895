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

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

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
from rl_nfm.supervised.loop.presets import Presets
from rl_nfm.supervised.loop.run import register_loop_task
from rl_nfm.supervised.loop.seed_batch import SeedBatch, SeedBatchTask, seed_generator
from rl_nfm.supervised.loop.trainee import Metrics, Schedule
from rl_nfm.supervised.models import Models
from rl_nfm.supervised.tasks.arithmetic_function import (
    ArithmeticConfig,
    FunctionTask,
    figures_of_seeds,
    summarise,
)

NAME = "arithmetic"
TEST_SAMPLES = 10_000
CHUNK = 100
"""Number of updates whose batches are drawn together."""

PRESETS = Presets("arithmetic", ArithmeticConfig)
UNITS = Models("arithmetic")
"""A unit is registered as a function that makes a layer from the options, the numbers of its inputs
and outputs, and its index: 0 or 1."""
_RAMP = ("regularizer", "ramp_start", "ramp_end")


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


class ArithmeticTask(SeedBatchTask[ArithmeticConfig]):
    """All seeds of a run; what the loop calls an epoch is one update."""

    models = UNITS
    columns: ClassVar = Columns(
        shown=("success", "solved_at", "extrapolation", "sparsity_error"), percent=("success",)
    )
    free_in_evaluation: ClassVar = ("interpolation", "extrapolation")

    def __init__(self, config: ArithmeticConfig, device: torch.device):
        super().__init__(config, device)
        self.task = FunctionTask(config, self.seeds)
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
        self._chunk: tuple[Tensor, Tensor] | None = None

    @property
    def schedule(self) -> Schedule:
        """That of the updates."""
        return Schedule(
            epochs=self.config.updates, eval_every_epochs=self.config.eval_every_updates
        )

    def build_one(self) -> nn.Module:
        """Two layers of units."""
        return UnitStack(self.config, self.task.inputs)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Adam."""
        assert isinstance(model, SeedBatch)
        return model.make_optimizer("adam", {"": self.config.learning_rate})

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, float]]:
        """The batch of one update: inputs [S, B, I], targets [S, B] and the regulariser's factor.

        Batches are drawn `CHUNK` at a time, beginning anew after each evaluation.
        """
        interval = self.config.eval_every_updates
        place = epoch % interval % CHUNK
        if self._chunk is None or place == 0:
            self._chunk = self._draw(epoch - place, min(CHUNK, interval - epoch % interval + place))
        inputs, targets = self._chunk
        yield inputs[:, place], targets[:, place], ramp(self.config, epoch)

    def _draw(self, first: int, size: int) -> tuple[Tensor, Tensor]:
        """Batches of `size` updates: inputs [S, size, B, I], targets [S, size, B]."""
        config = self.config
        count = size * config.batch_size
        rows = [
            self.task.draw(count, config.interpolation, seed_generator(seed, 1 + first))
            for seed in self.seeds
        ]
        inputs = torch.stack(rows)
        targets = self.task.targets(inputs)
        shape = (len(rows), size, config.batch_size)
        return inputs.view(*shape, -1).to(self.device), targets.view(shape).to(self.device)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, float]) -> Tensor:
        """Mean squared error of each seed, and its regulariser."""
        inputs, targets, factor = batch
        if factor > 0:
            outputs, penalties = model(inputs, extra="penalty")
            return (outputs - targets).square().mean(1) + factor * penalties
        return (model(inputs) - targets).square().mean(1)

    def check_losses(self, losses: Tensor, epoch: int) -> None:
        """Accept any: a seed that diverges is a seed without success."""

    def clip_gradients(self, model: nn.Module) -> None:
        """See `max_grad_value`."""
        if self.config.max_grad_value is not None:
            nn.utils.clip_grad_value_(model.parameters(), self.config.max_grad_value)

    def after_epoch(self, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        """Put bounded weights back into their range."""
        assert isinstance(model, SeedBatch)
        project_(model.first, model.values)
        self.updates = epoch

    def evaluate(self, model: nn.Module) -> Metrics:
        """Medians over seeds and the share that extrapolates; `history` gets the errors of all."""
        errors, sparsity = [], torch.zeros(0)
        for inputs in self.tests:
            targets = self.task.targets(inputs[None]).to(self.device)
            every = inputs.to(self.device).expand(len(self.seeds), *inputs.shape)
            outputs, sparsity = model(every, extra="sparsity")
            errors.append((outputs - targets).square().mean(1))
        row = torch.stack([*errors, sparsity]).cpu()
        self.history = torch.cat([self.history, row[None]])
        self.evaluated.append(self.updates)
        middle = row.nan_to_num(math.inf).median(1).values.tolist()
        names = ("interpolation_median", "extrapolation_median", "sparsity_median")
        solved = float((row[1] < self.threshold).float().mean())
        return {**dict(zip(names, middle, strict=True)), "solved": solved}

    def state(self) -> dict[str, Tensor]:
        """The errors of all evaluations."""
        return {"history": self.history, "evaluated": torch.tensor(self.evaluated)}

    def load_state(self, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Inverse of `state`; `evaluated` was once among the meta data."""
        self.history = state["history"]
        saved = state.get("evaluated")
        self.evaluated = meta["evaluated"] if saved is None else saved.tolist()

    def figures(self, model: nn.Module, history: Sequence[Metrics]) -> list[dict[str, Any]]:
        """Success and errors of each seed, at the evaluation of its least interpolation error."""
        del model, history
        return figures_of_seeds(self.history, self.threshold, self.evaluated, self.seeds)

    def outcome(self, facts: Mapping[str, Any], figures: list[dict[str, Any]]) -> dict[str, Any]:
        """The figures and their summary."""
        return {
            "threshold": self.threshold,
            "train_seconds": facts["train_seconds"],
            "summary": summarise(figures),
            "trials": figures,
        }

    @classmethod
    def report(cls, folder: Path, result: Mapping[str, Any]) -> str:
        """The success rate with its interval, and what it took."""
        summary, config = result["summary"], result["config"]
        low, high = (100 * summary[f"success_{bound}"] for bound in ("low", "high"))
        text = (
            f"{NAME} {config['op']} {config['model']}: {folder / 'result.json'}\n"
            f"success {100 * summary['success_rate']:.0f} % of {len(result['trials'])} seeds "
            f"(95 %: {low:.0f} to {high:.0f} %), "
            f"extrapolation error below {result['threshold']:.3g}"
        )
        if summary["success_rate"] == 0:
            return text
        return (
            f"{text}\nsolved at {summary['solved_at_median']:,.0f} updates (median), "
            f"sparsity error {summary['sparsity_error_mean']:.2g} (mean)"
        )


register_loop_task(
    NAME,
    "add, sub, mul, div beyond the training range; all seeds in one batch",
    ArithmeticTask,
    PRESETS,
    description=__doc__ or "",
)
