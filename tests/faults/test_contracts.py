"""Code of other packages that breaks its contract: one line that names it, and nothing written."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import nn

from agents.cli import main
from agents.commands import train
from agents.learning.auxiliary import auxiliaries
from agents.learning.auxiliary.base import AuxiliaryLoss, register_auxiliary
from agents.replay.storage import register_storage, storages
from envs import registry as env_registry
from envs.memory import MemoryCueVecEnv
from rl_nfm.encoders import Encoder, FeedForwardEncoder, make_encoder, register_encoder, registry
from rl_nfm.supervised.loop.run import LoopConfig, Task, register_loop_task
from rl_nfm.supervised.registry import _TASKS

TRAIN = ["train", "debug", "--game", "memory_cue", "--device", "cpu", "--steps", "8"]


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Options of none."""


class Features(FeedForwardEncoder):
    """Features that are what `make` makes of ones [N, 8]."""

    feature_dim = 8

    def __init__(self, make):
        super().__init__()
        self.weight, self.make = nn.Parameter(torch.ones(8)), make

    def embed(self, pixels):
        return self.make(self.weight.expand(len(pixels), 8))


class Core(Encoder):
    """A state that is what `begin` gives, and what `step` makes of features and state."""

    feature_dim = 8

    def __init__(self, begin, step):
        super().__init__()
        self.weight, self.begin, self.step = nn.Parameter(torch.ones(8)), begin, step

    def initial_state(self, batch_size):
        return self.begin(batch_size)

    def forward(self, obs, state=(), reset=None, extras=None):
        return self.step(self.weight.expand(*obs.shape[:2], 8), state)


class Bare(Encoder):
    """An encoder that did not set what it must."""


class Unmade(Encoder):
    """An encoder whose parent class was not made."""

    def __init__(self):
        self.weight = nn.Parameter(torch.ones(8))


def zeros(batch_size):
    return (torch.zeros(batch_size, 5),)


def kept(features, state):
    return features, state


ENCODERS = {
    "AttributeError: 'NoneType'": lambda: Features(lambda x: None),
    r"images of .* give 7 features": lambda: Features(lambda x: x[:, :7]),
    r"float32 \[2, 3, 8, 8\], must be float32|TypeCheckError": lambda: Features(
        lambda x: x[..., None] * x[0]
    ),
    "float64": lambda: Features(lambda x: x.double()),
    "int64|TypeCheckError": lambda: Features(lambda x: x.long()),
    r"RuntimeError: .*unflatten": lambda: Features(lambda x: x[:2]),
    r"feature_dim is None": Bare,
    "AttributeError: .*before Module": Unmade,
    "KeyError: 'x'": lambda: {}["x"],
    "could not convert string to float": lambda: float("x"),
    "gave NoneType, must be": lambda: None,
    "gave Linear, must be": lambda: nn.Linear(2, 2),
    r"forward gave float32 \[2, 3, 8\], must be \(features, state\)": lambda: Core(
        zeros, lambda x, s: x
    ),
    r"the state after a step is \(\), must be a tuple of 1": lambda: Core(
        zeros, lambda x, s: (x, ())
    ),
    r"initial_state is float32 \[3, 5\], must be a tuple": lambda: Core(
        lambda n: torch.zeros(n, 5), kept
    ),
    r"initial_state is NoneType, must be a tuple": lambda: Core(lambda n: None, kept),
    r"initial_state: float32 \[1, 3, 5\]": lambda: Core(lambda n: (torch.zeros(1, n, 5),), kept),
    r"the state after a step: float32 \[3, 6\], must be float32 .* \[3, 5\]": lambda: Core(
        zeros, lambda x, s: (x, (torch.zeros(3, 6),))
    ),
}


@pytest.fixture
def mine():
    """Registers an encoder `of_others` for the length of a test."""

    def register(make):
        register_encoder("of_others", NoOptions)(lambda config, **_: make())

    yield register
    registry._REGISTRY.pop("of_others", None)


@pytest.mark.parametrize("message", ENCODERS)
def test_an_encoder_is_named_before_anything_is_written(message, mine, tmp_path, capsys):
    mine(ENCODERS[message])
    with pytest.raises(ValueError, match="encoder 'of_others' .*(" + message + ")") as told:
        make_encoder("of_others", obs_shape=(2, 4, 5), num_actions=3)
    assert "\n" not in str(told.value)
    out = tmp_path / "run"
    assert main([*TRAIN, "--encoder", "of_others", "--out", str(out)]) == 2
    assert not out.exists()
    error = capsys.readouterr().err
    assert error.startswith("rl-nfm: encoder 'of_others' (")
    assert error.count("\n") == 1


