"""Replays by name: `replay.storage` chooses one.

One file each in this folder, which registers a subclass of `Replay`; the option's name is that of
the registration.
"""

from rl_nfm.support.named import Named

storages = Named("replay storage", option="replay.storage", plugins="rl_nfm.replays")
"""Subclasses of `agents.replay.buffer.Replay` by name."""
register_storage = storages.register
