"""Meta data and tensors that are wrong but validly signed, as another version or a hand makes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agents import cli
from agents.saving import checkpoint
from agents.saving.restoring import restore
from agents.training import train
from agents.training.record import Counters
from rl_nfm.support import storage

Meta = dict[str, Any]
WRONG = [None, "x", -1, [], {}, 1e300, True, 10**30, "x" * 10_000, [[["deep"]]]]
COUNTERS = ["steps", "updates", "episodes", "update_credit", "last_returns", "best_return"]


def sign(folder: Path, meta: Meta) -> None:
    meta = {key: value for key, value in meta.items() if key != "sha256"}
    meta["sha256"] = storage._meta_sha256(meta)
    (folder / "meta.json").write_text(json.dumps(meta))


def rewrite(folder: Path, stem: str, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a file, with the digest that belongs to them."""
    tensors = storage.load_tensors(folder / f"{stem}.safetensors")
    edit(tensors)
    (folder / f"{stem}.safetensors").unlink()
    meta = json.loads((folder / "meta.json").read_text())
    digest = storage.write_tensors(folder / f"{stem}.safetensors", tensors)
    meta["files"][f"{stem}.safetensors"] = digest
    sign(folder, meta)


def put(meta: Meta, path: tuple[str, ...], value: Any) -> None:
    *outer, last = path
    for key in outer:
        meta = meta[key]
    meta[last] = value


def drop(meta: Meta, path: tuple[str, ...]) -> None:
    *outer, last = path
    for key in outer:
        meta = meta[key]
    del meta[last]


PLACES = [
    *((key,) for key in ("config", "counters", "files", "obs_shape", "num_actions", "replay")),
    *(("counters", key) for key in COUNTERS),
    *(("replay", key) for key in ("rows", "added_rows")),
    *(("config", key) for key in ("game", "encoder", "env", "replay", "head", "steps", "nature")),
    ("config", "head", "hidden_size"),
]


@pytest.fixture(scope="module")
def fresh(finished):
    """Networks and a replay to put things back into."""
    config = checkpoint.open_checkpoint(checkpoint.find(finished)).config
    made = train.Trainer(config, torch.device("cpu"))
    yield made
    made.env.close()


def read_back(folder: Path, fresh: train.Trainer) -> None:
    """All that `evaluate` and `train --resume` do with a checkpoint."""
    found = checkpoint.open_checkpoint(folder, replay=True)
    checkpoint.load_network(found, torch.device("cpu"))
    restore(found, fresh.learner, fresh.replay, fresh.others)
    Counters.of(found.counters, where=str(folder))


def message(folder: Path, fresh: train.Trainer) -> str | None:
    """Of the error, which must be one short line; None without one."""
    told = None
    try:
        read_back(folder, fresh)
    except ValueError as error:
        told = str(error)
    assert told is None or (told.isprintable() and len(told) < 1000), told
    return told


def test_what_is_right_is_taken(run, fresh):
    folder = checkpoint.find(run)
    sign(folder, json.loads((folder / "meta.json").read_text()))
    rewrite(folder, "training", lambda tensors: None)
    assert message(folder, fresh) is None


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_wrong_meta_data_is_one_line(run, fresh, place):
    folder = checkpoint.find(run)
    whole = json.loads((folder / "meta.json").read_text())
    optional = {("replay",), *(("counters", key) for key in COUNTERS[2:])}
    has_default = place[0] == "config" and len(place) > 1
    for value in WRONG:
        meta = json.loads(json.dumps(whole))
        put(meta, place, value)
        sign(folder, meta)
        told = message(folder, fresh)
        harmless = {
            ("counters", "best_return"): (None, -1, 1e300, 10**30),
            ("counters", "last_returns"): ([],),
            ("replay",): (None,),
            ("config", "game"): ("x", "x" * 10_000),  # the environment is asked later
        }
        allowed = any(value is good or value == good for good in harmless.get(place, ()))
        if isinstance(value, bool):
            allowed = False
        empty = value == {} and has_default and place[-1] in ("env", "replay")
        assert told is not None or allowed or empty, (place, value)
    meta = json.loads(json.dumps(whole))
    drop(meta, place)
    sign(folder, meta)
    told = message(folder, fresh)
    assert told is not None or place in optional or has_default, place


def no_value(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def other(name: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: value})


