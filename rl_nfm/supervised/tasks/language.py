"""Language modelling: predict the next symbol of a text (`train_wiki` of the RIMs repository).

The text is read as `batch_size` streams side by side, and errors are propagated back over
`bptt_steps` symbols; the recurrent state is carried on and begins at zero in every epoch. The
metrics are those of the unit: bits per character, or perplexity per word, on whole modules or
articles that were not trained on.

The published runs (the repository's `experiment_wikitext2.sh`) are words of WikiText-2, 510 units
in five RIMs that are all active, embedding and output tied: a test perplexity of about 102 with one
layer and 99 with two. WikiText-2 comes with no package, so its files must be at hand
(`--data wikitext2 --data-folder DIR`); without a network, the docstrings of Python's standard
library are modelled, by character, as 1.6 million characters are too few for words.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.data.text import TextData, TextUnit, load_corpus
from rl_nfm.supervised.loop.presets import Presets
from rl_nfm.supervised.loop.run import Metrics, Task, register_loop_task
from rl_nfm.supervised.tasks.published import LANGUAGE
from rl_nfm.supervised.tasks.recurrent import CORES, RecurrentConfig, make_core

Chunk = tuple[Tensor, Tensor, bool]
"""Symbols [B, T], those that follow them [B, T], and whether the text begins with this chunk."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageConfig(RecurrentConfig):
    """Options of language modelling."""

    epochs: Annotated[int, Ge(0)] = 100
    """Passes over the training text."""
    learning_rate: Annotated[float, Gt(0)] = 7e-4
    """Learning rate of Adam."""
    max_grad_norm: Annotated[float, Gt(0)] | None = 1.0
    """Global gradient norm is clipped to this; none: not clipped."""
    hidden_size: Annotated[int, Gt(0)] = 510
    """Size of the hidden state, over all modules."""
    num_rims: Annotated[int, Gt(0)] = 5
    """Modules (rim_* and brim_*); `hidden_size` must be a multiple of it."""
    num_active: Annotated[int, Gt(0)] = 5
    """Modules active at a step (rim_* and brim_*)."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.5
    """Dropout on the embedded symbols and before the output layer."""
    data: TextData = "docstrings"
    """docstrings: of Python's standard library; wikitext2: the files in `data_folder`."""
    data_folder: Path | None = None
    """Folder of wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens."""
    unit: TextUnit = "character"
    """What is predicted: characters, or words between spaces and ends of lines."""
    min_count: Annotated[int, Gt(0)] = 1
    """Symbols that the training text has more rarely than this count as one, unknown."""
    embedding_size: Annotated[int, Gt(0)] = 510
    """Size of a symbol's embedding."""
    tied: bool = True
    """The output layer has the embedding's weights; needs `embedding_size` = `hidden_size`."""
    bptt_steps: Annotated[int, Gt(0)] = 100
    """Symbols over which errors are propagated back."""


PRESETS = Presets("language", LanguageConfig)


