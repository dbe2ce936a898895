"""Neural Function Modules (Lamb et al. 2021, arXiv 2010.08012) for any network.

`NeuralFunctionModule` wraps a list of layers, `NFMWrapper` submodules of any network by their
names. Options are the fields of `NFMConfig`, `NFM_PRESETS` holds the paper's and the published
code's, and `record_attention` gives what a network attends to as arrays.
"""

from rl_nfm.nfm.by_name import NFMWrapper
from rl_nfm.nfm.config import NFM_PRESETS, NFMConfig, NFMPreset, TaskNFMConfig
from rl_nfm.nfm.module import NeuralFunctionModule, Places
from rl_nfm.nfm.places import set_random_attention
from rl_nfm.nfm.record import record_attention

__all__ = [
    "NFM_PRESETS",
    "NFMConfig",
    "NFMPreset",
    "NFMWrapper",
    "NeuralFunctionModule",
    "Places",
    "TaskNFMConfig",
    "record_attention",
    "set_random_attention",
]
