"""Recurrent Independent Mechanisms (Goyal et al., arXiv 1909.10893).

`RIM_LSTM(600, 300, 6, 4)` and `RIM_GRU` are called like `nn.LSTM` and `nn.GRU`; `RIMLSTMCell` and
`RIMGRUCell` like their cells. The method and how we deviate: `rl_nfm.rims.cells`; the published
forms: `rl_nfm.rims.variants`.
"""

from rl_nfm.rims.cells import RIMGRUCell, RIMLSTMCell
from rl_nfm.rims.layers import RIM_GRU, RIM_LSTM
from rl_nfm.rims.variants import VARIANTS, Variant
from rl_nfm.rims.wrapper import BlocksWrapper

__all__ = [
    "RIM_GRU",
    "RIM_LSTM",
    "VARIANTS",
    "BlocksWrapper",
    "RIMGRUCell",
    "RIMLSTMCell",
    "Variant",
]
