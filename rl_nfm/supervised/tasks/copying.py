"""The copying task (Hochreiter & Schmidhuber 1997; RIMs, Goyal et al. 2019, section 4.1).

The input is ten symbols from 1 .. 8, T - 1 blanks (0), a marker (9) and ten blanks; the target is T
+ 10 blanks, then the ten symbols. Trained at T = 50 and tested at T = 200. Published cross-entropy
at 200: RIM (6 modules, 4 active, hidden 600) 0.00, LSTM 300 4.32, LSTM 600 3.56.

A model without memory that knows the symbols' distribution has a mean cross-entropy over all T + 20
steps of 10 ln 8 / (T + 20) = 0.297 at 50 and 0.0945 at 200, which looks small although nothing was
learned. The last ten steps are therefore reported separately (chance: ln 8 = 2.079 and 12.5 %).

Differs from the public code: every batch is new and starts from a zero state (there a state is
carried over to unrelated batches), 10 output symbols instead of 20 of which 10 never occur, and
the model is in training mode while it trains.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.loop.presets import Presets
from rl_nfm.supervised.loop.run import Metrics, Task, register_loop_task
from rl_nfm.supervised.tasks.published import COPYING
from rl_nfm.supervised.tasks.recurrent import CORES, RecurrentConfig, SequenceModel

SYMBOLS = 10
"""Blank, eight symbols, marker."""
MARKER = 9
COPIED = 10
CHUNK = 250


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyingConfig(RecurrentConfig):
    """Options of the copying task."""

    FORMER_NAMES: ClassVar = {"embedding": "embedding_size"}

    epochs: Annotated[int, Ge(0)] = 200
    """Evaluations, each after `updates_per_epoch` batches."""
    updates_per_epoch: Annotated[int, Gt(0)] = 200
    """New batches an epoch."""
    max_grad_norm: Annotated[float, Gt(0)] | None = 1.0
    """Global gradient norm is clipped to this; none: not clipped."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.5
    """Dropout on the embedded symbols and before the output layer."""
    embedding_size: Annotated[int, Gt(0)] = 600
    """Size of a symbol's embedding."""
    train_blanks: Annotated[int, Gt(0)] = 50
    """T in training."""
    test_blanks: Annotated[int, Gt(0)] = 200
    """The longer T at test."""
    test_examples: Annotated[int, Gt(0)] = 500
    """Test sequences of either length."""


PRESETS = Presets("copying", CopyingConfig)


def make_sequences(
    count: int, blanks: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Inputs [N, T + 20] and the symbols to copy [N, 10]."""
    symbols = torch.randint(1, MARKER, (count, COPIED), generator=generator)
    inputs = torch.zeros(count, blanks + 2 * COPIED, dtype=torch.long)
    inputs[:, :COPIED] = symbols
    inputs[:, COPIED + blanks - 1] = MARKER
    return inputs, symbols


class CopyingTask(Task[CopyingConfig]):
    """One trial of the copying task."""

    models = CORES
    lower_is_better = True
    free_in_evaluation: ClassVar = ("test_blanks", "test_examples")
    columns: ClassVar = Columns(
        shown=("last10_ce_*", "accuracy_*"), percent=("accuracy_*",), published=COPYING
    )

    def __init__(self, config: CopyingConfig, device: torch.device):
        super().__init__(config, device)
        generator = torch.Generator().manual_seed(0)  # the same test set for every seed
        self.tests = {
            blanks: make_sequences(config.test_examples, blanks, generator)
            for blanks in (config.train_blanks, config.test_blanks)
        }
        self.validation = make_sequences(
            config.test_examples, config.train_blanks, torch.Generator().manual_seed(1)
        )

    def build_model(self) -> nn.Module:
        """See `Task.build_model`."""
        return SequenceModel(
            self.config, inputs=SYMBOLS, input_size=self.config.embedding_size, outputs=SYMBOLS
        )

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Task.batches`."""
        del epoch
        for _ in range(self.config.updates_per_epoch):
            inputs, symbols = make_sequences(self.config.batch_size, self.config.train_blanks)
            yield inputs.to(self.device), symbols.to(self.device)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy over all T + 20 steps."""
        inputs, symbols = batch
        targets = torch.zeros_like(inputs)
        targets[:, -COPIED:] = symbols
        logits = model(inputs, inputs.shape[1]).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def baselines(self) -> Metrics:
        """What a model without memory reaches."""
        chance = {"last10_ce": math.log(8), "accuracy": 1 / 8}
        return {f"{name}_{blanks}": x for blanks in self.tests for name, x in chance.items()}

    def evaluate(self, model: nn.Module) -> Metrics:
        """Cross-entropy and accuracy of the last ten steps.

        `validation` is the cross-entropy on other sequences of the training length.
        """
        metrics = {}
        for blanks, test in self.tests.items():
            loss, accuracy = self._last_steps(model, test)
            metrics |= {f"last10_ce_{blanks}": loss, f"accuracy_{blanks}": accuracy}
        return {**metrics, "validation": self._last_steps(model, self.validation)[0]}

    def _last_steps(self, model: nn.Module, test: tuple[Tensor, Tensor]) -> tuple[float, float]:
        """Mean cross-entropy and accuracy of the last ten steps."""
        inputs, symbols = test
        loss, right = 0.0, 0
        for x, y in zip(inputs.split(CHUNK), symbols.split(CHUNK), strict=True):
            logits = model(x.to(self.device), COPIED).float().cpu()
            loss += float(F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum"))
            right += int((logits.argmax(-1) == y).sum())
        return loss / symbols.numel(), right / symbols.numel()


register_loop_task(
    "copying", "copy ten symbols after a long pause (lstm, gru, RIMs)", CopyingTask, PRESETS
)