WEIGHT = "encoder.convs.0.weight"
TENSORS = [
    ("network", no_value(WEIGHT), "Missing key"),
    ("network", other("more", torch.zeros(2)), "Unexpected key"),
    ("network", other(WEIGHT, torch.zeros(2)), "size mismatch"),
    ("network", other(WEIGHT, torch.full((4, 2, 8, 8), float("inf"))), "is not finite"),
    ("training", no_value("rng.cpu"), "'rng.cpu' is missing"),
    ("training", other("rng.cpu", torch.zeros(3, dtype=torch.uint8)), "rng.cpu is torch.uint8"),
    ("training", other("rng.cpu", torch.zeros(5056)), "rng.cpu is torch.float32"),
    ("training", no_value(f"target.{WEIGHT}"), "Missing key"),
    ("training", other(f"target.{WEIGHT}", torch.zeros(1)), "size mismatch"),
    ("training", other(f"optimizer.{WEIGHT}.exp_avg", torch.zeros(2, 3)), "has shape (2, 3)"),
    ("training", other(f"optimizer.{WEIGHT}.exp_avg", torch.zeros(())), "has shape ()"),
    ("training", no_value(f"optimizer.{WEIGHT}.exp_avg"), "exp_avg"),
    ("training", other("optimizer.nothing.exp_avg", torch.zeros(2)), "belongs to no parameter"),
    ("training", other(f"optimizer.{WEIGHT}.step", torch.zeros(2)), "has shape (2,)"),
    ("training", no_value("replay.priorities"), "'replay.priorities' is missing"),
    ("training", other("replay.priorities", torch.zeros(1).double()), "replay.priorities is"),
    ("training", other("replay.priorities", torch.full((200,), float("nan")).double()), "finite"),
    ("training", other("replay.max_priority", torch.zeros(4).double()), "replay.max_priority is"),
    ("training", other("replay.added_rows", torch.tensor(-1)), "replay.added_rows is not 24"),
    ("training", other("replay.added_rows", torch.zeros(1)), "replay.added_rows is torch.float32"),
    ("training", other("updates", torch.tensor(-1)), "updates is not 7"),
    ("training", other("updates", torch.zeros(3)), "updates is not 7"),
    ("replay", no_value("frame"), "'frame' is missing"),
    ("replay", other("frame", torch.zeros(2, 4, 84, 84, dtype=torch.uint8)), "must be torch.uint8"),
    ("replay", other("action", torch.zeros(24, 4)), "action is torch.float32"),
    ("replay", other("reward", torch.full((24, 4), float("nan"))), "reward is not finite"),
]


@pytest.mark.parametrize("case", range(len(TENSORS)))
def test_wrong_tensors_are_one_line(run, fresh, case):
    stem, edit, expected = TENSORS[case]
    folder = checkpoint.find(run)
    if stem == "replay":
        stem = next(folder.glob("replay-*")).stem
    rewrite(folder, stem, edit)
    told = message(folder, fresh)
    assert told is not None
    assert expected in told


def test_missing_files_are_one_line(run, fresh):
    folder = checkpoint.find(run)
    whole = json.loads((folder / "meta.json").read_text())
    for name in list(whole["files"]):
        meta = json.loads(json.dumps(whole))
        del meta["files"][name]
        sign(folder, meta)
        told = message(folder, fresh)
        assert told is not None, f"{name} is not needed?"
        assert "missing" in told
    begin = next(folder.glob("replay-*")).name
    later = begin.replace("replay-00000000", "replay-00000009")
    shutil.move(folder / begin, folder / later)
    whole["files"][later] = whole["files"].pop(begin)
    sign(folder, whole)
    assert "rows 0 to 9 of the replay are missing" in str(message(folder, fresh))


@pytest.mark.parametrize(
    "edit",
    [
        lambda meta: meta["counters"].pop("steps"),
        lambda meta: meta["counters"].update(episodes="many"),
        lambda meta: meta["config"]["learner"].update(discount=0.5),
        lambda meta: meta["config"].update(game="nowhere"),
        lambda meta: meta.update(obs_shape=[2, 4]),
        lambda meta: meta["replay"].update(rows=7),
    ],
)
def test_the_commands_end_with_one_line(run, edit, capsys):
    folder = checkpoint.find(run)
    meta = json.loads((folder / "meta.json").read_text())
    edit(meta)
    sign(folder, meta)
    capsys.readouterr()
    assert cli.main(["train", "--resume", str(run), "--steps", "128"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
