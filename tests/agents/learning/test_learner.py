"""One update against formulas written out again, in float64 and without the learner's code.

Random draws are replaced by fixed ones that depend on the shape alone, so that the order in which
the learner draws does not matter; that it draws afresh each time is a test of its own.

B batch, N, M, K online, target and selecting quantiles, A actions.
"""

import contextlib
import dataclasses
import itertools
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.config import make_config
from agents.learning import compiling
from agents.learning.compiling import MEASURED_UPDATES, WARM_UP_UPDATES
from agents.learning.config import LearnerConfig
from agents.learning.learner import Learner
from agents.learning.network import QNetwork
from agents.replay.batch import Batch
from agents.replay.buffer import Replay
from agents.replay.config import ReplayConfig
from agents.replay.priorities import importance_weights
from agents.saving.checkpoint import build_network
from agents.training.step import GradientStep

CPU = torch.device("cpu")
# The compiler looks at the gradient of whatever crosses a break in the graph.
COMPILING = "ignore:The .grad attribute of a Tensor that is not a leaf"
Params = dict[str, Tensor]

OFF: dict[str, Any] = {"double": False, "kappa": 1.0}
PLAIN_HEAD: dict[str, Any] = {"distribution": "none", "dueling": False, "noisy": False}
IQN_HEAD: dict[str, Any] = {"distribution": "iqn", "dueling": False, "noisy": False}
MUNCHAUSEN = {"munchausen": True, "munchausen_temperature": 0.3}
RAINBOW_HEAD = {"distribution": "iqn", "dueling": True, "noisy": True}
ABLATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dqn": (OFF, PLAIN_HEAD),
    "dqn squared error": ({**OFF, "kappa": 0.0}, PLAIN_HEAD),
    "double": ({**OFF, "double": True}, PLAIN_HEAD),
    "dueling": (OFF, {**PLAIN_HEAD, "dueling": True}),
    "noisy": (OFF, {**PLAIN_HEAD, "noisy": True}),
    "munchausen": ({**OFF, **MUNCHAUSEN}, PLAIN_HEAD),
    "iqn": (OFF, IQN_HEAD),
    "iqn plain quantile loss": ({**OFF, "kappa": 0.0}, IQN_HEAD),
    "iqn on the hidden layer": (OFF, {**IQN_HEAD, "quantile_layer": "hidden"}),
    "iqn double": ({**OFF, "double": True}, IQN_HEAD),
    "munchausen iqn": ({**OFF, **MUNCHAUSEN, "kappa": 0.5}, IQN_HEAD),
    "value rescaling": ({**OFF, "double": True, "value_rescaling_eps": 1e-3}, PLAIN_HEAD),
    "iqn value rescaling": ({**OFF, "value_rescaling_eps": 0.05}, IQN_HEAD),
    "rainbow": ({**OFF, "double": True}, {**RAINBOW_HEAD, "quantile_layer": "hidden"}),
    "beyond the rainbow": ({**OFF, **MUNCHAUSEN}, RAINBOW_HEAD),
}


class FakeReplay:
    """Gives one batch again and again, and remembers what it was told."""

    def __init__(self, batch: Batch, **options: Any):
        self.config = ReplayConfig(batch_size=batch.obs.shape[1], **options)
        self.batch, self.told = batch, []
        self.beta = torch.zeros(())

    def compile(self) -> None:
        pass

    def sample(self, batch_size: int) -> Batch:
        assert batch_size == self.config.batch_size
        weight = importance_weights(self.batch.probability, self.beta)
        return dataclasses.replace(self.batch, weight=weight)

    def update_priorities(self, index: Tensor, td_error: Tensor, mask: Tensor) -> None:
        assert not td_error.requires_grad
        self.told.append((index.clone(), td_error.clone(), mask.clone()))

    set_schedule = Replay.set_schedule


