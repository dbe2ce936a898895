"""From a stream of frames to a policy: config, replay, learner, train, evaluate, checkpoint."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.playing.policy import Agent, load

__all__ = ["Agent", "load"]


def __getattr__(name: str) -> Any:
    """Import `Agent` and `load` when they are first asked for, so that commands start fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from agents.playing import policy

    return getattr(policy, name)
