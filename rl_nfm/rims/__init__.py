"""Recurrent Independent Mechanisms (Goyal et al., arXiv 1909.10893).

`RIM_LSTM(600, 300, 6, 4)` and `RIM_GRU` are called like `nn.LSTM` and `nn.GRU`; `RIMLSTMCell` and
`RIMGRUCell` like their cells. The method and how we deviate: `rl_nfm.rims.cells`; the published
forms: `rl_nfm.rims.variants`. `BRIM_LSTM` and `BRIM_GRU` are stacks in which layers also read from
the layer above: `rl_nfm.rims.bidirectional`.
"""

from rl_nfm.rims.bidirectional import BRIM_GRU, BRIM_LSTM
from rl_nfm.rims.cells import RIMGRUCell, RIMLSTMCell
from rl_nfm.rims.layers import RIM_GRU, RIM_LSTM
from rl_nfm.rims.variants import BRIM_VARIANTS, VARIANTS, BRIMVariant, Variant
from rl_nfm.rims.wrapper import BlocksWrapper

__all__ = [
    "BRIM_GRU",
    "BRIM_LSTM",
    "BRIM_VARIANTS",
    "RIM_GRU",
    "RIM_LSTM",
    "VARIANTS",
    "BRIMVariant",
    "BlocksWrapper",
    "RIMGRUCell",
    "RIMLSTMCell",
    "Variant",
]
