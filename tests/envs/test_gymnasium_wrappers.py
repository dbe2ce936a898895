"""Every vector wrapper that Gymnasium has, around our environments, over whole episodes."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.wrappers import vector

from envs import make_env

EPISODE_FRAMES = 60  # 15 steps, and one that begins the next episode


def make(game="breakout", **arguments):
    if game != "memory_cue":
        arguments["max_num_frames_per_episode"] = EPISODE_FRAMES
    return make_env(game, num_envs=3, seed=4, **arguments)


def half(obs):
    return obs[..., ::2, ::2]


HALF = Box(0, 255, (4, 42, 42), np.uint8)
APPLICABLE = {
    "VectorizeTransformObservation": lambda env: vector.VectorizeTransformObservation(
        env, gym.wrappers.TransformObservation, func=half, observation_space=HALF
    ),
    "VectorizeTransformAction": lambda env: vector.VectorizeTransformAction(
        env, gym.wrappers.TransformAction, func=lambda a: a, action_space=env.single_action_space
    ),
    "VectorizeTransformReward": lambda env: vector.VectorizeTransformReward(
        env, gym.wrappers.TransformReward, func=np.sign
    ),
    "DictInfoToList": vector.DictInfoToList,
    "TransformObservation": lambda env: vector.TransformObservation(
        env, half, single_observation_space=HALF
    ),
    "FlattenObservation": vector.FlattenObservation,
    # Its images have their channels last.
    "ResizeObservation": lambda env: vector.ResizeObservation(
        vector.TransformObservation(
            env,
            lambda obs: obs.transpose(0, 2, 3, 1),
            single_observation_space=Box(0, 255, (84, 84, 4), np.uint8),
        ),
        (42, 42),
    ),
    "ReshapeObservation": lambda env: vector.ReshapeObservation(env, (2, 2, 84 * 84)),
    "RescaleObservation": lambda env: vector.RescaleObservation(env, np.float32(0), np.float32(1)),
    "DtypeObservation": lambda env: vector.DtypeObservation(env, np.float32),
    "NormalizeObservation": vector.NormalizeObservation,
    "TransformAction": lambda env: vector.TransformAction(env, lambda actions: actions),
    "TransformReward": lambda env: vector.TransformReward(env, np.sign),
    "ClipReward": lambda env: vector.ClipReward(env, -1.0, 1.0),
    "NormalizeReward": vector.NormalizeReward,
    "RecordEpisodeStatistics": vector.RecordEpisodeStatistics,
    "NumpyToTorch": lambda env: vector.NumpyToTorch(env),
}
# What is not of their kind: our observations are a stack of grey frames, our actions discrete.
REFUSED = {
    "FilterObservation": (lambda env: vector.FilterObservation(env, ["a"]), "Dict"),
    "GrayscaleObservation": (vector.GrayscaleObservation, "3 channels"),
    "ClipAction": (vector.ClipAction, "Box"),
    "RescaleAction": (lambda env: vector.RescaleAction(env, -1.0, 1.0), "Box"),
}
NEED_MORE = {"RecordVideo", "HumanRendering", "ArrayConversion", "JaxToNumpy", "JaxToTorch"}
"""Wrappers with tests of their own below, or for which a package is missing here."""


def test_no_wrapper_is_forgotten():
    assert {*APPLICABLE, *REFUSED, *NEED_MORE} == set(vector.__all__)


@pytest.mark.parametrize("name", APPLICABLE)
@pytest.mark.parametrize("game", ["breakout", "memory_cue"])
def test_a_wrapper_over_whole_episodes(name, game):
    if game == "memory_cue" and "Observation" in name and name.startswith(("V", "T", "Re")):
        pytest.skip("made for the shape of the other game")
    if name == "NumpyToTorch":
        pytest.importorskip("array_api_compat", reason="a package that Gymnasium needs for it")
    env, plain = APPLICABLE[name](make(game)), make(game)
    env.reset(seed=7)
    plain.reset(seed=7)
    rng, ended = np.random.default_rng(0), 0
    for _ in range(50):
        actions = rng.integers(plain.single_action_space.n, size=3)
        wrapped = actions
        if name == "NumpyToTorch":
            wrapped = torch.from_numpy(actions)
        obs, _, terminated, truncated, _ = env.step(wrapped)
        _, _, over, cut, info = plain.step(actions)
        assert np.asarray(terminated).tolist() == over.tolist()
        assert np.asarray(truncated).tolist() == cut.tolist()
        if name != "NumpyToTorch":
            assert np.asarray(obs) in env.observation_space
        ended += info["episode_end"].sum()
    assert ended >= 9
    env.close()


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrapper_that_cannot_apply_says_so_itself(name):
    build, word = REFUSED[name]
    with pytest.raises((AssertionError, TypeError, ValueError), match=word) as raised:
        build(make()).reset()
    assert str(raised.value)


def test_episode_statistics_are_those_of_the_environment():
    env = vector.RecordEpisodeStatistics(make())
    env.reset(seed=1)
    ended = 0
    for _ in range(50):
        *_, info = env.step([1, 2, 3])
        if info["episode_end"].any():
            np.testing.assert_array_equal(info["_episode"], info["episode_end"])
            np.testing.assert_array_equal(info["episode"]["r"], info["episode_return"])
            np.testing.assert_array_equal(info["episode"]["l"], info["episode_steps"])
            ended += info["_episode"].sum()
    assert ended == env.episode_count == 9
    env.close()


@pytest.mark.parametrize(("game", "shape"), [("breakout", (210, 160)), ("memory_cue", (36, 36))])
def test_rendering_shows_what_the_observations_show(game, shape):
    cv2 = pytest.importorskip("cv2")
    env, plain = make(game, render_mode="rgb_array"), make(game)
    assert env.render_mode == "rgb_array"
    assert env.metadata["render_fps"] == (15 if game == "breakout" else 60)
    obs, _ = env.reset()
    np.testing.assert_array_equal(obs, plain.reset()[0])
    rng = np.random.default_rng(3)
    for t in range(60):
        pictures = env.render()
        assert len(pictures) == 3
        for picture, seen in zip(pictures, obs[:, -1], strict=True):
            assert (picture.shape, picture.dtype) == ((*shape, 3), np.uint8)
            gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
            gray = cv2.resize(gray, seen.shape[::-1], interpolation=cv2.INTER_AREA)
            # The maximum over two frames is taken per colour there.
            assert np.abs(gray.astype(int) - seen).mean() < 0.2
        actions = rng.integers(plain.single_action_space.n, size=3)
        if t == 40:  # a reset in the middle goes on in step
            obs, _ = env.reset()
            np.testing.assert_array_equal(obs, plain.reset()[0])
        else:
            obs, *_ = env.step(actions)
            np.testing.assert_array_equal(obs, plain.step(actions)[0])
    env.close()
    plain.close()


def test_rendering_is_refused_where_it_was_not_asked_for():
    env = make()
    env.reset()
    with pytest.raises(ValueError, match="render_mode='rgb_array'"):
        env.render()
    with pytest.raises(ValueError, match="render_mode: 'human' is not allowed"):
        make(render_mode="human")
    with pytest.raises(ValueError, match="whole batches"):
        make(render_mode="rgb_array", batch_size=2)
    with pytest.raises(ValueError, match=r"call reset\(\) first"):
        make(render_mode="rgb_array").render()


def test_record_video(tmp_path):
    """Gymnasium hands its frames to MoviePy, which is not among our dependencies."""
    pytest.importorskip("moviepy", reason="MoviePy is not installed")
    folder = tmp_path / "videos"
    env = vector.RecordVideo(
        make(render_mode="rgb_array"), str(folder), episode_trigger=lambda number: True
    )
    env.reset(seed=0)
    for _ in range(40):
        env.step([1, 0, 1])
    env.close()
    assert len(list(folder.glob("*.mp4"))) == 3


def test_human_rendering(monkeypatch):
    pytest.importorskip("pygame", reason="pygame is not installed")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = vector.HumanRendering(make(render_mode="rgb_array"))
    env.reset(seed=0)
    for _ in range(20):
        env.step([1, 0, 1])
    env.close()


def test_rendering_wrappers_say_what_is_missing():
    for wrapper in (lambda env: vector.RecordVideo(env, "x"), vector.HumanRendering):
        with pytest.raises(ValueError, match=r"[Rr]ender"):
            wrapper(make())
