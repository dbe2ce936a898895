"""Replay: the buffer, its priorities, and where its steps are kept (`replay.storage`)."""

from rl_nfm.support.discovery import import_modules

import_modules(__name__, __path__)
