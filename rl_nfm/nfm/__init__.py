"""Neural Function Modules (Lamb et al. 2021, arXiv 2010.08012) for any network.

`NeuralFunctionModule` wraps a list of layers; options are the fields of `NFMConfig`, and
`NFM_PRESETS` holds the paper's and the published code's.
"""

from rl_nfm.nfm.config import NFM_PRESETS, NFMConfig
from rl_nfm.nfm.module import NeuralFunctionModule, Places

__all__ = ["NFM_PRESETS", "NFMConfig", "NeuralFunctionModule", "Places"]
