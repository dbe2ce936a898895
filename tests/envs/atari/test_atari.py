import time

import gymnasium as gym
import numpy as np
import pytest

from envs import game_names, make_atari

SMALL = {"img_height": 21, "img_width": 16}


def play(env, steps, seed=None, actions_seed=0):
    """Everything seen in `steps` of random play, as one list of arrays."""
    rng = np.random.default_rng(actions_seed)
    obs, info = env.reset(seed=seed)
    seen = [obs, info["lives"]]
    for _ in range(steps):
        obs, rewards, terminated, truncated, info = env.step(rng.integers(4, size=env.batch_size))
        seen += [obs, rewards, terminated, truncated, info["lives"]]
    return seen


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_interface(env):
    assert isinstance(env, gym.vector.VectorEnv)
    assert env.metadata["autoreset_mode"] is gym.vector.AutoresetMode.NEXT_STEP
    assert (env.game, env.num_envs, env.batch_size) == ("breakout", 3, 3)
    assert env.protocol.name == "dopamine"
    assert env.action_meanings == ["NOOP", "FIRE", "RIGHT", "LEFT"]
    assert env.single_action_space == gym.spaces.Discrete(4)
    assert env.single_observation_space.shape == (4, 21, 16)
    obs, info = env.reset()
    assert obs in env.observation_space
    assert info["episode_start"].all()
    assert not info["life_loss"].any()
    obs, rewards, terminated, truncated, info = env.step(env.action_space.sample())
    assert obs in env.observation_space
    assert [a.dtype for a in (rewards, terminated, truncated)] == ["float32", "bool", "bool"]
    assert {key: value.shape for key, value in info.items()} == dict.fromkeys(
        (
            "env_id",
            "lives",
            "life_loss",
            "episode_start",
            "frame_number",
            "episode_frame_number",
            "episode_end",
            "episode_return",
            "episode_steps",
        ),
        (3,),
    )


def test_full_action_set():
    env = make_atari("pong", num_envs=1, protocol="machado")
    assert len(env.action_meanings) == env.single_action_space.n == 18
    env.close()


def test_results_may_be_kept(env):
    env.reset()
    obs, rewards, *_ = env.step([1, 1, 1])
    kept = obs.copy(), rewards.copy()
    for _ in range(20):
        env.step([2, 3, 1])
    assert same((obs, rewards), kept)
    obs[:] = 0  # writeable


def test_same_seed_same_stream_and_another_seed_another(fresh, env):
    first = play(fresh, 60)  # the seed given at construction
    assert same(first, play(env, 60, seed=5))
    assert same(first, play(env, 60, seed=np.int32(5)))
    assert not same(first, play(env, 60, seed=6))


def test_the_stream_does_not_depend_on_threads_or_neighbours():
    streams = []
    for num_envs, num_threads in ((3, 1), (3, 2), (1, 1)):
        env = make_atari("seaquest", num_envs=num_envs, num_threads=num_threads, seed=9, **SMALL)
        rng = np.random.default_rng(0)
        obs, _ = env.reset()
        rows = [obs[0]]
        for _ in range(60):
            obs, *_ = env.step(np.full(num_envs, rng.integers(18)))
            rows.append(obs[0])
        streams.append(rows)
        env.close()
    assert same(streams[0], streams[1])
    assert same(streams[0], streams[2])


def test_environment_i_gets_seed_plus_i():
    # Up to 29 no-ops: environment 1 at seed 4 does what environment 0 does at seed 5.
    fields = {"noop_max": 30, "num_envs": 2, "protocol": "atari100k", **SMALL}
    env = make_atari("alien", **fields)
    noops = {seed: env.reset(seed=seed)[1]["frame_number"] for seed in range(4)}
    assert [noops[seed][1] for seed in (0, 1, 2)] == [noops[seed][0] for seed in (1, 2, 3)]
    assert len({noops[seed][0] for seed in range(4)}) > 1
    env.close()


def test_without_a_seed_streams_differ_and_a_reset_goes_on():
    def noops(env, seed=None):
        return env.reset(seed=seed)[1]["episode_frame_number"].tolist()

    envs = [make_atari("alien", num_envs=2, noop_max=1000, **SMALL) for _ in range(2)]
    assert noops(envs[0]) != noops(envs[1])
    assert noops(envs[0], seed=3) == noops(envs[1], seed=3)
    later = [noops(env) for env in envs]
    assert later[0] == later[1] != noops(envs[0], seed=3)
    for env in envs:
        env.close()


