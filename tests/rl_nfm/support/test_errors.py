import pytest

from rl_nfm.support.errors import first_line, named_line, signal_name


@pytest.mark.parametrize(
    ("error", "line", "named"),
    [
        (ValueError("one\ntwo"), "one", "ValueError: one"),
        (RuntimeError("\n \n  three \n"), "three", "RuntimeError: three"),
        (KeyError(), "KeyError", "KeyError"),
        (OSError(" \n"), "OSError", "OSError"),
    ],
)
def test_an_error_is_one_line_also_where_it_says_nothing(error, line, named):
    assert first_line(error) == line
    assert named_line(error) == named


def test_every_signal_has_a_name():
    assert [signal_name(number) for number in (9, 15, 40)] == ["SIGKILL", "SIGTERM", "signal 40"]
