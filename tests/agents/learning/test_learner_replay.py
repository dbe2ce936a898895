"""Learner and replay together: same seed, same result; on a GPU, captured equals eager."""

import types
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.learning.config import LearnerConfig
from agents.learning.learner import Learner
from agents.learning.random_stream import RandomStream
from agents.replay.buffer import Replay
from agents.replay.config import ReplayConfig
from agents.replay.returns import ReturnConfig
from agents.training.step import GradientStep

CPU = torch.device("cpu")
HEAD = {"distribution": "iqn", "dueling": True, "noisy": True}


def make_step(
    toys: types.SimpleNamespace,
    device: torch.device,
    *,
    seed: int = 0,
    recurrent: bool = False,
    **options: Any,
) -> GradientStep:
    """A full Rainbow-IQN learner on a replay that holds 200 rows of 3 environments."""
    torch.manual_seed(seed)
    encoder = (toys.CellEncoder if recurrent else toys.LinearEncoder)()
    online = toys.make_network(encoder, 1, **HEAD).to(device)
    target = toys.make_network(type(encoder)(), 1, **HEAD).to(device)
    sequence = {"sequence_steps": 3, "burn_in_steps": 2} if recurrent else {}
    replay = Replay(
        ReplayConfig(capacity_steps=450, batch_size=16, priority_exponent=0.5, **sequence),
        ReturnConfig(n_steps=3, discount=0.9, reward_clip=1.0, terminal_on_life_loss=True),
        num_envs=3,
        obs_shape=toys.obs_shape,
        device=device,
        state=online.initial_state(1),
    )
    g = torch.Generator().manual_seed(7)
    add_rows(replay, 200, g)
    config = {"learning_rate": 1e-3, "precision": "fp32", "target_every_updates": 7, **options}
    # as the trainer has it: a captured graph never draws from the default generator
    random = RandomStream(device, seed) if device.type == "cuda" else None
    learner = Learner(LearnerConfig(**config), online, target, device=device)
    return GradientStep(learner, replay, random=random)


def add_rows(replay: Replay, count: int, g: torch.Generator) -> None:
    def draw(share: float) -> Tensor:
        return (torch.rand(3, generator=g) < share).to(replay.device)

    for time in range(count):
        ended = torch.full((3,), time % 17 == 15)
        replay.add(
            frame=torch.randint(0, 256, (3, 3, 2), generator=g, dtype=torch.uint8).to(
                replay.device
            ),
            action=torch.randint(0, 3, (3,), generator=g).to(replay.device),
            reward=torch.randn(3, generator=g).to(replay.device),
            discount=~ended.to(replay.device),
            episode_start=torch.full((3,), time % 17 == 0).to(replay.device),
            life_loss=draw(0.1),
            episode_step=torch.full((3,), time % 17).to(replay.device),
            state=tuple(torch.randn(3, 5, generator=g).to(replay.device) for _ in replay.recurrent),
        )


def everything(step: GradientStep) -> dict[str, Tensor]:
    learner, replay = step.learner, step.replay
    assert isinstance(replay, Replay)
    found = {f"online.{k}": v for k, v in learner.online.state_dict().items()}
    found |= {f"target.{k}": v for k, v in learner.target.state_dict().items()}
    found["priorities"] = replay.priorities.weights
    found["max_priority"] = replay.max_priority
    found |= {f"metrics.{k}": torch.tensor(v) for k, v in learner.metrics().items()}
    return {k: v.detach().cpu().clone() for k, v in found.items()}


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_same_seed_is_bit_identical(
    recurrent: bool, precision: str, toys: types.SimpleNamespace
) -> None:
    def train(seed: int) -> dict[str, Tensor]:
        step = make_step(toys, CPU, seed=seed, recurrent=recurrent, precision=precision)
        for update in range(9):
            step.set_schedule(update / 9)
            step()
            if update % 4 == 0:
                add_rows(step.replay, 1, torch.Generator().manual_seed(update))
        return everything(step)

    first, second, other = train(3), train(3), train(4)
    assert all(torch.equal(first[key], second[key]) for key in first)
    differing = [key for key in first if not torch.equal(first[key], other[key])]
    assert len(differing) > 10


