"""Frames of several channels and rewards that are fractions, stored and sampled as they were."""

import numpy as np
import pytest
import torch

from agents.replay.buffer import Replay
from agents.replay.config import ReplayConfig
from agents.replay.layout import replay_bytes
from agents.replay.returns import ReturnConfig

CPU = torch.device("cpu")


def filled(channels, stack, *, num_envs=3, steps=23, n_steps=3, seed=0):
    """A replay, and by hand what each row's observation and step were."""
    rng = np.random.default_rng(seed)
    height, width = 5, 4
    replay = Replay(
        ReplayConfig(capacity_steps=40 * num_envs, min_steps=1, batch_size=4),
        ReturnConfig(n_steps=n_steps, discount=0.9, reward_clip=None, terminal_on_life_loss=False),
        num_envs=num_envs,
        obs_shape=(channels * stack, height, width),
        frame_channels=channels,
        device=CPU,
    )
    shape = (steps, num_envs, *([channels] if channels > 1 else []), height, width)
    frames = rng.integers(1, 256, size=shape).astype(np.uint8)
    start = rng.random((steps, num_envs)) < 0.2
    start[0] = True
    reward = rng.normal(size=(steps, num_envs)).astype(np.float32)
    alive = rng.random((steps, num_envs)) < 0.5  # matters only where an episode ends
    ends = np.vstack([start[1:], np.zeros((1, num_envs), bool)])  # row t + 1 begins anew
    over = np.vstack([ends[1:], np.zeros((1, num_envs), bool)])  # the step of t led to the last
    discount = np.where(over, alive, True)
    for t in range(steps):
        replay.add(
            frame=torch.from_numpy(frames[t]),
            action=torch.zeros(num_envs, dtype=torch.int64),
            reward=torch.from_numpy(reward[t]),
            discount=torch.from_numpy(discount[t]),
            episode_start=torch.from_numpy(start[t]),
            life_loss=torch.zeros(num_envs, dtype=torch.bool),
            episode_step=torch.zeros(num_envs, dtype=torch.int64),
        )
    return replay, frames, start, reward, discount


def by_hand(frames, start, t, env, stack):
    """Newest last, black before the episode began."""
    newest = frames[t, env].reshape(-1, *frames.shape[-2:])
    out = [newest]
    for age in range(1, stack):
        gone = start[t - age + 1 : t + 1, env].any()
        out.append(out[-1] * 0 if gone else frames[t - age, env].reshape(newest.shape))
    return np.concatenate(out[::-1])


@pytest.mark.parametrize(("channels", "stack"), [(1, 1), (1, 4), (3, 1), (3, 2), (4, 3)])
def test_stacks_are_the_observations_that_were_acted_on(channels, stack):
    replay, frames, start, *_ = filled(channels, stack)
    rows = torch.arange(stack, len(frames))
    for env in range(replay.num_envs):
        got = replay.stacks(rows[None], torch.full_like(rows, env)).numpy()
        assert got.shape == (1, len(rows), channels * stack, 5, 4)
        for k, t in enumerate(rows.tolist()):
            np.testing.assert_array_equal(got[0, k], by_hand(frames, start, t, env, stack))


@pytest.mark.parametrize("channels", [1, 3])
def test_returns_of_fractions_end_where_the_episode_does(channels):
    replay, frames, start, reward, discount = filled(channels, 2)
    steps = replay.returns.n_steps
    torch.manual_seed(0)
    batch = replay.sample(200)
    seen = 0
    for b, index in enumerate(batch.index.tolist()):
        t, env = divmod(index, replay.num_envs)
        assert not start[t + 1, env], "the last frame of an episode begins no transition"
        total, weight, m = 0.0, 1.0, 0
        for k in range(steps):
            if k and start[t + k + 1, env]:
                break
            total += weight * float(reward[t + k, env])
            weight *= 0.9 * float(discount[t + k, env])
            m += 1
        assert batch.r_t[0, b].item() == pytest.approx(total, abs=1e-5)
        assert batch.discount_t[0, b].item() == pytest.approx(weight, abs=1e-6)
        expected = by_hand(frames, start, t + m, env, 2)
        np.testing.assert_array_equal(batch.obs[1, b].numpy(), expected)
        seen += m < steps
    assert seen > 10


def test_bytes_count_every_channel():
    config = ReplayConfig(capacity_steps=1000, min_steps=10)
    sizes = [
        replay_bytes(config, num_envs=4, obs_shape=(c * 2, 5, 4), state=(), frame_channels=c)[0]
        for c in (1, 3)
    ]
    assert sizes[1] - sizes[0] == 1000 * 2 * 5 * 4