def make_batch(size: int = 7, seed: int = 0, obs_shape: tuple[int, ...] = (2, 3, 2)) -> Batch:
    g = torch.Generator().manual_seed(seed)
    alive = torch.rand(1, size, generator=g) < 0.8
    return Batch(
        obs=torch.randint(0, 256, (2, size, *obs_shape), generator=g, dtype=torch.uint8),
        state=(),
        reset=torch.zeros(2, size, dtype=torch.bool),
        extras={
            "last_action": torch.zeros(2, size, dtype=torch.int64),
            "last_reward": torch.zeros(2, size),
            "episode_step": torch.zeros(2, size, dtype=torch.int64),
        },
        a_tm1=torch.randint(0, 3, (1, size), generator=g),
        r_t=torch.randn(1, size, generator=g) * 2,
        discount_t=0.9**3 * alive,
        bootstrap=torch.ones(1, size, dtype=torch.int64),
        mask=torch.ones(1, size, dtype=torch.bool),
        index=torch.arange(size),
        probability=(torch.rand(size, generator=g, dtype=torch.float64) + 0.01).double(),
        weight=torch.ones(size),
        burn_in_steps=0,
    )


def make_learner(
    toys: types.SimpleNamespace,
    learner: dict[str, Any],
    head: dict[str, Any],
    *,
    batch: Batch | None = None,
    recurrent: bool = False,
    updates: float = 0,
    **replay: Any,
) -> tuple[Learner, GradientStep, FakeReplay]:
    """A learner whose networks differ, as after some updates."""
    fake = FakeReplay(batch or make_batch(), **replay)
    encoder = toys.CellEncoder if recurrent else toys.LinearEncoder
    options = {
        "num_quantiles": 5,
        "num_target_quantiles": 4,
        "num_action_quantiles": 3,
        "precision": "fp32",
        "max_grad_norm": None,
        "learning_rate": 1e-3,
        **learner,
    }
    made = Learner(
        LearnerConfig(**options),
        toys.make_network(encoder(), 1, **head),
        toys.make_network(encoder(), 2, **head),
        device=CPU,
    )
    made.target.load_state_dict(toys.make_network(encoder(), 3, **head).state_dict())
    return made, GradientStep(made, fake, updates=updates), fake


def fixed_rand(*shape: Any, **_: Any) -> Tensor:
    """Fractions that depend on the shape alone, as float32 has them."""
    size = torch.Size(shape[0] if isinstance(shape[0], tuple) else shape)
    return ((torch.arange(size.numel()) * 0.618034 + 0.05) % 1.0).view(size)


def fixed_randn(*shape: Any, **_: Any) -> Tensor:
    size = torch.Size(shape[0] if isinstance(shape[0], tuple) else shape)
    return torch.cos(torch.arange(size.numel()) + 1.0).view(size) * 2


@pytest.fixture
def fixed_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", fixed_rand)
    monkeypatch.setattr(torch, "randn", fixed_randn)


def doubles(network: QNetwork) -> Params:
    return {name: value.detach().double() for name, value in network.state_dict().items()}


def linear(p: Params, name: str, x: Tensor) -> Tensor:
    """A linear layer, with factorised noise where it has a sigma."""
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    if f"{name}.weight_sigma" in p:
        raw = fixed_randn(weight.shape[1] + weight.shape[0]).double()
        f = raw.sign() * raw.abs().sqrt()
        into, out = f[: weight.shape[1]], f[weight.shape[1] :]
        weight = weight + p[f"{name}.weight_sigma"] * out[:, None] * into[None, :]
        bias = bias + p[f"{name}.bias_sigma"] * out
    return x @ weight.T + bias


def encode(p: Params, obs: Tensor) -> Tensor:
    return linear(p, "encoder.layer", obs.flatten(1).double() / 255).clamp(min=0)


def action_values(p: Params, x: Tensor, quantiles: int) -> tuple[Tensor, Tensor]:
    """Values [B, N, A] and fractions [B, N] of features [B, D]."""
    fractions = fixed_rand(len(x), quantiles).double()
    if "head.torso.weight" in p:
        x = linear(p, "head.torso", x).clamp(min=0)
    x = x[:, None]
    if "head.embedding.weight" in p:
        i = torch.arange(1, 4).double()
        cosines = torch.cos(torch.pi * i * fractions[..., None])
        x = x * linear(p, "head.embedding", cosines).clamp(min=0)

    def stream(name: str) -> Tensor:
        return linear(p, f"{name}.out", linear(p, f"{name}.hidden", x).clamp(min=0))

    values = stream("head.advantage")
    if "head.value.out.weight" in p:
        values = stream("head.value") + values - values.mean(-1, keepdim=True)
    return values, fractions


