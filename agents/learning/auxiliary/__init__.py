"""Auxiliary losses, chosen by name: one file each, which registers itself."""

from agents.learning.auxiliary.base import (
    AuxiliaryLoss,
    Latents,
    auxiliaries,
    make_auxiliaries,
    register_auxiliary,
)
from rl_nfm.support.discovery import import_modules

import_modules(__name__, __path__)

__all__ = ["AuxiliaryLoss", "Latents", "auxiliaries", "make_auxiliaries", "register_auxiliary"]