def test_a_right_encoder_is_left_as_it_was(mine):
    """No draw, no statistic and no mode of it changes."""

    class Right(Features):
        def __init__(self):
            super().__init__(lambda x: self.norm(x + torch.rand_like(x)))
            self.norm = nn.BatchNorm1d(8)
            self.feature_dim = np.prod((2, 4))

    mine(Right)
    before = torch.get_rng_state()
    encoder = make_encoder("of_others", obs_shape=(2, 4, 5), num_actions=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert encoder.training
    assert encoder.norm.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda *a, **k: None, "made NoneType, must be a GameVecEnv"),
        (lambda *a, **k: {}["x"], r"KeyError: 'x' \(RL_NFM_TRACEBACK=1 shows where\)"),
        (lambda *a, **k: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_an_environment_is_named(make, message, tmp_path, capsys):
    protocol = env_registry.env_entry("memory_cue").protocol
    env_registry.register_env("mine", protocol=protocol)(make)
    try:
        words = [*TRAIN, "--game", "mine", "--out", str(tmp_path / "run")]
        assert main(words) == 2
    finally:
        del env_registry._REGISTRY["mine"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rl-nfm: environment 'mine'")
    assert re.search(message, line)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("protocol", [lambda options: None, lambda options: {}, lambda o: o["no"]])
def test_a_protocol_is_named(protocol, capsys):
    env_registry.register_env("mine", protocol=protocol)(MemoryCueVecEnv)
    try:
        assert main([*TRAIN, "--game", "mine"]) == 2
    finally:
        del env_registry._REGISTRY["mine"]
    assert "'mine'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("loss", "given"),
    [
        (lambda mask: torch.zeros(mask.shape[::-1]), r"\(4, 1\)"),
        (lambda mask: torch.zeros(()), r"\(\)"),
        (lambda mask: torch.zeros(mask.shape[1]), r"\(4,\)"),
        (lambda mask: None, "NoneType"),
    ],
)
def test_an_auxiliary_loss_of_another_shape_is_refused(loss, given, tmp_path):
    """[B, T] was added to [T, B] as [B, B], which multiplied the whole loss by the batch size."""

    class Mine(AuxiliaryLoss):
        def forward(self, batch, latents, target):
            return loss(batch.mask)

    register_auxiliary("mine")(Mine)
    try:
        words = ["--learner.auxiliary", "mine", "0.1", "--steps", "200"]
        with pytest.raises(ValueError, match=rf"mine gave {given}, must be .*\(1, 4\)"):
            train.main([*TRAIN[1:], *words, "--out", str(tmp_path / "run")])
    finally:
        del auxiliaries._classes["mine"]


def test_an_auxiliary_loss_and_a_storage_that_cannot_be_made_are_named(tmp_path, capsys):
    class Mine(AuxiliaryLoss):
        def __init__(self):
            raise RuntimeError

        def forward(self, batch, latents, target):
            raise NotImplementedError

    register_auxiliary("mine")(Mine)
    register_storage("mine")(Mine)
    out = ["--out", str(tmp_path / "run")]
    try:
        assert main([*TRAIN, *out, "--learner.auxiliary", "mine", "0.1"]) == 2
        assert main([*TRAIN, *out, "--replay.storage", "mine"]) == 2
    finally:
        del auxiliaries._classes["mine"], storages._classes["mine"]
    first, second = capsys.readouterr().err.splitlines()
    assert "learner.auxiliary: mine (" in first
    assert "TypeError" in first
    assert "replay.storage: mine (" in second
    assert "is no subclass of agents.replay.buffer.Replay" in second


class Mine(Task):
    """A task that learns one number."""

    def build_model(self):
        return nn.Linear(1, 1)

    def batches(self, epoch):
        return [torch.ones(1, 1)]

    def loss(self, model, batch):
        return model(batch).mean()

    def evaluate(self, model):
        return {"metric": 0.0}


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("build_model", None, "model must be a torch module, got None"),
        ("batches", None, r"task 'mine' \(.*\): TypeError"),
        ("batches", [], "epoch 1: the task gave no batch to train on"),
        ("loss", None, r"task 'mine' \(.*\): AttributeError"),
        ("evaluate", None, r"task 'mine' \(.*\): "),
    ],
)
def test_a_supervised_task_is_named(method, value, message, tmp_path):
    broken = type("Broken", (Mine,), {method: lambda self, *_: value, "__module__": "elsewhere"})
    register_loop_task("mine", "Mine.", broken, {"small": LoopConfig()})
    try:
        with pytest.raises(ValueError, match=message):
            _TASKS["mine"].main(["--out", str(tmp_path / "run")])
    finally:
        del _TASKS["mine"]
    assert not (tmp_path / "run" / "result.json").exists()