def targets(config: LearnerConfig, online: Params, target: Params, batch: Batch) -> list[Tensor]:
    """The samples of each item's target."""
    b = range(batch.obs.shape[1])
    z, _ = action_values(target, encode(target, batch.obs[1]), config.num_target_quantiles)
    r, discount = batch.r_t[0].double(), batch.discount_t[0].double()
    if config.munchausen:
        temperature = config.munchausen_temperature
        now, _ = action_values(target, encode(target, batch.obs[0]), config.num_target_quantiles)
        log_now = torch.log_softmax(now.mean(1) / temperature, -1) * temperature
        bonus = [float(log_now[i, batch.a_tm1[0, i]]) for i in b]
        bonus = [config.munchausen_alpha * max(config.munchausen_clip, x) for x in bonus]
        log_pi = torch.log_softmax(z.mean(1) / temperature, -1)  # [B, A]
        soft = (log_pi.exp()[:, None] * (z - temperature * log_pi[:, None])).sum(-1)
        return [r[i] + bonus[i] + discount[i] * soft[i] for i in b]
    # K fractions of their own choose the action, in either network
    selector = online if config.double else target
    x = encode(selector, batch.obs[1])
    selecting = action_values(selector, x, config.num_action_quantiles)[0].mean(1)
    eps = config.value_rescaling_eps

    def target_of(i: int) -> Tensor:
        value = z[i, :, selecting[i].argmax()]
        if eps is None:
            return r[i] + discount[i] * value
        # R2D2's h and its inverse, as printed
        root = (((1 + 4 * eps * (value.abs() + 1 + eps)).sqrt() - 1) / (2 * eps)) ** 2 - 1
        y = r[i] + discount[i] * value.sign() * root
        return y.sign() * ((y.abs() + 1).sqrt() - 1) + eps * y

    return [target_of(i) for i in b]


def pair_error(td: float, kappa: float, quantile: bool) -> float:
    if kappa == 0:
        return abs(td) if quantile else td * td / 2
    huber = td * td / 2 if abs(td) <= kappa else kappa * (abs(td) - kappa / 2)
    return huber / kappa if quantile else huber


def expected_loss(
    config: LearnerConfig,
    trained: Params,
    online: Params,
    target: Params,
    batch: Batch,
    beta: float,
) -> tuple[float, list[float], list[float]]:
    """Loss, |TD error| and value per item. `trained` makes the prediction, `online` selects."""
    quantile = "head.embedding.weight" in trained
    z, fractions = action_values(trained, encode(trained, batch.obs[0]), config.num_quantiles)
    weights = [float(p) ** -beta for p in batch.probability]
    total, errors, values = 0.0, [], []
    for i, y in enumerate(targets(config, online, target, batch)):
        prediction = z[i, :, batch.a_tm1[0, i]]
        loss = 0.0
        for n, m in itertools.product(range(len(prediction)), range(len(y))):
            td = float(y[m] - prediction[n])
            error = pair_error(td, config.kappa, quantile)
            if quantile:
                error *= abs(float(fractions[i, n]) - (td < 0))
            loss += error / len(y)
        total += weights[i] / max(weights) * loss / len(weights)
        errors.append(float((y[None] - prediction[:, None]).abs().mean()))
        values.append(float(prediction.mean()))
    return total, errors, values


@pytest.mark.usefixtures("fixed_draws")
@pytest.mark.parametrize("name", ABLATIONS)
def test_loss_and_gradient_of_each_ablation(toys: types.SimpleNamespace, name: str) -> None:
    learner, step, fake = make_learner(toys, *ABLATIONS[name], priority_beta=0.6)
    online, target = doubles(learner.online), doubles(learner.target)
    step.set_schedule(0.0)
    step()
    rest = (online, target, fake.batch, 0.6)
    loss, errors, values = expected_loss(learner.config, online, *rest)
    metrics = learner.metrics()
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4)
    assert metrics["td_error"] == pytest.approx(sum(errors) / 7, rel=1e-4)
    assert metrics["q_value"] == pytest.approx(sum(values) / 7, rel=1e-4)
    index, td_error, mask = fake.told[0]
    assert td_error[0].tolist() == pytest.approx(errors, rel=1e-4)
    assert torch.equal(index, fake.batch.index)
    assert bool(mask.all())
    # the slope along a random direction of each parameter: of the prediction alone, since no
    # gradient may pass through the target or the choice of the action
    squares = 0.0
    g = torch.Generator().manual_seed(1)
    for key, parameter in learner.online.named_parameters():
        assert parameter.grad is not None, key
        direction = torch.randn(parameter.shape, generator=g, dtype=torch.float64)
        small = 1e-6 * direction
        high = expected_loss(learner.config, {**online, key: online[key] + small}, *rest)[0]
        low = expected_loss(learner.config, {**online, key: online[key] - small}, *rest)[0]
        slope = float((parameter.grad.double() * direction).sum())
        assert slope == pytest.approx((high - low) / 2e-6, rel=1e-3, abs=2e-5), key
        squares += float(parameter.grad.double().square().sum())
    assert metrics["grad_norm"] == pytest.approx(squares**0.5, rel=1e-4)
    for key, parameter in learner.target.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter.double(), target[key])


