"""Frames, rewards, ends and lives against Gymnasium's AtariPreprocessing, exactly.

The reference: one scalar environment, the same emulator seed (so that sticky actions repeat at
the same frames), and a stack built here in the plainest way.
"""

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import AtariPreprocessing

from envs import make_atari

gym.register_envs(ale_py)
SEED = 7
RAW = {"noop_max": 0, "use_fire_reset": False}


class Reference:
    """AtariPreprocessing with zero-padded stacks and NEXT_STEP autoreset."""

    def __init__(self, game, protocol):
        env = gym.make(
            f"ALE/{game.title().replace('_', '')}-v5",
            frameskip=1,
            repeat_action_probability=protocol.repeat_action_probability,
            full_action_space=protocol.full_action_space,
            max_num_frames_per_episode=protocol.max_num_frames_per_episode,
        )
        self.env = AtariPreprocessing(
            env,
            noop_max=0,
            frame_skip=protocol.frameskip,
            screen_size=(protocol.img_width, protocol.img_height),
        )
        self.stack = np.zeros(
            (protocol.stack_num, protocol.img_height, protocol.img_width), np.uint8
        )
        self.env.unwrapped.ale.setInt("random_seed", SEED)
        self.env.unwrapped.load_game()
        self.over = True

    def push(self, frame):
        self.stack = np.concatenate([self.stack[1:], frame[None]])
        return self.stack

    def step(self, action):
        """Stack, reward, terminated, truncated, lives."""
        if self.over:
            self.over = False
            frame, info = self.env.reset()
            self.stack = np.zeros_like(self.stack)
            return self.push(frame), 0.0, False, False, info["lives"]
        frame, reward, terminated, truncated, info = self.env.step(action)
        self.over = terminated or truncated
        return self.push(frame), reward, terminated, truncated, info["lives"]


def compare(game, steps, **fields):
    """Play both for `steps`; returns how many (ends, life losses, rewards) there were."""
    env = make_atari(game, num_envs=1, seed=SEED, **{**RAW, **fields})
    reference = Reference(game, env.protocol)
    rng = np.random.default_rng(0)
    obs, info = env.reset()
    expected, _, _, _, lives = reference.step(0)
    np.testing.assert_array_equal(obs[0], expected)
    assert info["lives"][0] == lives
    seen = np.zeros(3, int)
    episode_return, length = 0.0, 0
    for _ in range(steps):
        action = int(rng.integers(len(env.action_meanings)))
        start, lives_tm1 = reference.over, lives
        expected, reward, terminated, truncated, lives = reference.step(action)
        obs, r, term, trunc, info = env.step([action])
        np.testing.assert_array_equal(obs[0], expected)
        assert (r[0], term[0], trunc[0]) == (reward, terminated, truncated)
        assert (info["lives"][0], info["episode_start"][0]) == (lives, start)
        lost = lives < lives_tm1 and not start and not terminated
        assert info["life_loss"][0] == lost
        episode_return, length = (0.0, 0) if start else (episode_return + reward, length + 1)
        assert info["episode_end"][0] == reference.over
        if reference.over:
            assert info["episode_return"][0] == episode_return
            assert info["episode_steps"][0] == length
        seen += (terminated or truncated, lost, reward != 0)
    env.close()
    return seen


@pytest.mark.parametrize("game", ["qbert", "frostbite", "amidar", "crazy_climber", "hero"])
def test_the_papers_games_without_sticky_actions(game):
    compare(game, 200, repeat_action_probability=0.0)


@pytest.mark.parametrize("game", ["alien", "seaquest", "tetris", "pitfall", "video_chess"])
def test_with_sticky_actions_also_beyond_the_papers_games(game):
    compare(game, 200, protocol="dopamine")


@pytest.mark.parametrize("game", ["ms_pacman", "space_invaders", "kung_fu_master", "lost_luggage"])
def test_with_all_18_actions(game):
    compare(game, 200, protocol="machado")


@pytest.mark.parametrize(("game", "steps"), [("breakout", 500), ("ms_pacman", 700)])
def test_over_life_losses_rewards_ends_and_new_episodes(game, steps):
    ends, losses, rewards = compare(game, steps, protocol="dopamine")
    assert ends >= 1
    assert losses >= 3
    assert rewards >= 2


@pytest.mark.parametrize(("cap", "steps", "expected"), [(402, 210, 2), (4, 21, 11), (1, 10, 5)])
def test_truncation_also_in_the_middle_of_a_frame_skip(cap, steps, expected):
    """An episode takes ceil(cap / 4) steps, and one more to begin the next.

    402 frames: ends at steps 101 and 203. 4 frames and 1 frame: at steps 1, 3, 5, ...
    """
    ends, _, _ = compare("boxing", steps, max_num_frames_per_episode=cap)
    assert ends == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"img_height": 61, "img_width": 97, "stack_num": 3},
        {"img_height": 210, "img_width": 160, "stack_num": 1},
        {"frameskip": 1, "stack_num": 2},
        {"frameskip": 3, "img_height": 1, "img_width": 5},
    ],
)
def test_other_sizes_stacks_and_frame_skips(fields):
    compare("asterix", 120, **fields)


@pytest.mark.parametrize("game", ["alien", "assault"])
def test_noops_and_fire_at_the_start(game):
    """The start equals FIRE (where the game has it) and then as many no-ops as were counted."""
    fields = {"noop_max": 30, "use_fire_reset": True, "repeat_action_probability": 0.0}
    env = make_atari(game, num_envs=2, seed=SEED, **fields)
    obs, info = env.reset()
    assert len(set(info["episode_frame_number"])) == 2
    assert info["episode_frame_number"].max() < 30
    for i, frames in enumerate(info["episode_frame_number"]):
        reference = Reference(game, env.protocol)
        reference.env.env.reset()
        fire = "FIRE" in env.action_meanings
        for t in range(frames):
            reference.env.env.step(env.action_meanings.index("FIRE") if t == 0 and fire else 0)
        screen = np.empty((210, 160), np.uint8)
        reference.env.unwrapped.ale.getScreenGrayscale(screen)
        reference.env.obs_buffer[0], reference.env.obs_buffer[1] = screen, np.zeros_like(screen)
        np.testing.assert_array_equal(obs[i, -1], reference.env._get_obs())
        assert not obs[i, :-1].any()
    env.close()
