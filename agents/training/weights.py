"""The weights that act.

Without a lag acting and learning take turns: acting reads the learner's own weights. With a lag of
one, acting uses the weights from before the updates in flight, copied into a network of its own:
the two overlap, and which weights choose which action is the same in every run, however fast either
side is.
"""

import copy
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from agents.learning.config import LearnerConfig
from agents.learning.narrow import narrow_
from agents.learning.network import QNetwork
from agents.learning.streams import Event, Stream


def lag_of(config: LearnerConfig, device: torch.device) -> int:
    """By how many batches of updates the acting weights lag behind the learner's."""
    if config.acting_lag is not None:
        return config.acting_lag
    return 1 if device.type == "cuda" else 0


class ActingWeights:
    """Hands weights from the learning stream to the acting stream."""

    def __init__(self, online: QNetwork, lag: int, *, acting: Stream, learning: Stream):
        self.lag, self.acting, self.learning = lag, acting, learning
        self.network = copy.deepcopy(online).requires_grad_(False).eval() if lag else online
        self._online = _tensors(online)
        self._acting_weights = _tensors(self.network)
        self._between = [x.clone() for x in self._acting_weights] if lag else []
        self._published: Event | None = None
        self._copied: Event | None = None

    def narrow(self, dtype: torch.dtype, act: Callable[[], object]) -> None:
        """Keep what autocast to `dtype` would cast at every act in that type; `act` shows what."""
        if self.lag and narrow_(self.network, dtype, act):
            self._acting_weights = _tensors(self.network)
            self._between = [x.clone() for x in self._acting_weights]

    def before_updates(self) -> None:
        """Let acting use the weights after the last updates; call it before more are appended."""
        if self.lag and self._published is not None:
            self.acting.wait(self._published)
            self.acting.run(lambda: _copy(self._acting_weights, self._between))
            self._copied = self.acting.record()

    def after_updates(self) -> None:
        """Publish the weights after the updates that were appended since `before_updates`."""
        if self.lag:
            if self._copied is not None:
                self.learning.wait(self._copied)  # what it publishes over has been read
            self.learning.run(lambda: _copy(self._between, self._online))
            self._published = self.learning.record()
        else:
            self.acting.wait(self.learning.record())

    def refresh(self) -> None:
        """Act with the learner's present weights: after a restore, when no work is under way."""
        if self.lag:
            _copy(self._acting_weights, self._online)
            self._published = None


def _tensors(network: QNetwork) -> list[Tensor]:
    return [x.detach() for x in (*network.parameters(), *network.buffers())]


@torch.no_grad()
def _copy(into: list[Tensor], values: list[Tensor]) -> None:
    # one call for each pair of types: a list of several types would be copied one by one
    for pair in {(a.dtype, b.dtype) for a, b in zip(into, values, strict=True)}:
        chosen = [(a.dtype, b.dtype) == pair for a, b in zip(into, values, strict=True)]
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            list(itertools.compress(into, chosen)), list(itertools.compress(values, chosen))
        )
