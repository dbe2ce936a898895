"""Updates of recurrent networks on sequences, against an unroll that walks item by item.

S observations, T positions, B sequences. The head is plain DQN's: what the head does with features
is the subject of test_learner.py.
"""

import types
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.learning.config import LearnerConfig
from agents.learning.learner import Learner
from agents.learning.network import QNetwork
from agents.learning.objective import LossTerms
from agents.replay.batch import Batch
from agents.replay.priorities import importance_weights
from rl_nfm.values.heads import HeadConfig

CPU = torch.device("cpu")
PLAIN: dict[str, Any] = {"distribution": "none", "dueling": False, "noisy": False}


def make_batch(burn_in: int, steps: int, n_steps: int, size: int = 4) -> Batch:
    g = torch.Generator().manual_seed(burn_in + 10 * steps)
    span = burn_in + steps + n_steps
    ahead = torch.randint(1, n_steps + 1, (steps, size), generator=g)
    return Batch(
        obs=torch.randint(0, 256, (span, size, 2, 3, 2), generator=g, dtype=torch.uint8),
        state=(torch.randn(size, 5, generator=g),),
        reset=torch.rand(span, size, generator=g) < 0.15,
        extras={
            "last_action": torch.randint(0, 3, (span, size), generator=g),
            "last_reward": torch.randn(span, size, generator=g),
            "episode_step": torch.randint(0, 30, (span, size), generator=g),
        },
        a_tm1=torch.randint(0, 3, (steps, size), generator=g),
        r_t=torch.randn(steps, size, generator=g),
        discount_t=torch.rand(steps, size, generator=g),
        bootstrap=burn_in + torch.arange(steps)[:, None] + ahead,
        mask=torch.rand(steps, size, generator=g) < 0.8,
        index=torch.arange(size),
        probability=torch.rand(size, generator=g, dtype=torch.float64) + 0.1,
        weight=torch.ones(size),
        burn_in_steps=burn_in,
    )


def make_learner(toys: types.SimpleNamespace, **options: Any) -> Learner:
    plain = {"double": True, "precision": "fp32", "max_grad_norm": None, **options}
    made = Learner(
        LearnerConfig(**plain),
        toys.make_network(toys.CellEncoder(), 1, **PLAIN),
        toys.make_network(toys.CellEncoder(), 2, **PLAIN),
        device=CPU,
    )
    made.target.load_state_dict(toys.make_network(toys.CellEncoder(), 3, **PLAIN).state_dict())
    return made


def one_step(network: QNetwork, batch: Batch, s: int, b: int, h: Tensor) -> Tensor:
    """The toy cell's formula for one observation of one sequence."""
    if bool(batch.reset[s, b]):
        h = torch.zeros_like(h)
    action = [0.0, 0.0, 0.0]
    action[int(batch.extras["last_action"][s, b])] = 1.0
    more = [
        float(batch.extras["last_reward"][s, b]),
        float(batch.extras["episode_step"][s, b]) / 10,
    ]
    x = torch.cat([batch.obs[s, b].flatten() / 255, torch.tensor(action + more)])
    encoder: Any = network.encoder
    return torch.tanh(encoder.inputs(x) + encoder.hidden.weight @ h)


def walk(network: QNetwork, batch: Batch, b: int, burn_in: int, detach: bool) -> list[Tensor]:
    """Q-values after each observation of sequence b; no gradient passes out of the burn-in."""
    h, values = batch.state[0][b], []
    for s in range(len(batch.obs)):
        h = one_step(network, batch, s, b, h)
        if detach and s < burn_in:
            h = h.detach()
        values.append(network.head.advantage(h, "off"))
    return values


