"""Stable-Baselines3 takes part for real: its evaluation runs our agent, its DQN our encoders."""

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage

import agents
from agents.config import make_config
from agents.playing.policy import Agent
from agents.saving.checkpoint import build_network
from agents.sb3 import EncoderExtractor
from rl_nfm.encoders import FeedForwardEncoder, encoder_names, make_encoder

SMALL = {
    "nature": {"width": 4},
    "impala": {"width": 4},
    "hadamax": {"width": 4},
    "resnet": {"depth": 10, "width": 4},
    "nfm": {"depth": 10, "width": 4},
}


def sb3_env(num_envs=1):
    import ale_py

    gymnasium.register_envs(ale_py)

    def make():
        return AtariWrapper(gymnasium.make("MsPacmanNoFrameskip-v4", max_episode_steps=200))

    return VecFrameStack(DummyVecEnv([make] * num_envs), 4)


def agent():
    values = {"encoder": "nature", "nature": {"width": 4}, "head": {"hidden_size": 16}}
    values["learner"] = {"num_action_quantiles": 4, "precision": "fp32"}
    torch.manual_seed(0)
    config = make_config(values)
    return Agent(build_network(config, (4, 84, 84), 9), config, (4, 84, 84))


@pytest.mark.parametrize("transposed", [False, True])
def test_evaluate_policy_runs_our_agent(transposed):
    env = sb3_env(num_envs=2)
    if transposed:
        env = VecTransposeImage(env)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        returns, lengths = evaluate_policy(
            agent(), env, n_eval_episodes=2, return_episode_rewards=True
        )
    assert len(returns) == 2
    assert all(length > 10 for length in lengths)
    env.close()


def test_predict_takes_both_channel_orders_and_any_batch_size():
    policy = agent()
    first = np.random.default_rng(0).integers(0, 255, (3, 4, 84, 84), dtype=np.uint8)
    torch.manual_seed(1)
    a, state = policy.predict(first)
    torch.manual_seed(1)
    b, _ = policy.predict(first.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(a, b)
    assert a.shape == (3,)
    assert state is None
    assert policy.predict(first[0])[0].shape == ()
    with pytest.raises(ValueError, match="observation: float64"):
        policy.predict(first / 255.0)
    with pytest.raises(ValueError, match="is not allowed"):
        policy.predict(first[:, :3])
    with pytest.raises(ValueError, match="observation: an empty batch is not allowed"):
        policy.predict(first[:0])


def test_predict_names_a_state_or_starts_of_another_batch():
    policy = agents.load("zoo:memory_cue-lstm")
    obs = np.zeros((3, *policy.obs_shape), np.uint8)
    _, state = policy.predict(obs)
    policy.predict(obs, state, np.zeros(3, bool))
    with pytest.raises(ValueError, match=r"state: of 3 is not allowed, the batch is of 2"):
        policy.predict(obs[:2], state)
    with pytest.raises(ValueError, match=r"episode_start: of 2 is not allowed, the batch is of 3"):
        policy.predict(obs, state, np.zeros(2, bool))


@pytest.mark.parametrize("name", ["zoo:memory_cue-lstm", None])
@pytest.mark.parametrize("count", [0, 1])
def test_predict_refuses_what_is_no_state_of_its_own(name, count):
    policy = agent() if name is None else agents.load(name)
    obs = np.zeros((3, *policy.obs_shape), np.uint8)
    with pytest.raises(ValueError, match=f"state: one of {count} arrays is not allowed"):
        policy.predict(obs, (np.zeros(3),) * count)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"which": "latest"}, "which: 'latest' is not allowed: must be 'last' or 'best'"),
        ({"device": "gpu"}, "device: 'gpu' is not allowed: must be auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:x"}, "device: 'cuda:x' is not allowed"),
        ({"device": "cuda:99"}, "device: 'cuda:99' is not available on this machine"),
        ({"device": None}, "device: None is not allowed"),
    ],
)
def test_load_names_a_wrong_option(options, message):
    with pytest.raises(ValueError, match=message):
        agents.load("zoo:memory_cue-lstm", **options)