class LanguageModel(nn.Module):
    """Embedding, recurrent core and output layer, with dropout between them.

    Args:
        config: the sizes.
        symbols: size of the vocabulary.

    Raises:
        ValueError: tied weights of two sizes, or RIM sizes that do not fit.
    """

    def __init__(self, config: LanguageConfig, symbols: int):
        super().__init__()
        if config.tied and config.embedding_size != config.hidden_size:
            raise ValueError(
                f"tied: needs embedding_size {config.embedding_size} = hidden_size "
                f"{config.hidden_size}"
            )
        self.embed = nn.Embedding(symbols, config.embedding_size)
        nn.init.uniform_(
            self.embed.weight, -0.1, 0.1
        )  # tied, the usual N(0, 1) would start at e^50
        self.dropout = nn.Dropout(config.dropout)
        self.core = make_core(config, config.embedding_size)
        self.bias = nn.Parameter(torch.zeros(symbols))
        self.weight = None
        if not config.tied:
            self.weight = nn.Parameter(torch.empty(symbols, config.hidden_size))
            nn.init.uniform_(self.weight, -0.1, 0.1)

    def forward(self, symbols: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits [B, T, symbols] of what follows each of `symbols` [B, T], and the state."""
        hidden, state = self.core(self.dropout(self.embed(symbols)), state)
        weight = self.embed.weight if self.weight is None else self.weight
        return F.linear(self.dropout(hidden), weight, self.bias), state


def chunks(text: Tensor, streams: int, steps: int) -> Iterator[Chunk]:
    """Cut a text into streams side by side, and these into chunks that follow each other.

    Args:
        text: int64 [N].
        streams: B; up to B - 1 symbols at the end are left out.
        steps: T; the last chunk may be shorter.
    """
    length = (len(text) - 1) // streams
    inputs, targets = (
        text[start : start + streams * length].view(streams, length) for start in (0, 1)
    )
    for start in range(0, length, steps):
        part = slice(start, start + steps)
        yield inputs[:, part], targets[:, part], start == 0


def detached(state: Any) -> Any:
    """A recurrent state, of one tensor or several, through which no error flows back."""
    return state.detach() if isinstance(state, Tensor) else tuple(map(detached, state))


class LanguageTask(Task[LanguageConfig]):
    """One trial of language modelling."""

    models = CORES
    lower_is_better = True
    free_in_evaluation: ClassVar = ("data_folder",)
    same_data_in_evaluation = True
    columns: ClassVar = Columns(shown=("perplexity_*", "bits_*"), published=LANGUAGE)

    def __init__(self, config: LanguageConfig, device: torch.device):
        super().__init__(config, device)
        self.corpus = load_corpus(config.data, config.data_folder, config.unit, config.min_count)
        self.data_digest = self.corpus.digest
        for name, text in self.corpus.texts.items():
            if len(text) <= config.batch_size:
                raise ValueError(
                    f"batch_size: {config.batch_size} is not allowed, must be below the "
                    f"{len(text)} symbols of the {name} text"
                )
        self._state: Any = None

    def build_model(self) -> nn.Module:
        """See `Task.build_model`."""
        return LanguageModel(self.config, len(self.corpus.symbols))

    def batches(self, epoch: int) -> Iterator[Chunk]:
        """The chunks of the training text, one after the other."""
        del epoch
        yield from self._chunks("train")

    def _chunks(self, name: str) -> Iterator[Chunk]:
        text = self.corpus.texts[name].to(self.device)
        yield from chunks(text, self.config.batch_size, self.config.bptt_steps)

    def loss(self, model: nn.Module, batch: Chunk) -> Tensor:
        """Nats per symbol of a chunk, which goes on from the chunk before."""
        symbols, targets, is_first = batch
        logits, state = model(symbols, None if is_first else self._state)
        self._state = detached(state)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def evaluate(self, model: nn.Module) -> Metrics:
        """Perplexity or bits of the validation and the test text; `validation` are nats."""
        nats = {name: self._nats(model, name) for name in ("validation", "test")}
        return {**self._in_units(nats), "validation": nats["validation"]}

    def _nats(self, model: nn.Module, name: str) -> float:
        """Nats per symbol of a text."""
        total, count, state = 0.0, 0, None
        for symbols, targets, _ in self._chunks(name):
            logits, state = model(symbols, state)
            flat = logits.float().flatten(0, 1)
            total += float(F.cross_entropy(flat, targets.flatten(), reduction="sum"))
            count += targets.numel()
        return total / count

    def _in_units(self, nats: Metrics) -> Metrics:
        if self.config.unit == "word":
            return {f"perplexity_{name}": _exp(value) for name, value in nats.items()}
        return {f"bits_{name}": value / math.log(2) for name, value in nats.items()}

    def baselines(self) -> Metrics:
        """Of the frequencies of the training text's symbols."""
        names = ("validation", "test")
        return self._in_units({name: self.corpus.unigram_nats(name) for name in names})


def _exp(nats: float) -> float:
    """Infinite where a float cannot hold it, as after a step size that is far too large."""
    return math.exp(nats) if nats < 700 else math.inf


register_loop_task(
    "language",
    "predict the next character or word of a text (lstm, gru, RIMs)",
    LanguageTask,
    PRESETS,
)
