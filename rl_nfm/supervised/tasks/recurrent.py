"""The recurrent cores that the sequence tasks compare, by name: nn.LSTM, nn.GRU, RIMs, BRIMs.

A core is registered as a function of the options and the size of its input, and is called like a
batch-first nn.LSTM.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from rl_nfm.rims import BRIM_GRU, BRIM_LSTM, RIM_GRU, RIM_LSTM
from rl_nfm.supervised.loop.run import LoopConfig
from rl_nfm.supervised.models import Models

CORES = Models("recurrent")
RIM_OPTIONS = ("num_rims", "num_active", "rim_dropout")
LAYERED = ("num_layers",)
ALL = (*RIM_OPTIONS, *LAYERED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentConfig(LoopConfig):
    """Options of a task with a recurrent model."""

    FORMER_NAMES: ClassVar = {"hidden": "hidden_size", "rims": "num_rims", "active": "num_active"}

    model: str = "rim_lstm"
    """The recurrent core, one of the models listed above."""
    hidden_size: Annotated[int, Gt(0)] = 600
    """Size of the hidden state, over all modules."""
    num_layers: Annotated[int, Gt(0)] = 1
    """Layers of these sizes, one above the other (lstm, gru and rim_*)."""
    num_rims: Annotated[int, Gt(0)] = 6
    """Modules (rim_* and brim_*); `hidden_size` must be a multiple of it."""
    num_active: Annotated[int, Gt(0)] = 4
    """Modules active at a step (rim_* and brim_*)."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout on the embedded symbols (where there are any) and before the output layer."""
    rim_dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Dropout inside RIMs, on what they read from the input and each other (rim_* and brim_*)."""


def make_core(config: RecurrentConfig, input_size: int) -> nn.Module:
    """The core that the options name.

    Raises:
        ValueError: an unknown core, or RIM sizes that do not fit each other.
    """
    return CORES[config.model].build(config, input_size)


def _plain(core: Callable[..., nn.Module], config: RecurrentConfig, input_size: int) -> nn.Module:
    return core(input_size, config.hidden_size, num_layers=config.num_layers, batch_first=True)


def _rims(
    core: Callable[..., nn.Module], config: RecurrentConfig, input_size: int, **more: int
) -> nn.Module:
    return core(
        input_size,
        config.hidden_size,
        config.num_rims,
        config.num_active,
        batch_first=True,
        rim_dropout=config.rim_dropout,
        **more,
    )


def _layered(core: Callable[..., nn.Module], config: RecurrentConfig, size: int) -> nn.Module:
    return _rims(core, config, size, num_layers=config.num_layers)


for _name, _summary, _build, _reads in (
    ("lstm", "nn.LSTM", partial(_plain, nn.LSTM), LAYERED),
    ("gru", "nn.GRU", partial(_plain, nn.GRU), LAYERED),
    ("rim_lstm", "recurrent independent mechanisms of LSTMs", partial(_layered, RIM_LSTM), ALL),
    ("rim_gru", "recurrent independent mechanisms of GRUs", partial(_layered, RIM_GRU), ALL),
    (
        "brim_lstm",
        "bidirectional RIMs of LSTMs, two layers of the given sizes",
        partial(_rims, BRIM_LSTM),
        RIM_OPTIONS,
    ),
    (
        "brim_gru",
        "bidirectional RIMs of GRUs, two layers of the given sizes",
        partial(_rims, BRIM_GRU),
        RIM_OPTIONS,
    ),
):
    CORES.register(_name, _summary, reads=_reads)(_build)


class SequenceModel(nn.Module):
    """Embedding, recurrent core and output layer at every step, with dropout between them.

    Args:
        config: the sizes.
        inputs: number of input symbols (then an embedding) or None for float inputs.
        input_size: of the embedding, or of the float inputs.
        outputs: size of the output.
    """

    def __init__(
        self, config: RecurrentConfig, *, inputs: int | None, input_size: int, outputs: int
    ):
        super().__init__()
        dropout = nn.Dropout(config.dropout)
        self.embed = (
            nn.Identity()
            if inputs is None
            else nn.Sequential(nn.Embedding(inputs, input_size), dropout)
        )
        self.core = make_core(config, input_size)
        self.head = nn.Sequential(dropout, nn.Linear(config.hidden_size, outputs))

    def forward(self, sequence: Tensor, last: int) -> Tensor:
        """Outputs [B, last, outputs] of the last steps of `sequence` [B, T] or [B, T, F]."""
        hidden, _ = self.core(self.embed(sequence))  # [B, T, H]
        return self.head(hidden[:, -last:])
