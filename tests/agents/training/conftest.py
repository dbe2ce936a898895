"""Streams that put work off, to find out which order the events really enforce.

Each stream is a queue. An early one works whenever its events allow, a late one only when someone
must have what it makes: a host that waits, or a stream that is itself forced to go on. Between the
two lies everything that a GPU may do. One wait can be left out, named by its line of code.

Only work of the streams is put off. What is done outside of them (construction, restoring, reading
and writing in a pause) is done at once, so that the two waits for it, `StaticActor.begin`'s
`follow` and the end of `Loop._paused`, are not tested here.
"""

import dataclasses
import linecache
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agents.learning.streams import Event
from agents.training.collector import Streams


class Recorder:
    """Makes the two streams of a run, and remembers which lines wait."""

    def __init__(self, *, acting_late: bool, learning_late: bool, leave_out: str | None = None):
        self.leave_out = leave_out
        self.waits: set[str] = set()
        self.queues = [Queue(self, late=acting_late), Queue(self, late=learning_late)]
        self.streams = Streams(acting=self.queues[0], learning=self.queues[1])

    def heeds(self) -> bool:
        """Whether the wait that is being made counts; notes its line."""
        line = _line_of_caller()
        self.waits.add(line)
        return line != self.leave_out

    def let_early_ones_work(self) -> None:
        moved = True
        while moved:
            worked = [queue.work() for queue in self.queues if not queue.late]  # each gets a turn
            moved = any(worked)


@dataclasses.dataclass
class Mark:
    """The event that `queue` has done its first `position` items."""

    queue: "Queue"
    position: int

    @property
    def happened(self) -> bool:
        return self.queue.done >= self.position

    def synchronize(self) -> None:
        if self.queue.recorder.heeds():
            self.queue.force(self.position)


class Queue:
    """A stream whose work waits in a list."""

    def __init__(self, recorder: Recorder, *, late: bool):
        self.recorder, self.late = recorder, late
        self.items: list[Callable[[], object] | Mark] = []
        self.done = 0

    def run(self, work: Callable[[], object]) -> None:
        self.items.append(work)
        self.recorder.let_early_ones_work()

    def record(self) -> Event:
        return Mark(self, len(self.items))

    def wait(self, event: Event) -> None:
        assert isinstance(event, Mark)
        if self.recorder.heeds():
            self.items.append(event)

    def follow(self) -> None:
        """Outside of the queues work is done at once."""

    def finish(self) -> None:
        if self.recorder.heeds():
            self.force(len(self.items))

    def work(self) -> bool:
        """Do what the events allow; returns whether anything was done."""
        before = self.done
        while self.done < len(self.items):
            item = self.items[self.done]
            if isinstance(item, Mark):
                if not item.happened:
                    break
                self.done += 1
            else:
                self.done += 1
                item()
        return self.done > before

    def force(self, position: int) -> None:
        """Do the first `position` items, and on other streams what they wait for."""
        while self.done < position:
            item = self.items[self.done]
            if isinstance(item, Mark) and not item.happened:
                item.queue.force(item.position)
                continue  # this queue, if early, may have gone on meanwhile
            self.done += 1
            if not isinstance(item, Mark):
                item()
            self.recorder.let_early_ones_work()


def _line_of_caller() -> str:
    """The code of the first frame outside this file."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__:
        assert frame.f_back is not None
        frame = frame.f_back
    code = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return f"{Path(frame.f_code.co_filename).name}: {code}"


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder
