"""The books of GameVecEnv against a script, with what `info` must say worked out by hand."""

import numpy as np
import pytest

from envs import PROTOCOLS, GameVecEnv, StepSpec


class Scripted(GameVecEnv):
    """Plays given rows: (env_id, lives, reward, terminated, truncated), one list per batch."""

    def __init__(self, script, *, num_envs, batch_size):
        super().__init__(
            "scripted", PROTOCOLS["rltime"], num_envs=num_envs, batch_size=batch_size, seed=None
        )
        self.script = list(script)
        self._open(["NOOP", "FIRE"], StepSpec(height=84, width=84))

    def _restart(self, seed, turn):
        obs, _, _, _, info = self._collect()
        return obs, info

    def _dispatch(self, actions):
        pass

    def _collect(self):
        ids, lives, rewards, terminated, truncated = np.array(self.script.pop(0)).T
        info = {"env_id": ids.astype(np.int32), "lives": lives.astype(np.int32)}
        obs = np.zeros((len(ids), 1, 84, 84), np.uint8)
        return obs, rewards.astype(np.int32), terminated > 0, truncated > 0, info


def told(env):
    """What one more step tells, as plain lists."""
    _, _, _, _, info = env.step([0] * env.batch_size)
    lists = {key: info[key].tolist() for key in ("episode_start", "life_loss")}
    if info["episode_end"].any():
        lists |= {"r": info["episode_return"].tolist(), "l": info["episode_steps"].tolist()}
    else:
        assert not np.any([info["episode_return"], info["episode_steps"]])
    return lists


def test_one_environment_through_every_kind_of_row():
    script = [
        [(0, 3, 0, 0, 0)],  # reset
        [(0, 3, 5, 0, 0)],
        [(0, 2, 7, 0, 0)],  # a life is lost
        [(0, 4, 0, 0, 0)],  # two are won
        [(0, 4, -3, 0, 1)],  # truncated: 5 + 7 + 0 - 3 = 9 in 4 steps
        [(0, 3, 0, 0, 0)],  # a new episode, with fewer lives than the last had: none was lost
        [(0, 2, 1, 0, 1)],  # a life is lost, and truncated at once: 1 in 1 step
        [(0, 3, 0, 0, 0)],
        [(0, 0, 2, 1, 0)],  # game over, which is no lost life: 2 in 1 step
        [(0, 3, 0, 0, 0)],
        [(0, 2, 0, 0, 0)],
    ]
    env = Scripted(script, num_envs=1, batch_size=0)
    _, info = env.reset()
    assert (info["episode_start"].tolist(), info["life_loss"].tolist()) == ([True], [False])
    no, yes = [False], [True]
    assert [told(env) for _ in script[1:]] == [
        {"episode_start": no, "life_loss": no},
        {"episode_start": no, "life_loss": yes},
        {"episode_start": no, "life_loss": no},
        {"episode_start": no, "life_loss": no, "r": [9.0], "l": [4]},
        {"episode_start": yes, "life_loss": no},
        {"episode_start": no, "life_loss": yes, "r": [1.0], "l": [1]},
        {"episode_start": yes, "life_loss": no},
        {"episode_start": no, "life_loss": no, "r": [2.0], "l": [1]},
        {"episode_start": yes, "life_loss": no},
        {"episode_start": no, "life_loss": yes},
    ]


def test_books_follow_the_environment_not_the_row():
    script = [
        [(2, 5, 0, 0, 0), (0, 1, 0, 0, 0)],  # reset brings two of three environments
        [(1, 3, 0, 0, 0), (2, 4, 10, 0, 0)],  # 1 begins only now; 2 loses a life
        [(2, 4, 20, 0, 0), (0, 1, 1, 0, 0)],
        [(0, 0, 2, 1, 0), (1, 3, 100, 0, 0)],  # 0 ends: 1 + 2 in 2 steps
        [(1, 2, 0, 0, 0), (0, 1, 0, 0, 0)],  # 1 loses a life; 0 begins again
        [(0, 0, 4, 1, 0), (2, 4, 30, 0, 1)],  # 0 ends: 4 in 1; 2 is cut: 10 + 20 + 30 in 3
    ]
    env = Scripted(script, num_envs=3, batch_size=2)
    env.reset()
    assert [told(env) for _ in script[1:]] == [
        {"episode_start": [True, False], "life_loss": [False, True]},
        {"episode_start": [False, False], "life_loss": [False, False]},
        {"episode_start": [False, False], "life_loss": [False, False], "r": [3.0, 0], "l": [2, 0]},
        {"episode_start": [False, True], "life_loss": [True, False]},
        {"episode_start": [False, False], "life_loss": [False, False], "r": [4.0, 60], "l": [1, 3]},
    ]


def test_a_reset_forgets_open_episodes():
    rows = [(0, 3, 0, 0, 0)], [(0, 2, 50, 0, 0)], [(0, 1, 0, 0, 0)], [(0, 1, 8, 1, 0)]
    env = Scripted(rows, num_envs=1, batch_size=0)
    env.reset()
    told(env)
    _, info = env.reset()
    assert (info["episode_start"].tolist(), info["life_loss"].tolist()) == ([True], [False])
    assert told(env)["r"] == [8.0]


@pytest.mark.parametrize("num_envs", [1, 1024])
def test_bounds_of_num_envs_are_inclusive(num_envs):
    env = Scripted([], num_envs=num_envs, batch_size=num_envs)
    assert env.action_space.shape == (num_envs,)
