"""Queues of work on the device, and the events that order them.

Acting and learning each have a stream. Work of one stream runs in the order in which it was handed
over; between streams, and between a stream and the host, only events order anything. On a GPU a
stream is a CUDA stream. On the CPU work runs at once, so that every event has already happened:
the same code, where waiting does nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import torch


class Event(Protocol):
    """A point in a stream's work."""

    def synchronize(self) -> object:
        """Let the host wait until the work before it is done."""
        ...


class Stream(Protocol):
    """A queue of work."""

    def run(self, work: Callable[[], object]) -> None:
        """Append work: what it starts on the device belongs to this stream."""
        ...

    def record(self) -> Event:
        """The event that all work appended so far is done."""
        ...

    def wait(self, event: Event) -> None:
        """Work appended from now on begins after this event of another stream."""
        ...

    def follow(self) -> None:
        """Work appended from now on begins after what was started outside of any such stream."""
        ...

    def finish(self) -> None:
        """Let the host wait for all work appended so far."""
        ...


class HostStream:
    """The stream of the CPU: work runs at once."""

    def run(self, work: Callable[[], object]) -> None:
        """Do it."""
        work()

    def record(self) -> Event:
        """An event that has happened."""
        return self

    def wait(self, event: Event) -> None:
        """Nothing to wait for."""

    def follow(self) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def finish(self) -> None:
        """Nothing to wait for."""


class CudaStream:
    """A CUDA stream; its kernels may run beside those of other streams."""

    def __init__(self, device: torch.device, *, urgent: bool):
        # the smaller the number, the earlier the blocks of its kernels get a processor
        self._stream = torch.cuda.Stream(device, priority=-1 if urgent else 0)

    def run(self, work: Callable[[], object]) -> None:
        """Launch it on this stream."""
        with torch.cuda.stream(self._stream):
            work()

    def record(self) -> Event:
        """A CUDA event."""
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def wait(self, event: Event) -> None:
        """The device waits, not the host."""
        assert isinstance(event, torch.cuda.Event)
        self._stream.wait_event(event)

    def follow(self) -> None:
        """After the device's current stream."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    def finish(self) -> None:
        """The host waits."""
        self._stream.synchronize()


def make_stream(device: torch.device, *, urgent: bool = False) -> Stream:
    """A stream of this device; an urgent one goes first where both have work."""
    return CudaStream(device, urgent=urgent) if device.type == "cuda" else HostStream()


@contextlib.contextmanager
def one_host_thread(device: torch.device) -> Iterator[None]:
    """With a GPU the host computes nothing; threads that wait for work would slow the emulators."""
    before = torch.get_num_threads()
    if device.type == "cuda":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
