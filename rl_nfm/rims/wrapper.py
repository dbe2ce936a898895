"""RIMs behind the interface of the authors' `BlocksWrapper`, which itself cannot be constructed.

Shapes: T time steps, B batch, I inputs (`ntokens`), O outputs (`n_out`), S = 2 `nhid`.
"""

import torch
from jaxtyping import Float
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

    def forward(
        self, inp: Float[Tensor, "T B I"], h: Float[Tensor, "1 B S"]
    ) -> tuple[Float[Tensor, "T B O"], Float[Tensor, "1 B S"]]:
        """Outputs and new state; a state is the hidden and the cell state side by side."""
        hidden, cell = h.split(self.nhid, -1)
        output, state = self.rims(self.drop(self.encoder(inp)), (hidden, cell))
        return self.decoder(self.drop(output)), torch.cat(state, -1)