def naive_loss(learner: Learner, batch: Batch, burn_in: int, beta: float, detach: bool) -> Tensor:
    weights = [float(p) ** -beta for p in batch.probability]
    total = torch.zeros(())
    steps, size = batch.a_tm1.shape
    for b in range(size):
        online = walk(learner.online, batch, b, burn_in, detach)
        with torch.no_grad():
            target = walk(learner.target, batch, b, burn_in, True)
        losses = []
        for t in range(steps):
            if not bool(batch.mask[t, b]):
                continue
            later = int(batch.bootstrap[t, b])
            select = online[later] if learner.config.double else target[later]
            value = target[later][select.argmax()]
            y = batch.r_t[t, b] + batch.discount_t[t, b] * value
            prediction = online[burn_in + t][batch.a_tm1[t, b]]
            losses.append(torch.nn.functional.smooth_l1_loss(prediction, y))
        if losses:
            total = total + weights[b] / max(weights) * sum(losses) / len(losses) / size
    return total


def gradients(learner: Learner) -> dict[str, Tensor]:
    named = learner.online.named_parameters()
    return {k: p.grad.clone() for k, p in named if p.grad is not None}


SHAPES = [(0, 1, 1), (0, 1, 3), (0, 4, 1), (3, 1, 2), (2, 3, 3), (5, 4, 2)]


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("burn_in", "steps", "n_steps"), SHAPES)
def test_sequences_equal_a_walk_item_by_item(
    burn_in: int, steps: int, n_steps: int, double: bool, toys: types.SimpleNamespace
) -> None:
    batch = make_batch(burn_in, steps, n_steps)
    learner = make_learner(toys, double=double)
    batch.weight = importance_weights(batch.probability, torch.tensor(0.7))
    expected = naive_loss(learner, batch, burn_in, 0.7, True)
    wanted = torch.autograd.grad(expected, list(learner.online.parameters()))
    learner.update(batch)
    assert learner.metrics()["loss"] == pytest.approx(float(expected.detach()), rel=1e-4)
    for (key, found), grad in zip(gradients(learner).items(), wanted, strict=True):
        assert torch.allclose(found, grad, rtol=1e-3, atol=1e-6), key


def test_burn_in_carries_no_gradient(toys: types.SimpleNamespace) -> None:
    """With gradient through the burn-in the result would be another: the test above can fail."""
    batch = make_batch(5, 4, 2)
    batch.reset[:] = False
    learner = make_learner(toys)
    through = naive_loss(learner, batch, 5, 0.0, False)
    hidden: Any = learner.online.encoder
    (other,) = torch.autograd.grad(through, [hidden.hidden.weight])
    learner.update(batch)
    found = gradients(learner)["encoder.hidden.weight"]
    assert float((found - other).norm() / other.norm()) > 0.01
    assert batch.state[0].grad is None


def test_one_call_equals_pieces_equals_single_steps(toys: types.SimpleNamespace) -> None:
    batch = make_batch(3, 4, 2)
    learner = make_learner(toys)
    network, span = learner.online, len(batch.obs)
    with torch.no_grad():
        whole, last = network.features(batch.obs, batch.state, batch.reset, batch.extras)
        pieces = learner.objective.unroll(network, batch, 0, span)
        state, single = batch.state, []
        for s in range(span):
            extras = {k: v[s : s + 1] for k, v in batch.extras.items()}
            step, state = network.features(
                batch.obs[s : s + 1], state, batch.reset[s : s + 1], extras
            )
            single.append(step)
    assert torch.allclose(whole, pieces, atol=1e-6)
    assert torch.allclose(whole, torch.cat(single), atol=1e-6)
    assert torch.allclose(last[0], state[0], atol=1e-6)


@pytest.mark.parametrize("burn_in", [0, 4])
def test_bf16_gives_every_weight_its_gradient(burn_in: int, toys: types.SimpleNamespace) -> None:
    """Casts to bf16 cached during the burn-in, without gradient, would hide the weights later."""
    found = []
    for precision in ("fp32", "bf16"):
        batch = make_batch(burn_in, 3, 2)
        learner = make_learner(toys, precision=precision)
        learner.update(batch)
        found.append(gradients(learner))
        assert set(found[-1]) == {name for name, _ in learner.online.named_parameters()}
    for key, exact in found[0].items():
        cosine = torch.nn.functional.cosine_similarity(
            exact.flatten(), found[1][key].flatten(), dim=0
        )
        assert float(cosine) > 0.98, key


