"""The encoders, chosen by name: one file each, which registers itself."""

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
from rl_nfm.support.discovery import import_modules

import_modules(__name__, __path__)

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