def test_rewards_and_returns_are_raw():
    """A pellet is worth 10. Two episodes are cut short, so that their returns are told."""
    env = make_atari("ms_pacman", num_envs=2, seed=0, max_num_frames_per_episode=400, **SMALL)
    env.reset()
    rng = np.random.default_rng(1)
    rewards = np.zeros((100, 2))
    for t in range(100):
        _, rewards[t], _, _, info = env.step(rng.integers(9, size=2))
    assert 10 in rewards
    assert info["episode_return"].tolist() == rewards.sum(axis=0).tolist()
    env.close()


def test_truncation_is_told_apart_from_termination():
    env = make_atari("boxing", num_envs=2, seed=0, max_num_frames_per_episode=42, **SMALL)
    obs, _ = env.reset()
    for t in range(1, 12):
        obs, rewards, terminated, truncated, info = env.step([1, 2])
        # 42 frames are 10 steps of 4 and one of 2
        assert truncated.all() == truncated.any() == (t == 11)
        assert not terminated.any()
    assert info["episode_end"].all()
    assert info["episode_steps"].tolist() == [11, 11]
    obs, rewards, terminated, truncated, info = env.step([3, 3])
    assert info["episode_start"].all()
    assert not np.any([rewards, terminated, truncated])
    assert not np.any([info["episode_end"], info["episode_return"], info["episode_steps"]])
    assert not obs[:, :-1].any()  # zero-padded
    assert obs[:, -1].any()
    env.close()


def test_a_lost_life_is_no_end_and_game_over_is_no_lost_life(env):
    """Breakout has 5 lives: 4 losses before each game over, without an end or a new stack."""
    env.reset()
    losses, ends = np.zeros(3, int), 0
    for _ in range(500):
        obs, _, terminated, truncated, info = env.step([1, 1, 1])
        assert not (info["life_loss"] & (terminated | info["episode_start"])).any()
        assert all(obs[i, 0].any() for i in np.flatnonzero(info["life_loss"]))  # stacks go on
        losses += info["life_loss"]
        for i in np.flatnonzero(terminated):
            assert info["lives"][i] == 0
            assert losses[i] == 4
            losses[i] = 0
            ends += 1
        assert not truncated.any()
    assert ends >= 3


def test_games_without_lives_play_on():
    env = make_atari("pong", num_envs=1, seed=0, **SMALL)
    env.reset()
    for _ in range(200):
        _, _, terminated, _, info = env.step([0])
        assert info["lives"].tolist() == [0]
        assert not terminated.any()
        assert not info["life_loss"].any()
    env.close()


def test_episode_statistics_equal_gymnasiums(env):
    """Over several episodes of each environment."""
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(env)
    wrapped.reset(seed=1)
    rng = np.random.default_rng(2)
    ended = 0
    for _ in range(700):
        *_, info = wrapped.step(rng.integers(4, size=3))
        assert info["episode_end"].any() == ("episode" in info)
        if "episode" in info:
            np.testing.assert_array_equal(info["_episode"], info["episode_end"])
            np.testing.assert_array_equal(info["episode"]["r"], info["episode_return"])
            np.testing.assert_array_equal(info["episode"]["l"], info["episode_steps"])
            ended += info["_episode"].sum()
    assert ended >= 6


def test_send_does_not_wait_and_recv_brings_what_step_would():
    envs = [make_atari("seaquest", num_envs=5, seed=3, frameskip=60, **SMALL) for _ in range(2)]
    for env in envs:
        env.reset()
    rng = np.random.default_rng(0)
    sending_was_quicker = []
    for _ in range(5):
        actions = rng.integers(18, size=5)
        began = time.perf_counter()
        envs[0].send(actions)
        sent = time.perf_counter()
        first = envs[0].recv()
        received = time.perf_counter()
        second = envs[1].step(actions)
        assert same(first[:4], second[:4])
        sending_was_quicker.append(sent - began < received - sent)
    # 300 frames take far longer than queueing five actions, unless a busy machine stops us there.
    assert any(sending_was_quicker)
    for env in envs:
        env.close()


