"""Weights in half precision, where autocast would only cast them: nothing computed changes."""

import copy
import functools
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agents.config import make_config
from agents.learning.actor import Actor
from agents.learning.config import LearnerConfig
from agents.learning.learner import Learner
from agents.learning.narrow import narrow_
from agents.learning.network import QNetwork
from agents.replay.batch import Batch
from agents.saving.checkpoint import build_network
from agents.training.trainer import Trainer
from rl_nfm.encoders import encoder_names

SMALL = {
    "head": {"hidden_size": 8, "num_cosines": 4},
    "nfm": {"width": 8, "depth": 10},
    "resnet": {"width": 8, "depth": 10},
    "impala": {"width": 4, "spectral_norm": True},
    "lstm": {"hidden_size": 6},
    "rim": {"hidden_size": 12},
    "brims": {"hidden_size": 12, "trunk": "nature"},
}


def values(network: QNetwork, seed: int) -> torch.Tensor:
    """Of all actions at two observations, of which the second continues an episode."""
    torch.manual_seed(seed)
    actor = Actor(
        network, num_envs=2, num_quantiles=3, dtype=torch.bfloat16, terminal_on_life_loss=False
    )
    obs = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    for start in ([True, True], [True, False]):
        actor.act(obs, torch.tensor(start), epsilon=0.0, noise=True)
    assert actor.values is not None
    return actor.values


@pytest.mark.parametrize("encoder", encoder_names())
def test_every_encoder_acts_as_before(encoder: str) -> None:
    config = make_config({"encoder": encoder, **SMALL})
    wide = build_network(config, (4, 84, 84), 5).requires_grad_(False).eval()
    narrow = copy.deepcopy(wide)
    count = narrow_(narrow, torch.bfloat16, functools.partial(values, narrow, 0))
    types = [p.dtype for p in narrow.parameters()]
    assert types.count(torch.bfloat16) == count > 5
    assert torch.equal(values(wide, 1), values(narrow, 1))