@pytest.mark.usefixtures("fixed_draws")
def test_plain_dqn_by_its_textbook_formula(toys: types.SimpleNamespace) -> None:
    """All switches off: Huber(r + gamma max_a Q_target(s', a) - Q(s, a)), mean over the batch."""
    learner, step, fake = make_learner(toys, *ABLATIONS["dqn"], priority_exponent=0.0)
    batch = dataclasses.replace(fake.batch, probability=torch.full((7,), 0.1).double())
    fake.batch = batch

    def q(network: QNetwork, obs: Tensor) -> Tensor:
        with torch.no_grad():
            features = network.encoder(obs[None])[0][0]
            hidden = torch.relu(network.head.advantage.hidden(features, "off"))
            return network.head.advantage.out(hidden, "off")

    y = batch.r_t[0] + batch.discount_t[0] * q(learner.target, batch.obs[1]).max(-1).values
    taken = q(learner.online, batch.obs[0])[torch.arange(7), batch.a_tm1[0]]
    step()
    expected = torch.nn.functional.smooth_l1_loss(taken, y)
    assert learner.metrics()["loss"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.usefixtures("fixed_draws")
def test_double_with_equal_networks_is_plain(toys: types.SimpleNamespace) -> None:
    found = []
    for double in (False, True):
        options = {**OFF, "double": double, "num_action_quantiles": 4}
        learner, step, _ = make_learner(toys, options, IQN_HEAD)
        learner.target.load_state_dict(learner.online.state_dict())
        step()
        found.append(learner.metrics())
    assert found[0] == found[1]


def test_first_step_of_adam_by_hand(toys: types.SimpleNamespace) -> None:
    # m / (1 - beta1) = g, v / (1 - beta2) = g^2: a step of lr * g / (|g| + eps)
    learner, step, _ = make_learner(
        toys, {**OFF, "learning_rate": 0.01, "adam_eps": 1e-3}, PLAIN_HEAD
    )
    before = {k: v.detach().clone() for k, v in learner.online.named_parameters()}
    step()
    for key, parameter in learner.online.named_parameters():
        assert parameter.grad is not None
        moved = 0.01 * parameter.grad / (parameter.grad.abs() + 1e-3)
        assert torch.allclose(parameter.detach(), before[key] - moved, atol=1e-7), key


def test_gradient_is_clipped_by_its_global_norm(toys: types.SimpleNamespace) -> None:
    norms = []
    for limit in (None, 0.05, 1e6):
        learner, step, _ = make_learner(toys, {**OFF, "max_grad_norm": limit}, PLAIN_HEAD)
        step()
        grads = [p.grad for p in learner.online.parameters() if p.grad is not None]
        norms.append(
            (learner.metrics()["grad_norm"], float(torch.cat([g.flatten() for g in grads]).norm()))
        )
    (told, plain), (told_clipped, clipped), (_, loose) = norms
    assert told == pytest.approx(plain) == pytest.approx(told_clipped)
    assert plain > 0.05
    assert clipped == pytest.approx(0.05, rel=1e-4)
    assert loose == pytest.approx(plain)


@pytest.mark.parametrize("share", [0.5, 1 - 1e-7, 1.0, 1 + 1e-7, 1 + 1e-4, 2.0])
def test_clipping_is_that_of_torch_at_its_limit_too(
    share: float, toys: types.SimpleNamespace
) -> None:
    def gradients(limit: float | None) -> list[Tensor]:
        learner, step, _ = make_learner(toys, {**OFF, "max_grad_norm": limit}, PLAIN_HEAD)
        step()
        return [p.grad for p in learner.online.parameters() if p.grad is not None]

    plain = gradients(None)
    limit = share * float(nn.utils.get_total_norm(plain))
    clipped = [nn.Parameter(g) for g in plain]
    for parameter, gradient in zip(clipped, plain, strict=True):
        parameter.grad = gradient
    nn.utils.clip_grad_norm_(clipped, limit)
    for found, wanted in zip(gradients(limit), clipped, strict=True):
        assert torch.equal(found, wanted.grad)


@pytest.mark.parametrize("value", [1.0, torch.inf, torch.nan])
@pytest.mark.parametrize("limit", [None, 1e6])
def test_clipping_of_what_is_not_finite_is_that_of_torch(
    value: float, limit: float | None, toys: types.SimpleNamespace
) -> None:
    learner, _, _ = make_learner(toys, {**OFF, "max_grad_norm": limit}, PLAIN_HEAD)
    parameters = list(learner.online.parameters())
    others = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    for one in (parameters, others):
        for parameter in one:
            parameter.grad = torch.ones_like(parameter)
        assert one[0].grad is not None
        one[0].grad.view(-1)[0] = value
    norm = learner._clip_gradients()
    wanted = nn.utils.clip_grad_norm_(others, limit or torch.inf)
    assert torch.equal(norm.nan_to_num(-1), wanted.nan_to_num(-1))
    for parameter, other in zip(parameters, others, strict=True):
        assert parameter.grad is not None
        assert other.grad is not None
        assert torch.equal(parameter.grad.nan_to_num(-1), other.grad.nan_to_num(-1))


def test_gradients_within_the_limit_are_not_touched(
    toys: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr(nn.utils, "clip_grads_with_norm_", lambda *_, **__: told.append(True))
    for limit in (None, 1e6, 1e-3):
        _, step, _ = make_learner(toys, {**OFF, "max_grad_norm": limit}, PLAIN_HEAD)
        step()
        assert bool(told) == (limit == 1e-3)


def test_schedules_are_linear_and_used(toys: types.SimpleNamespace) -> None:
    options = {**OFF, "learning_rate": 0.01, "learning_rate_final": 0.002}
    learner, step, fake = make_learner(
        toys, options, PLAIN_HEAD, priority_beta=0.4, priority_beta_final=1.0
    )
    for progress, rate, beta in ((0.0, 0.01, 0.4), (0.25, 0.008, 0.55), (1.0, 0.002, 1.0)):
        step.set_schedule(progress)
        assert float(learner.learning_rate) == pytest.approx(rate)
        assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        assert float(fake.beta) == pytest.approx(beta)
        before, target = doubles(learner.online), doubles(learner.target)
        step()
        loss, _, _ = expected_loss(learner.config, before, before, target, fake.batch, beta)
        assert learner.metrics()["loss"] == pytest.approx(loss, rel=1e-4)


def test_a_rate_of_zero_moves_nothing_and_no_schedule_keeps_the_rate(
    toys: types.SimpleNamespace,
) -> None:
    learner, step, _ = make_learner(toys, {**OFF, "learning_rate_final": 0.0}, PLAIN_HEAD)
    step.set_schedule(1.0)
    before = doubles(learner.online)
    step()
    assert all(torch.equal(before[k], v) for k, v in doubles(learner.online).items())
    learner, step, _ = make_learner(toys, OFF, PLAIN_HEAD)
    step.set_schedule(1.0)
    assert learner.optimizer.param_groups[0]["lr"] == 1e-3


def test_masked_positions_do_not_count(toys: types.SimpleNamespace) -> None:
    """One masked item of a batch of T = 1: as if its loss were 0, the mean still over B."""
    learner, step, fake = make_learner(toys, OFF, PLAIN_HEAD, priority_beta=0.0)
    online, target = doubles(learner.online), doubles(learner.target)
    total, errors, values = expected_loss(learner.config, online, online, target, fake.batch, 0.0)
    y = targets(learner.config, online, target, fake.batch)[2]
    own = pair_error(float(y[0]) - values[2], 1.0, False)
    fake.batch.mask[0, 2] = False
    step.set_schedule(0.0)
    step()
    metrics = learner.metrics()
    assert metrics["loss"] == pytest.approx(total - own / 7, rel=1e-4)
    assert metrics["td_error"] == pytest.approx((sum(errors) - errors[2]) / 6, rel=1e-4)


def test_a_batch_without_any_transition_is_no_error(toys: types.SimpleNamespace) -> None:
    learner, step, fake = make_learner(toys, OFF, PLAIN_HEAD)
    fake.batch.mask[:] = False
    step()
    assert learner.metrics() == {"loss": 0.0, "td_error": 0.0, "q_value": 0.0, "grad_norm": 0.0}


def test_hard_copies_are_due_every_so_many_updates(toys: types.SimpleNamespace) -> None:
    learner, step, _ = make_learner(toys, {**OFF, "target_every_updates": 3}, PLAIN_HEAD)
    copied = doubles(learner.target)
    for update in range(1, 8):
        step()
        assert learner.updates == update
        if update % 3 == 0:
            copied = doubles(learner.online)
        assert all(torch.equal(copied[k], v) for k, v in doubles(learner.target).items())
        assert not all(torch.equal(copied[k], v) for k, v in doubles(learner.online).items()) or (
            update % 3 == 0
        )


def test_soft_copies_mix_at_every_update(toys: types.SimpleNamespace) -> None:
    options = {**OFF, "target_tau": 0.25, "target_every_updates": 1}
    learner, step, _ = make_learner(toys, options, PLAIN_HEAD)
    learner.online.encoder.norm = torch.nn.BatchNorm1d(5)
    learner.target.encoder.norm = torch.nn.BatchNorm1d(5).eval()
    for _ in range(3):
        before = doubles(learner.target)
        step()
        online = doubles(learner.online)
        for key, value in doubles(learner.target).items():
            mixed = online[key] if "num_batches" in key else 0.75 * before[key] + 0.25 * online[key]
            assert torch.allclose(value, mixed, atol=1e-6), key


def test_soft_copies_are_refused_with_spectral_norm(toys: types.SimpleNamespace) -> None:
    """Averages of unit vectors are shorter: after 200 mixed updates norms of 1.5 instead of 1."""
    config = {"encoder": "impala", "impala": {"width": 4, "spectral_norm": True}}
    config |= {"head": {"hidden_size": 8}, "learner": {"target_tau": 0.01}}
    built = make_config(config)
    networks = [build_network(built, (4, 36, 36), 3) for _ in range(2)]
    with pytest.raises(ValueError, match=r"learner.target_tau: not allowed with spectral norm"):
        Learner(built.learner, *networks, device=torch.device("cpu"))


def test_buffers_are_copied_with_the_weights(toys: types.SimpleNamespace) -> None:
    learner, step, _ = make_learner(toys, {**OFF, "target_every_updates": 2}, PLAIN_HEAD)
    learner.online.encoder.norm = torch.nn.BatchNorm1d(5)
    learner.target.encoder.norm = torch.nn.BatchNorm1d(5).eval()
    step()
    assert int(learner.online.encoder.norm.num_batches_tracked) > 0
    assert int(learner.target.encoder.norm.num_batches_tracked) == 0
    step()
    for key, value in learner.online.state_dict().items():
        assert torch.equal(value, learner.target.state_dict()[key]), key
    assert not learner.target.training


@pytest.mark.parametrize("double", [False, True])
def test_noise_and_fractions_are_drawn_afresh(
    double: bool, toys: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Online, selecting and target forward: 4 noisy layers and one set of fractions each."""
    noise: list[Tensor] = []
    fractions: list[Tensor] = []

    def watch(kept: list[Tensor], real: Any) -> Any:
        def draw(*args: Any, **kwargs: Any) -> Tensor:
            kept.append(real(*args, **kwargs))
            return kept[-1]

        return draw

    monkeypatch.setattr(torch, "randn", watch(noise, torch.randn))
    monkeypatch.setattr(torch, "rand", watch(fractions, torch.rand))
    _, step, _ = make_learner(toys, {"double": double}, RAINBOW_HEAD)
    noise.clear()
    for updates in (1, 2):
        step()
        assert len(noise) == 12 * updates
        assert [tuple(f.shape) for f in fractions[-3:]] == [(7, 5), (7, 4), (7, 3)]
    for drawn in (noise, fractions):
        first = [float(x.flatten()[0]) for x in drawn]
        assert len(set(first)) == len(first)


def first_item(batch: Batch) -> Batch:
    """A batch of one."""
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    cut = {k: x[:, :1] if x.ndim > 1 else x[:1] for k, x in fields.items() if isinstance(x, Tensor)}
    extras = {name: value[:, :1] for name, value in batch.extras.items()}
    return dataclasses.replace(batch, **cut, extras=extras)


@pytest.mark.usefixtures("fixed_draws")
def test_the_loss_as_priority(toys: types.SimpleNamespace) -> None:
    """SABER's priority: each item's loss, before the importance weights."""
    options = {"double": True, "priority": "loss"}
    learner, step, fake = make_learner(toys, options, IQN_HEAD, priority_beta=0.6)
    online, target = doubles(learner.online), doubles(learner.target)
    step()
    first = first_item(fake.batch)  # its fractions are the same in a batch of one
    alone, errors, _ = expected_loss(learner.config, online, online, target, first, 0.6)
    assert float(fake.told[0][1][0, 0]) == pytest.approx(alone, rel=1e-4)
    assert alone != pytest.approx(errors[0], rel=0.1)


class ZeroMean(nn.Module):
    """Quantile functions `c_a (tau - 1/2)`: every action is worth 0, whatever its spread."""

    def forward(self, features: Tensor, tau: Tensor, noise: str) -> Tensor:
        del features, noise
        return (tau.unsqueeze(-1) - 0.5) * torch.tensor([0.1, 1.0, 2.0, 3.0])


@pytest.mark.parametrize("double", [False, True])
def test_targets_are_not_biased_by_the_choice(toys: types.SimpleNamespace, double: bool) -> None:
    """Fractions that choose must not be those that give the value.

    The mean of M = 64 fractions is 1/2 with deviation 1 / sqrt(12 * 64) = 0.036. Choosing by the
    same fractions takes the widest action where their mean is high and the narrowest where it is
    low: (3 - 0.1) / 2 * 0.036 * sqrt(2 / pi) = +0.042 per step, on states of value 0.
    """
    torch.manual_seed(0)
    size = 4000
    batch = make_batch(size)
    still = torch.zeros(1, size)
    batch = dataclasses.replace(batch, r_t=still, discount_t=still + 1)
    options = {"double": double, "num_target_quantiles": 64, "num_action_quantiles": 32}
    learner, _, _ = make_learner(toys, options, IQN_HEAD, batch=batch)
    learner.online.head = learner.target.head = ZeroMean()  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        features, _ = learner.online.features(batch.obs, (), None, None)
        target = learner.objective.targets(batch, features)  # [T, B, M]
        same = ZeroMean()(features, torch.rand(size, 64), "off")
        chosen = same.mean(1).argmax(-1)
        biased = same.mean(1)[torch.arange(size), chosen].mean()
    assert float(biased) == pytest.approx(0.042, abs=0.005)
    assert abs(float(target.mean())) < 0.004


def test_metrics_are_means_since_the_last_call(toys: types.SimpleNamespace) -> None:
    single, step, _ = make_learner(toys, OFF, PLAIN_HEAD)
    apart = []
    for _ in range(3):
        step()
        apart.append(single.metrics())
    assert single.metrics() == {}
    together, step, _ = make_learner(toys, OFF, PLAIN_HEAD)
    for _ in range(3):
        step()
    for key, value in together.metrics().items():
        assert value == pytest.approx(sum(m[key] for m in apart) / 3)


def test_munchausen_together_with_double_is_refused() -> None:
    with pytest.raises(ValueError, match="munchausen: True is not allowed together with double"):
        LearnerConfig(munchausen=True, double=True)


def test_bf16_stays_close_to_fp32_and_keeps_losses_in_fp32(toys: types.SimpleNamespace) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        learner, step, fake = make_learner(
            toys, {**OFF, "double": True, "precision": precision}, PLAIN_HEAD
        )
        step()
        losses.append(learner.metrics()["loss"])
        assert fake.told[0][1].dtype == torch.float32
        assert all(p.dtype == torch.float32 for p in learner.online.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILING)
@pytest.mark.parametrize("recurrent", [False, True])
def test_compiled_updates_equal_eager_ones(recurrent: bool, toys: types.SimpleNamespace) -> None:
    found = []
    for compiled in (False, True):
        options = {"double": True, "compile": compiled}
        state = (torch.zeros(7, toys.features),) if recurrent else ()
        batch = dataclasses.replace(make_batch(), state=state)
        learner, step, _ = make_learner(toys, options, PLAIN_HEAD, batch=batch, recurrent=recurrent)
        for _ in range(3):
            step()
        found.append(learner.metrics())
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize(
    ("asked", "updates", "loss", "replay"),
    [(True, 0, 2, 1), (False, 1e6, 0, 0), ("cpu", 0, 0, 0), ("cpu", 1e6, 1, 0)],
)
def test_what_is_compiled(
    asked: bool | str,
    updates: float,
    loss: int,
    replay: int,
    toys: types.SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Of two updates that are measured, the second; a replay, only where it is sure to pay."""
    ran, compiled = [], []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch, "compile", lambda f: lambda *x: ran.append(f) or f(*x))
    monkeypatch.setattr(FakeReplay, "compile", lambda _: compiled.append(True))
    _, step, _ = make_learner(toys, {"double": True, "compile": asked}, PLAIN_HEAD, updates=updates)
    for _ in range(2):
        step()
    assert (len(ran), len(compiled)) == (loss, replay)


def test_an_update_that_fails_halfway_leaves_no_gradients(
    toys: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, parameter: Tensor) -> Tensor:
            return parameter.sum()

        @staticmethod
        def backward(_: Any, __: Tensor) -> Tensor:
            raise RuntimeError("no compiler")

    found = []
    for asked in (False, True):
        learner, step, _ = make_learner(toys, {"double": True, "compile": asked}, PLAIN_HEAD)
        last = next(iter(learner.online.parameters()))

        def fails(loss: Any, last: Tensor = last) -> Any:
            def compiled(batch: Batch) -> Any:
                total, *others = loss(batch)
                return Fails.apply(last) + total, *others

            return compiled

        monkeypatch.setattr(torch, "compile", fails)
        with pytest.warns(RuntimeWarning) if asked else contextlib.nullcontext():
            step()
        found.append(learner.metrics())
    assert found[0] == found[1]


def test_answers_are_kept_apart_by_whatever_takes_time(
    toys: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    about = []
    monkeypatch.setattr(compiling, "_kept_in", lambda text: about.append(text) or tmp_path / "none")
    cpu = {"double": True, "compile": "cpu"}
    cases: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
        (cpu, PLAIN_HEAD, {}),
        ({**cpu, "num_quantiles": 9}, PLAIN_HEAD, {}),
        (cpu, {**PLAIN_HEAD, "dueling": True}, {}),
        (cpu, PLAIN_HEAD, {"batch": make_batch(5)}),
    ]
    for learner, head, others in cases:
        make_learner(toys, learner, head, updates=1e6, **others)
    monkeypatch.setattr("agents.learning.learner.autocast_dtype", lambda *_: torch.bfloat16)
    for numbers in ({}, {"compile": "auto", "learning_rate": 1e-5, "steps_per_update": 2.5}):
        make_learner(toys, {**cpu, **numbers}, PLAIN_HEAD, updates=1e6)
    assert len(set(about)) == len(cases) + 1
    assert about[-1] == about[-2]


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILING)
def test_compiled_quantiles(toys: types.SimpleNamespace) -> None:
    """With all of Rainbow on; a bias of zero noise and fraction makes the values comparable."""
    found = []
    for compiled in (False, True):
        learner, step, _ = make_learner(toys, {"double": True, "compile": compiled}, RAINBOW_HEAD)
        with torch.no_grad():
            learner.online.head.embedding.weight.zero_()  # values do not depend on the fractions
            for name, parameter in learner.online.named_parameters():
                if "sigma" in name:
                    parameter.zero_()
        step()
        found.append(learner.metrics()["q_value"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILING)
def test_measured_updates_equal_others_whichever_stays(
    toys: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = []
    for updates in (0, 1e6, 1e6):
        learner, step, _ = make_learner(
            toys, {"double": True, "compile": "cpu"}, PLAIN_HEAD, updates=updates
        )
        for _ in range(2 * (WARM_UP_UPDATES + MEASURED_UPDATES) + 4):
            step()
        assert learner.compiling.how in ("always", "never")
        found.append(learner.metrics())
    assert len(list((tmp_path / "rl_nfm" / "compiling").iterdir())) == 1
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert found[2] == pytest.approx(found[0], rel=1e-3)
