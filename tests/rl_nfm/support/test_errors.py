import functools
import json
import re

import pytest

from rl_nfm.support.errors import (
    first_line,
    foreign_errors,
    foreign_modules,
    named_line,
    signal_name,
)


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


def test_only_code_of_others_is_foreign():
    """A builder of this project that is a partial function counted as one of `functools`."""
    own, others = functools.partial(first_line), [json.loads, functools.partial(json.loads)]
    assert foreign_modules(own, first_line) == []
    assert foreign_modules(own, *others) == ["json"]
    with pytest.raises(KeyError), foreign_errors("x", own):
        raise KeyError("own")
    for error, said in ((KeyError("a"), "KeyError: 'a' (RL_NFM_TRACEBACK"), (ValueError("b"), "b")):
        with (
            pytest.raises(ValueError, match=re.escape(f"x (json): {said}")),
            foreign_errors("x", json.loads),
        ):
            raise error
    with pytest.raises(OSError, match=r"^full$"), foreign_errors("x", json.loads):
        raise OSError("full")
    with (
        pytest.raises(ValueError, match=r"^told$"),
        foreign_errors("x", json.loads, value_errors=False),
    ):
        raise ValueError("told")