def test_spectral_norm_is_refused():
    """SB3 copies parameters and running_* buffers: its target would have the first vectors."""
    space = spaces.Box(0, 255, (4, 36, 36), np.uint8)
    EncoderExtractor(space, "impala", width=4)
    with pytest.raises(ValueError, match="spectral_norm: not allowed"):
        EncoderExtractor(space, "impala", width=4, spectral_norm=True)


@pytest.mark.parametrize("name", sorted(set(SMALL) & set(encoder_names())))
def test_every_feedforward_encoder_trains_inside_sb3(name):
    options = SMALL[name]
    env = sb3_env()
    model = DQN(
        "CnnPolicy",
        env,
        buffer_size=200,
        learning_starts=8,
        batch_size=4,
        policy_kwargs={
            "features_extractor_class": EncoderExtractor,
            "features_extractor_kwargs": {"encoder": name, **options},
            "net_arch": [8],
        },
    )
    before = [p.clone() for p in model.q_net.features_extractor.parameters()]
    model.learn(24)
    after = list(model.q_net.features_extractor.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    env.close()


def test_pixels_are_scaled_once():
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    torch.manual_seed(0)
    extractor = EncoderExtractor(space, "nature", width=4)
    torch.manual_seed(0)
    plain = make_encoder("nature", width=4)
    assert isinstance(plain, FeedForwardEncoder)
    frames = torch.randint(0, 255, (2, 4, 84, 84), dtype=torch.uint8)
    ours, _ = plain(frames[None])
    torch.testing.assert_close(extractor(frames.float() / 255), ours[0])


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (spaces.Box(0, 1, (4,)), {}, "uint8 images from 0 to 255"),
        (spaces.Discrete(3), {}, "uint8 images"),
        (spaces.Box(0, 255, (4, 84, 84), np.float32), {}, r"Box\(0 to 255, .*float32\)"),
        (spaces.Box(0, 1, (84, 84, 4), np.float32), {}, "normalized_image=True"),
        (spaces.Box(0, 200, (4, 84, 84), np.uint8), {}, "uint8 images from 0 to 255"),
        (spaces.Box(0, 255, (84, 84, 4), np.uint8), {}, "VecTransposeImage"),
        (spaces.Box(0, 1, (84, 84, 4), np.float32), {"normalized_image": True}, "VecTransp"),
        (spaces.Box(0, 255, (4, 84, 84), np.float32), {"normalized_image": True}, "from 0 to 1"),
        (spaces.Box(0, 255, (4, 84, 84), np.uint8), {"normalized_image": True}, "from 0 to 1"),
    ],
)
def test_what_would_arrive_unscaled_or_turned_is_refused(space, options, message):
    with pytest.raises(ValueError, match=message) as error:
        EncoderExtractor(space, "nature", width=4, **options)
    assert "\n" not in str(error.value)


class Floats(gymnasium.Env):
    """Images of floats, channels first: SB3 scales and turns nothing."""

    observation_space = spaces.Box(0.0, 1.0, (3, 40, 40), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def test_floats_in_the_unit_interval_are_taken_where_told():
    seen = []
    model = DQN(
        "CnnPolicy",
        Floats(),
        buffer_size=50,
        learning_starts=4,
        batch_size=4,
        policy_kwargs={
            "normalize_images": False,
            "features_extractor_class": EncoderExtractor,
            "features_extractor_kwargs": {
                "encoder": "nature",
                "width": 4,
                "normalized_image": True,
            },
            "net_arch": [8],
        },
    )
    encoder = model.q_net.features_extractor.encoder
    embed = encoder.embed
    encoder.embed = lambda pixels: seen.append(pixels) or embed(pixels)
    model.learn(12)
    assert seen
    assert all(0.5 < float(pixels.max()) <= 1.0 for pixels in seen)
