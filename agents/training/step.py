"""One gradient step: draw a batch, update the networks, write the priorities back.

The learner knows no replay and the replay no learner; they meet here. So do the ways to make them
faster, which need the whole step at once: compiling and capture as a CUDA graph.
"""

from typing import Protocol

import torch
from torch import Tensor

from agents.learning.learner import Learner
from agents.replay.buffer import Batch, ReplayConfig


class Memory(Protocol):
    """What a gradient step asks of a replay."""

    config: ReplayConfig

    def sample(self, batch_size: int) -> Batch:
        """Draw a batch."""
        ...

    def update_priorities(self, index: Tensor, td_error: Tensor, mask: Tensor) -> None:
        """Tell the |TD errors| of a batch."""
        ...

    def set_schedule(self, progress: float) -> None:
        """Set what depends on the share of training done."""
        ...


class GradientStep:
    """Callable: one update. On a GPU, after three eager ones, the replay of a captured graph."""

    def __init__(self, learner: Learner, replay: Memory):
        self.learner, self.replay = learner, replay
        if learner.config.compile:
            learner.compile()
        self._use_graph = learner.device.type == "cuda" and learner.config.cuda_graph
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager_updates = 0

    def set_schedule(self, progress: float) -> None:
        """Set learning rate and beta for this share of training done, in [0, 1]."""
        self.learner.set_schedule(progress)
        self.replay.set_schedule(progress)

    def __call__(self) -> None:
        """One update, without host synchronisation."""
        if self._graph is not None:
            self._graph.replay()
        elif self._use_graph and self._eager_updates >= 3:
            self._capture()
        else:
            self._run()
            self._eager_updates += 1
        self.learner.count_update()

    def forget_graph(self) -> None:
        """After a restore: what was captured would write to tensors that are no longer in use."""
        self._graph, self._eager_updates = None, 0

    def _run(self) -> None:
        batch = self.replay.sample(self.replay.config.batch_size)
        error = self.learner.gradient_step(batch)
        self.replay.update_priorities(batch.index, error, batch.mask)

    def _capture(self) -> None:
        """Capture one update; the eager ones before it have warmed up every kernel."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run()  # allocations and autotuning on the side stream; counts as this update
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        self._graph = graph