class Mixed(nn.Module):
    """Layers whose weights have uses that autocast does not see."""

    def __init__(self):
        super().__init__()
        self.plain, self.scaled, self.outside = (nn.Linear(3, 3) for _ in range(3))
        self.turned, self.looked_into, self.by_address = (nn.Linear(3, 3) for _ in range(3))
        self.convolution, self.unused = nn.Conv2d(1, 2, 1), nn.Linear(3, 3)
        self.norm = nn.GroupNorm(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.linear(self.plain(x), self.scaled.weight * 2, self.scaled.bias)
        with torch.autocast("cpu", enabled=False):
            x = self.outside(x.float())
        x = x + self.turned(x) + (x.float() @ self.turned.weight.T).sum()
        x = x + self.looked_into(x) * self.looked_into.weight.data.sum()
        x = x + self.by_address(x) * (self.by_address.weight.data_ptr() > 0)
        x = self.plain(x)[:, None, :, None]
        return self.norm(self.convolution(x)) + self.scaled(x.flatten(1)).sum()


def test_a_weight_with_any_other_use_stays() -> None:
    torch.manual_seed(0)
    net = Mixed().requires_grad_(False)
    twin, x = copy.deepcopy(net), torch.randn(2, 3)

    def run(network: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(x)

    assert narrow_(twin, torch.bfloat16, lambda: run(twin)) == 8
    half = {name for name, p in twin.named_parameters() if p.dtype == torch.bfloat16}
    kept = {"plain.weight", "plain.bias", "scaled.bias", "convolution.weight", "convolution.bias"}
    assert half == kept | {f"{name}.bias" for name in ("turned", "looked_into", "by_address")}
    assert torch.equal(run(net), run(twin))


def test_a_run_keeps_its_acting_weights_narrow_and_current() -> None:
    """The copies that cross to the acting side are those of the learner, rounded once."""
    changes = {"learner": {"acting_lag": 1, "precision": "bf16", "steps_per_update": 4}}
    small = {"capacity_steps": 200, "min_steps": 40, "batch_size": 4}
    config = make_config({"game": "memory_cue", "replay": small, "steps": 80, **SMALL, **changes})
    trainer = Trainer(config, torch.device("cpu"))
    weights = trainer.collector.weights
    pairs = list(
        zip(trainer.learner.online.parameters(), weights.network.parameters(), strict=True)
    )
    assert {b.dtype for _, b in pairs} == {torch.float32, torch.bfloat16}
    with torch.no_grad():
        for weight, _ in pairs:
            weight.normal_()
    weights.after_updates()
    weights.before_updates()
    assert all(torch.equal(a.to(b.dtype), b) for a, b in pairs)
    trainer.turns.close()


def batch_for(network: QNetwork, seed: int) -> Batch:
    """Three random sequences; with a state one step of burn-in before two trained ones."""
    draw = torch.Generator().manual_seed(seed)
    state = tuple(x.clone() for x in network.initial_state(3))
    burn_in, trained = (1, 2) if state else (0, 1)
    steps = burn_in + trained + 1
    whole = functools.partial(torch.randint, generator=draw)
    return Batch(
        obs=whole(0, 256, (steps, 3, 4, 84, 84), dtype=torch.uint8),
        state=state,
        reset=torch.zeros(steps, 3, dtype=torch.bool),
        extras={
            "last_action": whole(0, 5, (steps, 3)),
            "last_reward": torch.randn(steps, 3, generator=draw),
            "episode_step": whole(0, 99, (steps, 3)),
        },
        a_tm1=whole(0, 5, (trained, 3)),
        r_t=torch.randn(trained, 3, generator=draw),
        discount_t=torch.full((trained, 3), 0.9),
        bootstrap=torch.full((trained, 3), steps - 1),
        mask=torch.ones(trained, 3, dtype=torch.bool),
        index=torch.arange(3),
        probability=torch.ones(3, dtype=torch.float64),
        weight=torch.ones(3),
        burn_in_steps=burn_in,
    )


@pytest.mark.parametrize("munchausen", [False, True])
@pytest.mark.parametrize("encoder", encoder_names())
def test_every_encoder_learns_as_before_with_a_narrow_target(
    encoder: str, munchausen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the target comes between the updates."""
    config = make_config({"encoder": encoder, **SMALL})
    options = LearnerConfig(
        precision="bf16", target_every_updates=2, munchausen=munchausen, double=not munchausen
    )
    found = []
    for narrow in (True, False):
        torch.manual_seed(1)
        networks = [build_network(config, (4, 84, 84), 5) for _ in range(2)]
        learner = Learner(options, *networks, device=torch.device("cpu"))
        if not narrow:
            monkeypatch.setattr(learner, "_may_narrow", False)
        torch.manual_seed(2)
        errors = [learner.update(batch_for(learner.online, i)) for i in range(3)]
        half = [p.dtype for p in learner.target.parameters()].count(torch.bfloat16)
        assert (half > 5) == narrow
        found.append((errors, learner.online.state_dict(), learner.target))
    for a, b in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(a, b)
    for name, value in found[0][1].items():
        assert torch.equal(value, found[1][1][name]), name
    for a, b in zip(found[0][2].parameters(), found[1][2].parameters(), strict=True):
        assert torch.equal(a, b.to(a.dtype))


@pytest.mark.parametrize("narrow", [False, True])
def test_the_target_of_a_checkpoint_may_be_narrow_or_not(narrow: bool) -> None:
    """An earlier version kept it wide; a machine without bf16 does."""
    config = make_config({"encoder": "nature", **SMALL})

    def make(precision: Literal["bf16", "fp32"]) -> Learner:
        networks = [build_network(config, (4, 84, 84), 5) for _ in range(2)]
        return Learner(LearnerConfig(precision=precision), *networks, device=torch.device("cpu"))

    first, second = make("bf16" if narrow else "fp32"), make("fp32" if narrow else "bf16")
    for learner in (first, second):
        learner.update(batch_for(learner.online, 0))
    state = first.state()
    assert (torch.bfloat16 in {x.dtype for x in state.values()}) == narrow
    second.load_state(state)
    for a, b in zip(first.target.parameters(), second.target.parameters(), strict=True):
        assert torch.equal(a.to(b.dtype), b)
    second.update(batch_for(second.online, 1))


@pytest.mark.parametrize("options", [{"target_tau": 0.01}, {"precision": "fp32"}])
def test_a_target_that_is_mixed_or_not_cast_stays_wide(options: dict[str, Any]) -> None:
    config = make_config({"encoder": "nature", **SMALL})
    networks = [build_network(config, (4, 84, 84), 5) for _ in range(2)]
    options = {"precision": "bf16", **options}
    learner = Learner(LearnerConfig(**options), *networks, device=torch.device("cpu"))
    learner.update(batch_for(learner.online, 0))
    assert {p.dtype for p in learner.target.parameters()} == {torch.float32}
