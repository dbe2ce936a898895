"""Whatever would crash or hang ale-py, or be taken silently there, is a ValueError here."""

import copy
import dataclasses
import os
import pickle
import threading
import time

import numpy as np
import pytest
from gymnasium.spaces import Box

from envs import make_atari, make_env, registry

SMALL = {"img_height": 21, "img_width": 16}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs: 0 is not allowed, must be an integer from 1 to 1024"),
        ({"num_envs": -1}, "num_envs: -1"),
        ({"num_envs": 10**6}, "num_envs: 1000000"),
        ({"num_envs": 2.0}, "num_envs: 2.0"),
        ({"batch_size": 9}, "batch_size: 9 is not allowed, must be an integer from 0 to 8"),
        ({"batch_size": -1}, "batch_size: -1"),
        ({"num_threads": 10000}, "num_threads: 10000"),
        ({"num_threads": -1}, "num_threads: -1"),
        ({"seed": -1}, "seed: -1 is not allowed, must be an integer from 0 to 2147483640"),
        ({"seed": 2**31 - 7}, "seed: 2147483641"),
        ({"seed": 2**40}, "seed: "),
        ({"seed": 1.5}, "seed: 1.5"),
        ({"seed": True}, "seed: True"),
        ({"seed": [1, 2]}, "seed: "),
        ({"protocol": "dopamin"}, "did you mean 'dopamine'"),
        ({"frame_skip": 4}, "did you mean 'frameskip'"),
        ({"img_height": 0}, "img_height: 0"),
        ({"stack_num": 0}, "stack_num: 0"),
        ({"noop_max": -1}, "noop_max: -1"),
        ({"repeat_action_probability": 2.0}, "repeat_action_probability: 2.0"),
    ],
)
def test_bad_arguments_of_make(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        make_atari("pong", **arguments)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("game", "message"),
    [
        ("MsPacmn", "did you mean 'ms_pacman'"),
        ("warlords", "single-player"),
        ("memory_cue", "`rl-nfm games` lists all"),
    ],
)
def test_bad_games(game, message):
    with pytest.raises(ValueError, match=message):
        make_atari(game)


@pytest.mark.parametrize("seed", [-1, 2**31 - 2, 2**40, "1", np.float64(1), np.array([1, 2, 3])])
def test_bad_seed_of_reset_and_the_largest_good_one(env, seed):
    with pytest.raises(ValueError, match=r"seed: .* is not allowed, must be an integer from 0 to"):
        env.reset(seed=seed)
    env.reset(seed=2**31 - 3)  # environment 2 gets 2**31 - 1


@pytest.mark.parametrize(
    "actions",
    [
        [0, 1],
        [0, 1, 2, 3],
        [[0], [1], [2]],
        1,
        [0, 1, 4],
        [0, 1, -1],
        [0.0, 1.0, 2.0],
        [True, False, True],
        ["0", "1", "2"],
        np.array([0, 1, 255], np.uint8),
        np.array([0, 1, 2**63], np.uint64),
        None,
    ],
)
def test_bad_actions_are_refused_and_nothing_is_lost(env, actions, monkeypatch):
    env.reset()
    monkeypatch.setattr(env, "_dispatch", lambda _: pytest.fail("would hang for ever"))
    with pytest.raises(ValueError, match=r"actions: .*must be 3 integers from 0 to 3"):
        env.step(actions)
    monkeypatch.undo()
    env.step([0, 1, 2])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64, np.uint64, list])
def test_any_integers_are_actions(env, dtype):
    env.reset()
    env.step([3, 0, 2] if dtype is list else np.array([3, 0, 2], dtype))


def test_calls_out_of_turn(fresh):
    env = fresh
    with pytest.raises(ValueError, match=r"send: not allowed now, call reset\(\) first"):
        env.step([0, 0, 0])
    with pytest.raises(ValueError, match=r"recv: not allowed now, call reset\(\) first"):
        env.recv()
    env.reset()
    with pytest.raises(ValueError, match=r"recv: not allowed now, call send\(\) first"):
        env.recv()
    env.send([0, 0, 0])
    for call in (env.send, env.step):
        with pytest.raises(ValueError, match=r"send: not allowed now, call recv\(\) first"):
            call([0, 0, 0])
    env.recv()
    with pytest.raises(ValueError, match=r"recv: not allowed now, call send\(\) first"):
        env.recv()


def test_a_partial_reset_is_refused(env):
    env.reset()
    with pytest.raises(ValueError, match=r"options: .*reset_mask.* not allowed"):
        env.reset(options={"reset_mask": np.array([True, False, False])})
    env.reset(options={})


@pytest.mark.parametrize("batch_size", [0, 2])
@pytest.mark.parametrize("state", ["new", "reset", "sent"])
def test_close_ends_the_threads_in_every_state(batch_size, state):
    def threads():
        return len(os.listdir("/proc/self/task"))

    if not os.path.isdir("/proc/self/task"):
        pytest.skip("counts threads through /proc")
    before = threads()
    env = make_atari("pong", num_envs=5, num_threads=2, batch_size=batch_size, **SMALL)
    assert threads() == before + 2
    if state != "new":
        env.reset()
    if state == "sent":
        env.send(np.zeros(env.batch_size, np.int64))
    env.close()
    deadline = time.monotonic() + 10  # a thread that has been joined is listed for a moment more
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == before
    env.close()  # twice is fine
    for call in (env.reset, env.recv, lambda: env.step([0] * env.batch_size)):
        with pytest.raises(ValueError, match="env: closed"):
            call()


def test_a_forked_child_is_refused_and_can_end(env):
    env.reset()
    env.send([0, 0, 0])
    child = os.fork()
    if child == 0:
        refused = 0
        for call in (env.recv, env.reset, lambda: env.send([0, 0, 0])):
            try:
                call()
            except ValueError as error:
                refused += "another process" in str(error)
        env.close()
        os._exit(refused)
    watchdog = threading.Timer(20, os.kill, (child, 9))
    watchdog.start()
    _, status = os.waitpid(child, 0)
    watchdog.cancel()
    assert os.waitstatus_to_exitcode(status) == 3
    env.recv()


@pytest.mark.parametrize("copier", [pickle.dumps, copy.copy, copy.deepcopy])
def test_copies_are_refused(env, copier):
    with pytest.raises(TypeError, match="AtariVecEnv cannot be copied or pickled"):
        copier(env)


@pytest.mark.parametrize(
    "space",
    [
        Box(0, 255, (3, 84, 84), np.uint8),  # colour channels in the place of stacked frames
        Box(0, 255, (4, 84, 84, 3), np.uint8),
        Box(0, 1, (4, 84, 84), np.float32),
    ],
    ids=["channels", "stacked", "floats"],
)
def test_observations_that_the_spec_does_not_tell_are_refused(space, monkeypatch):
    """Stored as they were, they would be three frames of a blue channel."""

    def painted(game, **options):
        env = make_atari(game, **options)
        env.single_observation_space = space
        return env

    entry = dataclasses.replace(registry.env_entry("pong"), make=painted)
    monkeypatch.setitem(registry._REGISTRY, "atari", entry)
    with pytest.raises(ValueError, match=r"pong: observations of shape .* grey frames in a stack"):
        make_env("pong", num_envs=1)
