"""Supervised runs say how far they are, in updates, where there is no terminal too."""

import re

import pytest

from rl_nfm.supervised.cli import main

RUNS = {
    "arithmetic": "--updates 60 --eval-every-updates 20 --batch-size 7 --trials 2",
    "modular": "--epochs 1 --trials 2",
    "classification": "--epochs 2 --width 2 --batch-size 800",
}


@pytest.mark.parametrize("task", RUNS)
def test_a_run_without_a_terminal_says_how_far_it_is_in_updates(task, tmp_path, capsys):
    assert main([task, *RUNS[task].split(), "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    err = capsys.readouterr().err
    assert "\r" not in err
    line = err.splitlines()[-1]
    found = re.fullmatch(r".*: ([\d,]+)( of \1)? updates( \(100 %\))?, .* updates/s", line)
    assert found, err