def test_priorities_of_a_batch_are_written_back(toys: types.SimpleNamespace) -> None:
    step = make_step(toys, CPU)
    replay = step.replay
    assert isinstance(replay, Replay)
    before = replay.priorities.weights.clone()
    eligible = before > 0
    told: list[tuple[Tensor, Tensor, Tensor]] = []
    real = replay.update_priorities

    def watch(index: Tensor, td_error: Tensor, mask: Tensor) -> None:
        told.append((index, td_error, mask))
        real(index, td_error, mask)

    replay.update_priorities = watch  # pyright: ignore[reportAttributeAccessIssue]
    step()
    (index, td_error, mask) = told[0]
    after = replay.priorities.weights
    changed = (after != before).nonzero().flatten()
    assert set(changed.tolist()) <= set(index.tolist())
    assert bool(mask.all())
    for i, error in zip(index.tolist(), td_error[0].tolist(), strict=True):
        others = [e for j, e in zip(index.tolist(), td_error[0].tolist(), strict=True) if j == i]
        wanted = [(e + 1e-6) ** 0.5 for e in others]
        assert any(float(after[i]) == pytest.approx(w, rel=1e-6) for w in wanted), error
    assert torch.equal(after > 0, eligible)


def test_a_learner_learns_a_bandit(toys: types.SimpleNamespace) -> None:
    """Rewards depend on the action alone, and episodes end at once: values become the rewards."""
    torch.manual_seed(0)
    replay = Replay(
        ReplayConfig(capacity_steps=600, batch_size=32, priority_exponent=0.5),
        ReturnConfig(n_steps=2, discount=0.9, reward_clip=None, terminal_on_life_loss=False),
        num_envs=2,
        obs_shape=toys.obs_shape,
        device=CPU,
    )
    rewards = torch.tensor([0.5, -1.0, 1.5])
    for time in range(200):
        action = torch.randint(0, 3, (2,))
        replay.add(
            frame=torch.full((2, 3, 2), 200, dtype=torch.uint8),
            action=action,
            reward=rewards[action],
            discount=torch.zeros(2),
            episode_start=torch.full((2,), time % 2 == 0),
            life_loss=torch.zeros(2, dtype=torch.bool),
            episode_step=torch.full((2,), time % 2),
        )
    online = toys.make_network(toys.LinearEncoder(), 5, **HEAD)
    target = toys.make_network(toys.LinearEncoder(), 5, **HEAD)
    config = LearnerConfig(
        num_quantiles=8, num_target_quantiles=8, learning_rate=0.02, target_every_updates=20
    )
    step = GradientStep(Learner(config, online, target, device=CPU), replay)
    step.set_schedule(1.0)
    for _ in range(160):
        step()
    obs = torch.full((1, 1, *toys.obs_shape), 200, dtype=torch.uint8)
    obs[:, :, 0] = 0  # the first frame of an episode: the stack is black before it
    with torch.no_grad():
        values, _ = online.values(online.features(obs, (), None, None)[0][0], 32, noise="off")
    assert torch.allclose(values.mean(-2)[0], rewards, atol=0.35)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("target_tau", [None, 0.05])
def test_captured_updates_equal_eager_ones(
    recurrent: bool, target_tau: float | None, toys: types.SimpleNamespace
) -> None:
    """100 updates with schedules, target copies and new rows in between, from the same seed."""
    device = torch.device("cuda")
    found, start = [], {}
    for graph in (False, True):
        step = make_step(
            toys,
            device,
            recurrent=recurrent,
            cuda_graph=graph,
            target_tau=target_tau,
            learning_rate_final=1e-4,
        )
        start = everything(step)
        torch.manual_seed(11)
        g = torch.Generator().manual_seed(5)
        for update in range(100):
            step.set_schedule(update / 100)
            step()
            if update % 10 == 0:
                add_rows(step.replay, 1, g)
        assert (step.captured) == graph
        found.append(everything(step))
    for key, eager in found[0].items():
        if key.startswith("metrics"):
            assert float(found[1][key]) == pytest.approx(float(eager), rel=0.02), key
        elif key.startswith(("online", "target")):
            moved = float((eager - start[key]).abs().max())
            assert float((found[1][key] - eager).abs().max()) <= 0.02 * moved + 1e-6, key


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_captured_update_obeys_the_schedule(toys: types.SimpleNamespace) -> None:
    step = make_step(toys, torch.device("cuda"), learning_rate_final=0.0)
    for _ in range(6):
        step()
    assert step.captured
    step.set_schedule(1.0)
    before = everything(step)
    step()
    after = everything(step)
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("online"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_update_waits_for_nothing(toys: types.SimpleNamespace) -> None:
    """No host synchronisation, which is also what allows the capture."""
    step = make_step(toys, torch.device("cuda"), cuda_graph=False)
    step.set_schedule(0.5)
    for _ in range(2):
        step()
    try:
        torch.cuda.set_sync_debug_mode("error")
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