def test_fewer_rows_than_environments():
    """Each environment by itself does what it does alone, whatever the order of rows."""
    num_envs = 5
    env = make_atari("breakout", num_envs=num_envs, batch_size=2, seed=11, **SMALL)
    assert env.observation_space.shape[0] == env.action_space.shape[0] == 2
    obs, info = env.reset()
    streams = [[] for _ in range(num_envs)]
    for steps in range(5000):  # on a busy machine one environment may wait for hundreds
        if steps >= 200 and min(map(len, streams)) > 5:
            break
        ids = info["env_id"]
        assert len(set(ids)) == 2
        actions = [[1, 2, 3][len(streams[i]) % 3] for i in ids]
        if info["episode_start"].any():
            assert all(not obs[k, :-1].any() for k in np.flatnonzero(info["episode_start"]))
        for k, i in enumerate(ids):
            assert info["episode_start"][k] or streams[i]
            streams[i].append(obs[k])
        obs, _, _, _, info = env.step(actions)
    env.close()
    assert all(len(stream) > 5 for stream in streams)
    for i, stream in enumerate(streams):
        alone = make_atari("breakout", num_envs=1, seed=11 + i, **SMALL)
        expected = [alone.reset()[0][0]]
        expected += [alone.step([[1, 2, 3][t % 3]])[0][0] for t in range(len(stream) - 1)]
        assert same(stream, expected)
        alone.close()


def test_books_by_environment_in_asynchronous_mode():
    env = make_atari(
        "boxing", num_envs=5, batch_size=3, seed=0, max_num_frames_per_episode=40, **SMALL
    )
    _, info = env.reset()
    lengths, ended = dict.fromkeys(range(5), -1), 0
    for _ in range(120):
        for k, i in enumerate(info["env_id"]):
            lengths[i] = 0 if info["episode_start"][k] else lengths[i] + 1
            over = info["episode_end"][k]
            assert over == (lengths[i] == 10)
            if over:
                assert info["episode_steps"][k] == 10
                ended += 1
        *_, info = env.step([0, 1, 2])
    assert ended > 15
    env.close()


@pytest.mark.parametrize("in_flight", [False, True])
@pytest.mark.parametrize("batch_size", [0, 2])
def test_reset_in_the_middle_begins_anew(batch_size, in_flight):
    env = make_atari("breakout", num_envs=3, batch_size=batch_size, seed=4, **SMALL)
    starts = []
    for _ in range(2):
        obs, info = env.reset(seed=4)
        starts.append(obs[np.argsort(info["env_id"])][0])
        assert info["episode_start"].all()
        for _ in range(7):
            *_, info = env.step(np.ones(env.batch_size, np.int64))
        if in_flight:
            env.send(np.zeros(env.batch_size, np.int32))
    assert same(starts[:1], starts[1:])
    obs, info = env.reset()
    assert info["episode_start"].all()
    assert (info["episode_frame_number"] == 0).all()
    env.close()


@pytest.mark.parametrize("received", [True, False])
def test_an_interrupted_call_asks_for_a_reset_and_loses_nothing_after(env, monkeypatch, received):
    expected = play(env, 20, seed=5)
    collect = env._collect

    def interrupted():
        if received:
            collect()
        raise KeyboardInterrupt

    env.send([0, 1, 2])
    monkeypatch.setattr(env, "_collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        env.recv()
    monkeypatch.undo()
    for call in (env.recv, lambda: env.send([0, 0, 0])):
        with pytest.raises(ValueError, match=r"not allowed now, call reset\(\) first"):
            call()
    assert same(play(env, 20, seed=5), expected)


def random_play(game, steps=60, **fields):
    env = make_atari(game, num_envs=2, seed=0, **fields)
    obs, _ = env.reset()
    rng = np.random.default_rng(0)
    lit = obs.any()  # some games begin with a black screen
    for _ in range(steps):
        obs, *_ = env.step(rng.integers(len(env.action_meanings), size=2))
        assert obs.shape == (2, env.protocol.stack_num, 84, 84)
        lit |= obs.any()
    assert lit
    env.close()


@pytest.mark.parametrize("game", game_names()[::13])
def test_random_play_of_some_roms(game):
    random_play(game, protocol="rltime")


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["rltime", "machado"])
@pytest.mark.parametrize("game", game_names())
def test_random_play_of_every_rom(game, protocol):
    random_play(game, protocol=protocol)
