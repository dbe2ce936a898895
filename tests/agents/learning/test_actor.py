import itertools
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agents.learning.actor import Actor, frozen_statistics, to_device
from agents.replay.buffer import Replay
from agents.replay.config import ReplayConfig
from agents.replay.returns import ReturnConfig

CPU = torch.device("cpu")
NOISY = {"distribution": "iqn", "dueling": True, "noisy": True}


def make_actor(network: Any, num_envs: int, **options: Any) -> Actor:
    plain = {"num_quantiles": 6, "dtype": None, "terminal_on_life_loss": False, **options}
    return Actor(network, num_envs=num_envs, **plain)


def frames(num_envs: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_envs, 2, 3, 2), generator=g, dtype=torch.uint8)


def begins(*values: int) -> Tensor:
    return torch.tensor(values).bool()


def watch_features(network: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the encoder is given and gives, call by call."""
    calls: list[dict[str, Any]] = []
    real = network.features

    def features(obs: Tensor, state: Any, reset: Tensor, extras: Any) -> Any:
        result = real(obs, state, reset, extras)
        calls.append(
            {
                "state": tuple(s.clone() for s in state),
                "reset": reset.clone(),
                "features": result[0].clone(),
                **{k: v.clone() for k, v in extras.items()},
            }
        )
        return result

    monkeypatch.setattr(network, "features", features)
    return calls


def test_extras_follow_the_episodes(
    toys: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = toys.make_network(toys.CellEncoder(), 1, distribution="none")
    calls = watch_features(network, monkeypatch)
    actor = make_actor(network, 2)
    starts = [(1, 1), (0, 0), (0, 1), (0, 0)]
    actions = []
    for time, start in enumerate(starts):
        chosen = actor.act(frames(2, time), begins(*start), epsilon=0.5, noise=False)
        actions.append(chosen.tolist())
        actor.observe(torch.tensor([time + 1.0, -time - 1.0]), begins(0, 0))
    assert [c["episode_step"].tolist() for c in calls] == [[[0, 0]], [[1, 1]], [[2, 0]], [[3, 1]]]
    rewards = [[0, 0], [1, -1], [2, 0], [3, -3]]
    assert [c["last_reward"][0].tolist() for c in calls] == rewards
    before = [[0, 0], actions[0], [actions[1][0], 0], actions[2]]
    assert [c["last_action"][0].tolist() for c in calls] == before
    assert [c["reset"][0].int().tolist() for c in calls] == [[1, 1], [0, 0], [0, 1], [0, 0]]
    for earlier, later in itertools.pairwise(calls):
        assert torch.equal(later["state"][0], earlier["features"][0])  # the toy's state


@pytest.mark.parametrize("terminal", [False, True])
def test_a_lost_life_zeroes_the_state_where_it_ends_the_return(
    terminal: bool, toys: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = toys.make_network(toys.CellEncoder(), 1, distribution="none")
    calls = watch_features(network, monkeypatch)
    actor = make_actor(network, 2, terminal_on_life_loss=terminal)
    for lost in ((0, 0), (1, 0), (0, 0)):
        actor.act(frames(2), begins(len(calls) == 0, len(calls) == 0), epsilon=0.0, noise=False)
        actor.observe(torch.ones(2), begins(*lost))
    expected = [[True, True], [False, False], [terminal, False]]
    assert [c["reset"][0].tolist() for c in calls] == expected
    assert calls[2]["episode_step"][0].tolist() == [2, 2]
    assert calls[2]["last_reward"][0].tolist() == [1, 1]


def test_tensors_handed_over_are_left_alone(toys: types.SimpleNamespace) -> None:
    """Neither the actions returned before nor the rewards told change when an episode begins."""
    actor = make_actor(toys.make_network(toys.LinearEncoder(), 1, distribution="none"), 3)
    rewards = np.array([1.0, 2.0, 3.0], np.float32)
    first = actor.act(frames(3), begins(1, 1, 1), epsilon=1.0, noise=False)
    first.fill_(2)
    actor.observe(to_device(rewards, CPU), begins(0, 0, 0))
    actor.act(frames(3), begins(1, 0, 1), epsilon=0.0, noise=False)
    assert first.tolist() == [2, 2, 2]
    assert rewards.tolist() == [1, 2, 3]


def test_actions_are_greedy_in_the_mean_over_quantiles(toys: types.SimpleNamespace) -> None:
    network = toys.make_network(toys.LinearEncoder(), 7, **NOISY)
    network.encoder.layer.weight.data *= 5  # so that observations differ in their best action
    obs = frames(50)
    actor = make_actor(network, 50, num_quantiles=9)
    action = actor.act(obs, torch.ones(50).bool(), epsilon=0.0, noise=False, fixed_fractions=True)
    with torch.no_grad():
        features, _ = network.encoder(obs[None])
        tau = ((torch.arange(9) + 0.5) / 9).expand(50, 9)
        values = network.head(features[0], tau)
    assert torch.equal(action, values.mean(1).argmax(-1))
    assert len(set(action.tolist())) > 1
    assert action.dtype == torch.int64


def test_epsilon_of_each_environment(toys: types.SimpleNamespace) -> None:
    torch.manual_seed(0)
    network = toys.make_network(toys.LinearEncoder(), 1, distribution="none", noisy=False)
    actor = make_actor(network, 3)
    obs, start = frames(1).expand(3, -1, -1, -1), begins(0, 0, 0)
    greedy = int(actor.act(obs, start, epsilon=0.0, noise=False)[0])
    rows = [
        actor.act(obs, start, epsilon=torch.tensor([0.0, 0.3, 1.0]), noise=False).tolist()
        for _ in range(300)
    ]
    counts = torch.tensor(rows).T
    assert set(counts[0].tolist()) == {greedy}
    # 300 * 0.3 * 2 / 3 = 60 others, deviation sqrt(60 * 0.8) = 7
    assert abs(int((counts[1] != greedy).sum()) - 60) < 35
    # uniform: 100 each, deviation 8
    assert all(abs(n - 100) < 40 for n in torch.bincount(counts[2], minlength=3).tolist())


def test_noise_and_fractions_are_drawn_where_asked(
    toys: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = toys.make_network(toys.LinearEncoder(), 1, **NOISY)
    actor = make_actor(network, 4)
    drawn: list[Tensor] = []
    real = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: drawn.append(real(*a, **k)) or drawn[-1])
    given: list[Tensor] = []
    values = network.values

    def watch(*args: Any, **kwargs: Any) -> Any:
        given.append(values(*args, **kwargs)[0])
        return given[-1], None

    monkeypatch.setattr(network, "values", watch)
    start = begins(1, 1, 1, 1)
    for _ in range(2):
        actor.act(frames(4), start, epsilon=0.0, noise=False, fixed_fractions=True)
    assert not drawn
    assert torch.equal(given[0], given[1])
    for _ in range(2):
        actor.act(frames(4), start, epsilon=0.0, noise=False)
    assert not drawn
    assert not torch.equal(given[2], given[3]), "fractions are drawn anew at every step"
    for _ in range(2):
        actor.act(frames(4), start, epsilon=0.0, noise=True, fixed_fractions=True)
    assert len(drawn) == 8  # 4 layers, twice
    assert not torch.equal(given[4], given[5])


def test_each_environment_explores_with_noise_of_its_own(toys: types.SimpleNamespace) -> None:
    """One draw for all would send environments that look alike the same way."""
    network = toys.make_network(toys.LinearEncoder(), 1, distribution="none", noisy=True)
    same = frames(1).expand(64, -1, -1, -1)
    actor = make_actor(network, 64)
    torch.manual_seed(0)
    greedy = actor.act(same, torch.ones(64).bool(), epsilon=0.0, noise=False)
    assert len(set(greedy.tolist())) == 1
    noisy = actor.act(same, torch.ones(64).bool(), epsilon=0.0, noise=True)
    assert int(torch.bincount(noisy).max()) < 0.9 * 64


def test_acting_never_updates_batch_statistics(toys: types.SimpleNamespace) -> None:
    network = toys.make_network(toys.LinearEncoder(batch_norm=True), 1, distribution="none")
    before = {k: v.clone() for k, v in network.state_dict().items()}
    for training in (True, False):
        network.train(training)
        actor = make_actor(network, 4)
        action = actor.act(frames(4), begins(1, 1, 1, 1), epsilon=0.0, noise=False)
        alone = make_actor(network, 1).act(frames(4)[:1], begins(1), epsilon=0.0, noise=False)
        assert action[0] == alone[0]  # nor does it normalise by the games beside it
        assert network.training == training
        assert all(m.training == training for m in network.modules())
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_an_error_inside_leaves_the_network_in_training() -> None:
    network = nn.Sequential(nn.Linear(2, 2))

    def stop(*_: object) -> None:
        assert not network.training
        raise RuntimeError("stop")

    network[0].register_forward_hook(stop)
    with pytest.raises(RuntimeError, match="stop"), frozen_statistics(network):
        network(torch.zeros(1, 2))
    assert network[0].training


def test_acting_needs_no_gradient(toys: types.SimpleNamespace) -> None:
    network = toys.make_network(toys.CellEncoder(), 1, **NOISY)
    actor = make_actor(network, 2, dtype=torch.bfloat16)
    actor.act(frames(2), begins(1, 1), epsilon=0.1, noise=True)
    assert not any(s.requires_grad for s in actor.state)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("burn_in", [0, 2])
def test_sequences_of_the_replay_repeat_what_the_actor_saw(
    terminal: bool, burn_in: int, toys: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unrolled from the stored state, the same weights give the features met when acting.

    This holds only if actor and replay agree on states, resets, last actions and rewards, steps
    and stacks at every border.
    """
    network = toys.make_network(toys.CellEncoder(), 1, distribution="none")
    calls = watch_features(network, monkeypatch)
    actor = make_actor(network, 3, terminal_on_life_loss=terminal)
    replay = Replay(
        ReplayConfig(
            capacity_steps=3 * 24,
            sequence_steps=3,
            overlap_steps=1,
            burn_in_steps=burn_in,
            priority_exponent=0.0,
        ),
        ReturnConfig(n_steps=2, discount=0.9, reward_clip=1.0, terminal_on_life_loss=terminal),
        num_envs=3,
        obs_shape=toys.obs_shape,
        device=CPU,
        state=network.initial_state(1),
    )
    g = torch.Generator().manual_seed(0)
    start, obs = torch.ones(3).bool(), torch.zeros(3, 2, 3, 2, dtype=torch.uint8)
    last = torch.zeros(3).bool()  # the autoreset's row comes next
    for _ in range(70):
        new = torch.randint(0, 256, (3, 3, 2), generator=g, dtype=torch.uint8)
        obs = torch.stack([obs[:, 1] * ~start[:, None, None], new], 1)
        state = actor.state
        action = actor.act(obs, start, epsilon=0.5, noise=False)
        reward = torch.randn(3, generator=g) * ~last
        life_loss = (torch.rand(3, generator=g) < 0.2) & ~last
        ended = (torch.rand(3, generator=g) < 0.15) & ~last
        actor.observe(reward, life_loss)
        replay.add(
            frame=obs[:, -1],
            action=action,
            reward=reward,
            discount=~ended,
            episode_start=start,
            life_loss=life_loss,
            episode_step=actor.episode_step,
            state=state,
        )
        start, last = last, ended
    met = torch.cat([c["features"] for c in calls[:70]])  # [time, E, D]
    batch = replay.sample(200)
    with torch.no_grad():
        found, _ = network.features(batch.obs, batch.state, batch.reset, batch.extras)
    span = burn_in + 3 + 2
    checked = set()
    for b, index in enumerate(batch.index.tolist()):
        row, env = index // 3, index % 3
        time = next(t for t in range(46, 70) if t % 24 == row) - burn_in
        checked.add((time, env))
        for s in range(span):
            if time + s < 70:  # always: a sequence is drawn once it is complete
                assert torch.allclose(found[s, b], met[time + s, env], atol=1e-5)
    assert len(checked) > 15
