import copy

import gymnasium as gym
import numpy as np
import pytest

from envs import AtariVecEnv, env_protocol, make_env
from envs.memory import MEMORY_PROTOCOL, MemoryCueVecEnv

QUADRANTS = [np.s_[:18, :18], np.s_[:18, 18:], np.s_[18:, :18], np.s_[18:, 18:]]


def cue_of(frame):
    """Which quadrant is bright."""
    bright = [i for i, q in enumerate(QUADRANTS) if (frame[q] == 255).all()]
    assert len(bright) == 1
    assert frame.sum() == 255 * 18 * 18
    return bright[0]


def returns(env, policy, steps):
    """Returns of the episodes that end in `steps` of a `policy(frame, memory) -> action`."""
    memories = [{} for _ in range(env.num_envs)]
    obs, info = env.reset()
    ended = []
    for _ in range(steps):
        for k, i in enumerate(info["env_id"]):
            if info["episode_start"][k]:
                memories[i] = {"cue": cue_of(obs[k, 0])}
        actions = [policy(obs[k, 0], memories[i]) for k, i in enumerate(info["env_id"])]
        obs, _, _, truncated, info = env.step(actions)
        assert not truncated.any()
        ended += info["episode_return"][info["episode_end"]].tolist()
        assert (info["episode_steps"][info["episode_end"]] == 7).all()
    return ended


@pytest.mark.parametrize(("num_envs", "batch_size"), [(3, 0), (5, 2), (1, 1)])
def test_memory_earns_one_and_its_opposite_nothing(num_envs, batch_size):
    env = make_env("memory_cue", num_envs=num_envs, batch_size=batch_size, seed=1)
    right = returns(env, lambda _, memory: memory["cue"], 200)
    wrong = returns(env, lambda _, memory: (memory["cue"] + 1) % 4, 200)
    assert len(right) >= 200 // 8 - num_envs
    assert set(right) == {1.0}
    assert set(wrong) == {0.0}


def test_without_memory_chance_is_all_there_is():
    env = make_env("memory_cue", num_envs=50, seed=2)
    rng = np.random.default_rng(0)
    policy = {}  # a deterministic function of the frame, drawn at random

    def reactive(frame, memory):
        return policy.setdefault(frame.tobytes(), int(rng.integers(4)))

    ended = returns(env, reactive, 800)
    # 5,000 episodes at p = 1/4: standard error sqrt(3/16 / 5000) = 0.006, four of them 0.025
    assert len(ended) == 5000
    assert np.mean(ended) == pytest.approx(0.25, abs=0.025)


def test_one_episode_by_hand():
    env = make_env("memory_cue", num_envs=1, seed=3)
    obs, info = env.reset()
    cue = cue_of(obs[0, 0])
    assert info["episode_start"].tolist() == [True]
    for t in range(1, 7):
        obs, rewards, terminated, _, info = env.step([0])
        assert (obs == (255 if t == 6 else 0)).all()  # five black frames, then the white one
        assert (rewards[0], terminated[0], info["episode_frame_number"][0]) == (0, False, t)
    obs, rewards, terminated, _, info = env.step([cue])
    assert (rewards[0], terminated[0]) == (1, True)
    assert not obs.any()
    assert (info["episode_return"][0], info["episode_steps"][0]) == (1, 7)
    assert info["frame_number"][0] == 7
    obs, rewards, terminated, _, info = env.step([cue])  # ignored
    assert (rewards[0], terminated[0], info["episode_start"][0]) == (0, False, True)
    assert info["frame_number"][0] == 7
    cue_of(obs[0, 0])


def test_same_interface_as_an_atari_game():
    atari = make_env("boxing", num_envs=2, seed=0, max_num_frames_per_episode=4)
    memory = make_env("memory_cue", num_envs=2, seed=0)
    assert isinstance(atari, AtariVecEnv)
    assert isinstance(memory, MemoryCueVecEnv)
    for env in (atari, memory):
        assert env.metadata["autoreset_mode"] is gym.vector.AutoresetMode.NEXT_STEP
        obs, _ = env.reset()
        assert obs in env.observation_space
    for _ in range(7):
        a, m = (env.step(env.action_space.sample()) for env in (atari, memory))
        assert [x.dtype for x in a[:4]] == [x.dtype for x in m[:4]]
        assert set(a[4]) == set(m[4])
        for key in a[4]:
            assert (a[4][key].dtype, a[4][key].shape) == (m[4][key].dtype, m[4][key].shape)
    assert set(vars(atari)) - {"_vec", "_twin", "_num_threads"} <= set(vars(memory))
    atari.close()
    memory.close()


def test_seeds():
    def cues(env, seed):
        obs, info = env.reset(seed=seed)
        drawn = [[] for _ in range(env.num_envs)]
        for _ in range(80):
            for k in np.flatnonzero(info["episode_start"]):
                drawn[info["env_id"][k]].append(cue_of(obs[k, 0]))
            obs, *_, info = env.step(np.zeros(env.batch_size, int))
        return drawn

    env = make_env("memory_cue", num_envs=3, seed=4)
    first = cues(env, None)
    assert first == cues(env, 4)
    assert first[1:] == cues(env, 5)[:2]  # environment i gets seed + i
    again = make_env("memory_cue", num_envs=3)
    assert first == cues(again, 4)
    cues(env, 4)
    assert first != cues(again, None) == cues(env, None)  # without a seed the streams go on
    shorter = cues(make_env("memory_cue", num_envs=3, batch_size=2, seed=4), None)
    assert all(a[: len(b)] == b for a, b in zip(first, shorter, strict=True))


def test_frame_size_can_be_chosen_and_the_rest_cannot():
    env = make_env("memory_cue", num_envs=2, img_height=84, img_width=40, stack_num=None)
    assert env.reset()[0].shape == (2, 1, 84, 40)
    with pytest.raises(ValueError, match=r"stack_num: 4 is not allowed, memory_cue has 1"):
        make_env("memory_cue", stack_num=4)
    with pytest.raises(ValueError, match=r"actions: .* must be 2 integers from 0 to 3"):
        env.step([0, 4])
    env.send([0, 3])
    with pytest.raises(ValueError, match=r"send: not allowed now, call recv\(\) first"):
        env.send([0, 3])
    with pytest.raises(TypeError, match="MemoryCueVecEnv cannot be copied"):
        copy.deepcopy(env)
    env.close()
    with pytest.raises(ValueError, match="closed"):
        env.reset()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stack_num": 4}, r"stack_num: 4 is not allowed, memory_cue has 1"),
        ({"full_action_space": True}, r"True is not allowed, memory_cue has False"),
        ({"wrappers": ("a:B",)}, r"is not allowed, no option of memory_cue"),
        ({"protocol": "rltime", "kwargs": "", "noop_max": 0, "wrappers": ()}, None),
    ],
)
def test_options_of_other_games_are_refused(options, message):
    if message is None:
        assert env_protocol("memory_cue", options) == MEMORY_PROTOCOL
        return
    with pytest.raises(ValueError, match=message):
        env_protocol("memory_cue", options)
