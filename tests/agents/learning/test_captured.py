"""Capture of a function as a graph, and what happens where that fails.

The graph itself needs a GPU; here a stand-in tells what would be recorded and replayed.
"""

import contextlib
import warnings

import pytest
import torch

from agents.learning import captured
from agents.learning.captured import WARM_UP_CALLS, Captured
from agents.learning.random_stream import RandomStream

CPU = torch.device("cpu")


class FakeGraph:
    """Replays by doing the function's work; recording does none."""

    function = None

    def replay(self):
        assert self.function is not None
        self.function()


@pytest.fixture
def calls(monkeypatch):
    """What is done, in order: `run` eagerly, `record`, `replay`."""
    told = []

    @contextlib.contextmanager
    def recording(graph):
        told.append("record")
        begin = len(told)
        yield
        del told[begin:]
        graph.function = lambda: told.append("replay")

    monkeypatch.setattr(captured, "_new_graph", FakeGraph)
    monkeypatch.setattr(captured, "_recording", recording)
    return told


def on_the_cpu(function, **options):
    return Captured(function, name="it", random=RandomStream(CPU, 0), **options)


def test_every_call_does_the_work_once(calls):
    work = on_the_cpu(lambda: calls.append("run"), enabled=True)
    for _ in range(WARM_UP_CALLS + 2):
        work()
    assert calls == ["run"] * WARM_UP_CALLS + ["record", "replay", "replay"]
    assert work.captured


def test_without_capture_it_is_the_function(calls):
    work = on_the_cpu(lambda: calls.append("run"), enabled=False)
    for _ in range(WARM_UP_CALLS + 2):
        work()
    assert calls == ["run"] * (WARM_UP_CALLS + 2)


def test_what_was_forgotten_is_captured_anew(calls):
    work = on_the_cpu(lambda: calls.append("run"), enabled=True)
    for _ in range(WARM_UP_CALLS + 1):
        work()
    work.forget()
    calls.clear()
    for _ in range(WARM_UP_CALLS + 1):
        work()
    assert calls == ["run"] * WARM_UP_CALLS + ["record", "replay"]


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError, TypeError])
def test_a_failed_capture_goes_on_plainly_with_one_warning(kind, calls, monkeypatch):
    @contextlib.contextmanager
    def refusing(_graph):
        yield
        raise kind("operation not permitted when stream is capturing\nmore words")

    monkeypatch.setattr(captured, "_recording", refusing)
    work = on_the_cpu(lambda: calls.append("run"), enabled=True)
    for _ in range(WARM_UP_CALLS):
        work()
    calls.clear()
    message = r"^it cannot be captured as a CUDA graph and stays slower \(operation not permitted"
    with pytest.warns(RuntimeWarning, match=message):
        work()
    calls.remove("run")  # the attempt, which on a GPU records and does nothing
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        work()
    assert calls == ["run", "run"]
    assert not work.captured


def test_numbers_are_its_own_and_go_on_after_a_failed_capture(calls, monkeypatch):
    drawn = []
    work = on_the_cpu(lambda: drawn.append(float(torch.rand(()))), enabled=False)
    torch.manual_seed(5)
    outside = torch.get_rng_state()
    for _ in range(3):
        work()
    assert torch.equal(torch.get_rng_state(), outside)
    work.random.renew()
    work()
    expected = torch.rand(4, generator=torch.Generator().manual_seed(0)).tolist()
    assert drawn == expected


def test_a_random_stream_gives_and_takes_its_place():
    a, b = RandomStream(CPU, 3), RandomStream(CPU, 4)
    with a.drawn():
        torch.rand(5)
    b.load_state(a.state())
    with a.drawn():
        x = torch.rand(3)
    with b.drawn():
        y = torch.rand(3)
    assert torch.equal(x, y)
