"""Bytes flipped in every kind of file of a run: refused by name or harmless, never silent.

What is not noticed is said in docs/reliability.md: a digit changed into another one within
metrics.jsonl, and an edit of config.yaml that a flag would be allowed to make.
"""

import json
import random
from pathlib import Path

import pytest
import torch

from agents import cli
from agents.config import to_plain
from agents.saving import checkpoint
from agents.saving.resumable import RESUMABLE, changed_fields, check_resumable
from agents.saving.run_folder import RunFolder
from rl_nfm.support.metrics_file import MetricsFile

MASKS = (0x01, 0x80, 0xFF)
KINDS = ["meta.json", "network.safetensors", "training.safetensors", "replay-"]


def positions(content: bytes, count: int) -> list[int]:
    """Of each class of bytes (digit, letter, mark, space, control, high) some, begin and end."""
    classes: dict[str, list[int]] = {}
    for place, byte in enumerate(content):
        char = chr(byte)
        kind = "high" if byte > 127 else "digit" if char.isdigit() else "letter"
        if byte < 128 and not char.isalnum():
            kind = "space" if char.isspace() else char if char.isprintable() else "control"
        classes.setdefault(kind, []).append(place)
    clock = random.Random(len(content))
    chosen = {0, 7, 8, 9, len(content) // 2, len(content) - 1}
    for places in classes.values():
        chosen |= set(clock.sample(places, min(count, len(places))))
    return sorted(place for place in chosen if place < len(content))


def flips(path: Path, count: int):
    """Each time round, one byte of the file is another."""
    content = path.read_bytes()
    for place in positions(content, count):
        for mask in MASKS:
            changed = bytearray(content)
            changed[place] ^= mask
            path.write_bytes(changed)
            yield place, mask
    path.write_bytes(content)


def read_all(folder: Path):
    """Everything that a resume reads of a checkpoint."""
    found = checkpoint.open_checkpoint(folder, replay=True)
    stems = [name.removesuffix(".safetensors") for name in found.meta.files]
    return found.meta, {(stem, k): v for stem in stems for k, v in found.tensors(stem).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_refused_by_the_name_of_the_file(run, kind):
    folder = checkpoint.find(run)
    meta, tensors = read_all(folder)
    path = next(path for path in folder.iterdir() if path.name.startswith(kind))
    tried = 0
    for place, mask in flips(path, 2):
        tried += 1
        told, found = None, None
        try:
            found, _ = read_all(folder)
        except checkpoint.CheckpointError as error:
            told = str(error)
        if told is None:
            assert kind == "meta.json", (place, mask)
            assert found == meta, "white space of the meta data"
        else:
            assert path.name in told or kind == "meta.json", (place, mask)
            assert told.isprintable()
    assert tried > 20
    assert all(torch.equal(value, tensors[name]) for name, value in read_all(folder)[1].items())


def test_an_edited_config_changes_nothing_that_a_flag_may_not(run):
    """The fault of a byte, and of a user who edits config.yaml between two runs."""
    folder = RunFolder.open(run)
    saved = checkpoint.open_checkpoint(checkpoint.find(run)).config
    told = []
    check_resumable(saved, folder.config())
    for _ in flips(folder.config_path, 6):
        try:
            config = folder.config()
            check_resumable(saved, config)
        except ValueError as error:
            told += str(error).splitlines()
            continue
        for name in changed_fields(to_plain(saved), to_plain(config)):
            assert any(name == free or name.startswith(f"{free}.") for free in RESUMABLE), name
    assert len(told) > 30
    assert all(line.isprintable() for line in told)
    folder.config_path.write_text(folder.config_path.read_text().replace("steps: 16", "steps: 17"))
    check_resumable(saved, folder.config())  # as --run.log-every-steps 17 would


def test_metrics_lose_the_damaged_line_alone(run, caplog):
    metrics = MetricsFile(run / "metrics.jsonl", "steps")
    whole = metrics.read().lines
    for place, mask in flips(metrics.path, 8):
        content = metrics.read()
        line = metrics.path.read_bytes()[:place].count(b"\n")
        others = [x for x in whole if x not in content.lines]
        # a flipped end of line costs the two lines that it parts
        assert len(others) <= 2, (place, mask)
        if len(content.lines) < len(whole):
            assert content.damaged or content.torn, (place, mask)
            assert set(content.damaged) <= {line, line + 1, line + 2}


def test_a_resumed_run_keeps_damaged_metrics_beside(run, caplog):
    path = run / "metrics.jsonl"
    content = path.read_bytes().splitlines(keepends=True)
    content[2] = b'{"steps": 48, \xff\n'
    content[3] = b'{"steps": null}\n'
    path.write_bytes(b"".join(content) + b'{"steps": 97, "torn')
    damaged = path.read_bytes()
    RunFolder.open(run).metrics.cut(96)
    steps = [json.loads(line)["steps"] for line in path.read_text().splitlines()]
    assert steps == [16, 32, *[json.loads(line)["steps"] for line in content[4:]]]
    assert (run / "metrics.damaged.jsonl").read_bytes() == damaged
    assert "metrics.jsonl: lines 3, 4 cannot be read: left out; the file as it was" in caplog.text
    path.write_bytes(b"\x00\n")
    RunFolder.open(run).metrics.cut(96)
    assert (run / "metrics.damaged1.jsonl").read_bytes() == b"\x00\n"
    caplog.clear()
    path.write_bytes(b'{"steps": 16}\n{"steps": 3')
    RunFolder.open(run).metrics.cut(96)
    assert not caplog.text, "a torn last line is no damage: a killed run leaves one"
    assert not (run / "metrics.damaged2.jsonl").exists()


@pytest.mark.parametrize("kind", [*KINDS, "config.yaml"])
def test_the_commands_say_it_in_one_line(run, kind, capsys):
    files = [path for path in run.rglob("*") if path.name.startswith(kind)]
    for path in files:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    for command in (["evaluate", str(run)], ["train", "--resume", str(run), "--steps", "128"]):
        if command[0] == "evaluate" and kind in ("replay-", "training.safetensors", "config.yaml"):
            continue  # training.safetensors is checked with the rest, the others are not read
        capsys.readouterr()
        assert cli.main(command) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1, err
        assert kind in err
