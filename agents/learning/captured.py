"""A function over fixed tensors, replayed as one CUDA graph.

A launch costs the host about 10 us and an update has thousands; a graph is one launch. What is
captured reads and writes the same tensors every time, and decides nothing on the host.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch

from agents.learning.random_stream import RandomStream
from rl_nfm.support.errors import first_line

WARM_UP_CALLS = 3
"""Calls before the capture: they compile kernels, choose algorithms and allocate lasting state."""


class Captured:
    """Callable like the function itself; after a few calls on a GPU, the replay of its graph.

    Call it on one stream always. Where the function cannot be captured (an encoder
    that asks the host, say), it goes on as it is, with one warning.
    """

    def __init__(
        self,
        function: Callable[[], object],
        *,
        name: str,
        enabled: bool,
        random: RandomStream | None = None,
    ):
        """Make it; nothing is captured yet.

        Args:
            function: works on fixed tensors; what it returns is dropped.
            name: of the warning.
            enabled: false: always as it is, which is all there is on a CPU.
            random: what it draws from; None: it draws nothing, or nothing is captured.
        """
        self.function, self.name, self.enabled, self.random = function, name, enabled, random
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0

    @property
    def captured(self) -> bool:
        """Whether calls are replays."""
        return self._graph is not None

    def __call__(self) -> None:
        """Once, without host synchronisation (but for the capture itself)."""
        if self.enabled and self._graph is None and self._calls >= WARM_UP_CALLS:
            self._capture()
        if self._graph is not None:
            self._graph.replay()  # its generator was recorded with it
        else:
            self._calls += 1
            self._plainly()

    def forget(self) -> None:
        """Warm up and capture anew: after tensors that it uses were replaced."""
        self._graph, self._calls = None, 0

    def _plainly(self) -> None:
        if self.random is None:
            self.function()
        else:
            with self.random.drawn():
                self.function()

    def _capture(self) -> None:
        graph = _new_graph()
        # Never the default generator, which everything else draws from: see `renew`.
        random = self.random or RandomStream(torch.device("cuda"), 0)
        try:
            with random.drawn(), _recording(graph):
                self.function()
        except Exception as error:  # whatever the driver or what is recorded may raise
            self.enabled = False
            random.renew()
            warnings.warn(
                f"{self.name} cannot be captured as a CUDA graph and stays slower "
                f"({first_line(error)})",
                RuntimeWarning,
                stacklevel=3,
            )
        else:
            self._graph = graph


def _new_graph() -> torch.cuda.CUDAGraph:
    return torch.cuda.CUDAGraph()


@contextlib.contextmanager
def _recording(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    current = torch.cuda.current_stream()
    # the default stream cannot be captured; a stream of torch.cuda.graph's own stands in for it
    stream = None if current == torch.cuda.default_stream() else current
    # thread_local: a checkpoint that is written in the background may use the device meanwhile
    # A capture that fails would leave its stream the current one, but for the outer block.
    with (
        torch.cuda.stream(current),
        torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
    ):
        yield
