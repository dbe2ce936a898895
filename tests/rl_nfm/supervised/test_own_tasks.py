"""Tasks that another package registers, with presets given as configs."""

import dataclasses
import enum
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rl_nfm.supervised.cli import COMMANDS, main
from rl_nfm.supervised.loop.run import LoopConfig, Task, register_loop_task
from rl_nfm.supervised.models import MODELS, Models

TABLE = Models("counts")


class Act(enum.Enum):
    RELU = "relu"
    TANH = "tanh"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountConfig(LoopConfig):
    """Options of the task."""

    model: str = "plain"
    """One of the models."""
    act: Act = Act.RELU
    """What the model computes with."""
    sizes: frozenset[int] = frozenset({3})
    """Sizes."""
    wrong: bool = False
    """Whether a metric is no number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepConfig:
    """Options of deep."""

    layers: int = 2
    """How many."""


class Count(Task[CountConfig]):
    """Fits ones."""

    models = TABLE

    def batches(self, epoch):
        yield torch.ones(1, 1)

    def loss(self, model, batch):
        return model(batch).square().mean()

    def evaluate(self, model):
        scalars: dict[str, Any] = {
            "numpy": np.float32(0.5),
            "tensor": torch.tensor(2.0),
            "whole": 3,
        }
        return scalars | ({"words": "many"} if self.config.wrong else {})


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr("rl_nfm.supervised.registry._TASKS", {})
    known = dict(MODELS)
    TABLE.register("plain", "one layer")(lambda task: nn.Linear(1, 1))
    TABLE.register("deep", "more", options=DeepConfig)(
        lambda task: nn.Sequential(*(nn.Linear(1, 1) for _ in range(task.config.deep.layers)))
    )
    presets = {"small": CountConfig(epochs=2), "long": CountConfig(epochs=3, preset="long")}
    register_loop_task("counts", "fits ones", Count, presets)
    yield
    MODELS.clear()
    MODELS.update(known)


def test_models_bring_options_of_their_own(tmp_path):
    assert main(["counts", "--out", str(tmp_path / "plain")]) == 0
    deep = ["counts", "--preset", "long", "--model", "deep", "--deep.layers", "3"]
    assert main([*deep, "--act", "TANH", "--out", str(tmp_path / "deep")]) == 0
    result = json.loads((tmp_path / "deep/result.json").read_text())
    assert result["trials"][0]["parameters"] == 6
    assert result["trials"][0]["epochs"] == 3
    config = result["config"]
    assert (config["deep"], config["act"], config["sizes"]) == ({"layers": 3}, "tanh", [3])
    metrics = result["trials"][0]["metrics"]
    assert {name: metrics[name] for name in ("numpy", "tensor", "whole")} == {
        "numpy": 0.5,
        "tensor": 2.0,
        "whole": 3,
    }
    with pytest.raises(ValueError, match="deep: has no effect on model 'plain'"):
        main(["counts", "--deep.layers", "3"])


def test_what_was_saved_is_read_again_whatever_the_kind_of_the_options(tmp_path):
    run, report = str(tmp_path / "run"), str(tmp_path / "report")
    assert main(["counts", "--act", "TANH", "--out", run]) == 0
    assert main(["counts", "--resume", run, "--epochs", "4"]) == 0
    assert main(["report", run, "--out", report]) == 0


def test_a_file_is_a_preset_too(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: deep\ndeep: {layers: 4}\nact: tanh\n")
    assert main(["counts", "--preset", str(file), "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run/result.json").read_text())["trials"][0]["parameters"] == 8
    other = tmp_path / "other.yaml"
    other.write_text("dep: {layers: 4}\n")
    with pytest.raises(ValueError, match=r"'dep' is unknown; did you mean 'deep'"):
        main(["counts", "--preset", str(other)])
    with pytest.raises(ValueError, match=r"'larg' is unknown.* small, long"):
        main(["counts", "--preset", "larg"])


def test_a_metric_that_is_no_number_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^words: the task's metric must be a number, got 'many'"):
        main(["counts", "--wrong", "True", "--out", str(tmp_path / "run")])


def test_names_of_commands_are_not_free():
    for name in COMMANDS:
        with pytest.raises(ValueError, match="a command is called so"):
            register_loop_task(name, "mine", Count, {"small": CountConfig()})
