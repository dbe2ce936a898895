"""The recurrent models that the sequence tasks compare, by name: nn.LSTM, nn.GRU, RIMs, BRIMs."""

import dataclasses
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from rl_nfm.rims import BRIM_GRU, BRIM_LSTM, RIM_GRU, RIM_LSTM
from rl_nfm.supervised.loop.run import LoopConfig

CORES = {"rim_lstm": RIM_LSTM, "rim_gru": RIM_GRU, "brim_lstm": BRIM_LSTM, "brim_gru": BRIM_GRU}
RIM_MODELS = tuple(CORES)
USED_BY = {"num_rims": RIM_MODELS, "num_active": RIM_MODELS, "rim_dropout": RIM_MODELS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentConfig(LoopConfig):
    """Options of a task with a recurrent model."""

    FORMER_NAMES: ClassVar = {"hidden": "hidden_size", "rims": "num_rims", "active": "num_active"}

    model: Literal["lstm", "gru", "rim_lstm", "rim_gru", "brim_lstm", "brim_gru"] = "rim_lstm"
    """The recurrent core; brim_*: bidirectional RIMs of two layers, each of these sizes."""
    hidden_size: Annotated[int, Gt(0)] = 600
    """Size of the hidden state, over all modules."""
    num_rims: Annotated[int, Gt(0)] = 6
    """Modules (rim_* and brim_*); `hidden_size` must be a multiple of it."""
    num_active: Annotated[int, Gt(0)] = 4
    """Modules active at a step (rim_* and brim_*)."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout on the embedded symbols (where there are any) and before the output layer."""
    rim_dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Dropout inside RIMs, on what they read from the input and each other (rim_* and brim_*)."""


def make_core(config: RecurrentConfig, input_size: int) -> nn.Module:
    """A batch-first recurrent core that is called like nn.LSTM.

    Raises:
        ValueError: RIM sizes that do not fit each other.
    """
    if config.model == "lstm":
        return nn.LSTM(input_size, config.hidden_size, batch_first=True)
    if config.model == "gru":
        return nn.GRU(input_size, config.hidden_size, batch_first=True)
    return CORES[config.model](
        input_size,
        config.hidden_size,
        config.num_rims,
        config.num_active,
        batch_first=True,
        rim_dropout=config.rim_dropout,
    )


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
