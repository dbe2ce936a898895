"""`rl-nfm encoders`: every encoder, with numbers that can be worked out by hand."""

import json

import pytest

from agents import cli
from rl_nfm.encoders import encoder_names


def test_one_line_each(capsys):
    assert cli.main(["encoders"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "parameters", "MACs", "features", "summary"]
    assert [line.split()[0] for line in lines] == encoder_names()
    # Nature CNN: 32 maps of 20x20 from 4x8x8, 64 of 9x9 from 32x4x4, 64 of 7x7 from 64x3x3:
    # 12800*256 + 5184*512 + 3136*576 = 7,737,344; weights 32*257 + 64*513 + 64*577 = 77,984
    nature = lines[encoder_names().index("nature")].split()
    assert nature[:4] == ["nature", "77,984", "7,737,344", "3,136"]


def test_json(capsys):
    assert cli.main(["encoders", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == encoder_names()
    for row in rows.values():
        assert min(row["parameters"], row["macs"], row["feature_dim"]) > 0
        assert row["summary"]
    assert rows["nature"]["recurrent"] is False


def test_help(capsys):
    assert cli.main(["encoders", "--help"]) == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["--jsno", "nature"])
def test_bad_option(word, capsys):
    assert cli.main(["encoders", word]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"rl-nfm: option: {word!r} is unknown")
    assert not captured.out
