"""Progress: a bar on a terminal, a line a minute elsewhere, never silence."""

import io
import os
import pty

import pytest

from rl_nfm.support.progress import Progress


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_a_line_after_ten_seconds_and_then_every_minute():
    clock, out, said = Clock(), io.StringIO(), []
    progress = Progress(1000, begun=100, unit="update", stream=out, clock=clock, name="copying")
    for second in range(1, 201):
        clock.now = float(second)
        progress.advance(2)
        said.append(len(out.getvalue().splitlines()))
    # at 10, 70, 130 and 190 s
    assert [second for second in range(1, 200) if said[second] > said[second - 1]] == [
        9,
        69,
        129,
        189,
    ]
    progress.close()
    lines = out.getvalue().splitlines()
    assert len(lines) == 5
    # 20 of 900 more in 10 s, so 880 take 440 s
    assert lines[0] == "copying: 120 of 1,000 updates (12 %), 2 updates/s, 7 min left"
    assert lines[-1] == "copying: 500 of 1,000 updates (50 %), 2 updates/s, 4 min left"
    assert "\r" not in out.getvalue()


def test_a_short_job_says_where_it_ended():
    clock, out = Clock(), io.StringIO()
    with Progress(3, stream=out, clock=clock) as progress:
        for _ in range(3):
            clock.now += 0.5
            progress.advance()
    assert out.getvalue() == "3 of 3 steps (100 %), 2 steps/s\n"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_what_else_is_known_is_shown_as_soon_as_it_is(stream):
    clock, out, known = Clock(), stream(), {}
    with Progress(100, stream=out, clock=clock, values=lambda: known) as progress:
        clock.now = 11.0
        progress.advance()
        assert "updates/s" not in out.getvalue()
        known |= {"updates/s": 12.34, "return": 1234.5}
        clock.now = 80.0
        progress.advance()
        assert ("updates/s 12.3, return 1,234" in out.getvalue()) == (stream is io.StringIO)
        assert ("updates/s=12.3, return=1,234" in out.getvalue()) == (stream is Terminal)


def test_on_a_real_terminal_it_is_a_bar():
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        with Progress(4, stream=terminal, name="x") as progress:
            progress.advance(4)
        text = ""
        while "4/4" not in text:
            text += os.read(ours, 10_000).decode()
    os.close(ours)
    assert "\r" in text
    assert "100%" in text


class Gone(io.StringIO):
    """A stream whose reader goes away after the first line."""

    def write(self, text):
        if self.getvalue():
            raise BrokenPipeError
        return super().write(text)


def test_a_job_outlives_those_who_read_of_it():
    clock, out = Clock(), Gone()
    with Progress(1000, stream=out, clock=clock) as progress:
        for second in range(0, 1000, 10):
            clock.now = float(second)
            progress.advance(10)
        progress.write("note")
        out.close()
        progress.show()
    assert progress.count == 1000
