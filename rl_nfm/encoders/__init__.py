"""The encoders and their registry: one file each, chosen by name."""

from rl_nfm.encoders import (  # noqa: F401  (they register)
    brims,
    hadamax,
    impala,
    lstm,
    nature,
    nfm,
    resnet,
    rim,
)
from rl_nfm.encoders.base import (
    Encoder,
    Extras,
    FeedForwardEncoder,
    Recording,
    State,
    scale_pixels,
)
from rl_nfm.encoders.registry import (
    encoder_entries,
    encoder_entry,
    encoder_names,
    make_encoder,
    register_encoder,
)

__all__ = [
    "Encoder",
    "Extras",
    "FeedForwardEncoder",
    "Recording",
    "State",
    "encoder_entries",
    "encoder_entry",
    "encoder_names",
    "make_encoder",
    "register_encoder",
    "scale_pixels",
]