def test_a_head_reads_a_batch_of_sequences_position_by_position(
    toys: types.SimpleNamespace,
) -> None:
    """[T, B] is flattened and put back in the same order, quantile fractions too."""
    network = toys.make_network(toys.CellEncoder(), 1, distribution="iqn", noisy=False)
    features = torch.randn(3, 4, 5)
    values, tau = network.values(features, 6, noise="batch")
    assert values.shape == (3, 4, 6, 3)
    assert tau.shape == (3, 4, 6)
    for t in range(3):
        for b in range(4):
            alone = network.head(features[t, b][None], tau[t, b][None])
            assert torch.allclose(values[t, b], alone[0], atol=1e-6)


@pytest.mark.parametrize("munchausen", [False, True])
def test_quantiles_and_munchausen_on_sequences(
    munchausen: bool, toys: types.SimpleNamespace
) -> None:
    """As if each position were a transition of its own, with its own features."""
    batch = make_batch(2, 3, 2)
    options = {"double": False, "munchausen": munchausen, "munchausen_temperature": 0.3}
    learner = make_learner(toys, **options)
    # Weights that make the values independent of the fractions, which are drawn at random.
    config = HeadConfig(**{"hidden_size": 4, "num_cosines": 3, **PLAIN, "distribution": "iqn"})
    for network in (learner.online, learner.target):
        plain = network.head.state_dict()
        network.head = type(network.head)(5, 3, config)
        network.head.load_state_dict(
            {
                **plain,
                "embedding.weight": torch.zeros(5, 3),
                "embedding.bias": torch.ones(5),
            }
        )
        network.quantiles = True
    with torch.no_grad():
        target = [walk(learner.target, batch, b, 2, True) for b in range(4)]
        online = [walk(learner.online, batch, b, 2, True) for b in range(4)]
    told = learner.update(batch)
    for t in range(3):
        for b in range(4):
            later = target[b][int(batch.bootstrap[t, b])]
            value, reward = later.max(), float(batch.r_t[t, b])
            if munchausen:
                value = 0.3 * torch.logsumexp(later / 0.3, -1)
                now = torch.log_softmax(target[b][2 + t] / 0.3, -1)[batch.a_tm1[t, b]]
                reward += 0.9 * max(-1.0, 0.3 * float(now))
            y = reward + float(batch.discount_t[t, b]) * float(value)
            prediction = float(online[b][2 + t][batch.a_tm1[t, b]])
            assert float(told[t, b]) == pytest.approx(abs(y - prediction), rel=1e-4, abs=1e-5)


def test_the_sum_of_a_sequence_is_its_mean_times_the_steps_that_count():
    """In Acme's R2D2: 0.5 * square(td).sum over time, then the weighted mean over sequences."""
    batch = make_batch(0, 5, 1)
    found = {}
    for kind in ("mean", "sum"):
        learner = object.__new__(Learner)
        learner.config = LearnerConfig(sequence_loss=kind)
        loss = torch.arange(20.0).view(5, 4)
        terms = LossTerms(loss=loss, td_error=loss, q_value=loss, auxiliary={})
        learner.objective = lambda _, terms=terms: terms
        found[kind] = float(learner._total_loss(batch)[0])
    mask = batch.mask.float()
    sums = (torch.arange(20.0).view(5, 4) * mask).sum(0)
    assert found["sum"] == pytest.approx(float((sums * batch.weight).mean()))
    assert found["mean"] == pytest.approx(float((sums / mask.sum(0) * batch.weight).mean()))
