"""RIMs behind the interface of the authors' `BlocksWrapper`, which itself cannot be constructed."""

import torch
from torch import Tensor, nn

from rl_nfm.rims.layers import RIM_LSTM


class BlocksWrapper(nn.Module):
    """RIMs behind the interface of the authors' `BlocksWrapper`: linear, RIM_LSTM, linear.

    `dropout` acts where the authors' language model has it: on the embedded input and on the
    output of the RIMs.
    """

    def __init__(
        self,
        ntokens: int,
        nhid: int,
        n_out: int,
        dropout: float = 0.0,
        num_blocks: int = 4,
        update_topk: int = 4,
    ):
        """`ntokens` input features, `nhid` hidden size, `n_out` outputs, and the RIMs."""
        super().__init__()
        self.nhid = nhid
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Linear(ntokens, nhid)
        self.rims = RIM_LSTM(nhid, nhid, num_blocks, update_topk)
        self.decoder = nn.Linear(nhid, n_out)

    def forward(self, inp: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [T, B, n_out] and new state of inputs [T, B, ntokens] and state [1, B, 2 nhid].

        A state is the hidden and the cell state side by side.
        """
        hidden, cell = h.split(self.nhid, -1)
        output, state = self.rims(self.drop(self.encoder(inp)), (hidden, cell))
        return self.decoder(self.drop(output)), torch.cat(state, -1)
