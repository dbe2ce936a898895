"""`gym:` environments against Gymnasium's own, one by one, with the same seeds and actions."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from envs import GymProtocol, GymVecEnv, env_protocol, make_env, register_env, registry


class Strip(gymnasium.Env):
    """Colour [H, W, c]; rewards are fractions; ends by the last action, is truncated elsewhere."""

    metadata = {"render_modes": []}  # noqa: RUF012
    first_action = 0

    def __init__(self, shape=(5, 7, 3), dtype=np.uint8):
        high = 1 if dtype is bool else 255
        self.observation_space = Box(0, high, shape, dtype)
        self.action_space = Discrete(4, start=self.first_action)

    def _frame(self):
        high = int(self.observation_space.high.max()) + 1
        drawn = self.np_random.integers(high, size=self.observation_space.shape)
        return drawn.astype(self.observation_space.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._frame(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps += 1
        reward = float(self.np_random.normal()) / 3
        over = action == self.action_space.start + 3 and self.steps > 2
        return self._frame(), reward, bool(over), False, {}


class StripFromTwo(Strip):
    """Its actions are 2 to 5."""

    first_action = 2


class Draws(Strip):
    """Draws in a shape of its own."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    shape: tuple[int, ...] = ()

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        return np.arange(np.prod(self.shape), dtype=np.uint8).reshape(self.shape)


class Infinite(Strip):
    """Its third reward is minus infinity."""

    def step(self, action):
        frame, reward, *ends = super().step(action)
        return frame, reward if self.steps < 3 else -np.inf, *ends


for _id, _kind, _steps, _kwargs in [
    ("Strip-v0", Strip, 6, {}),
    ("StripFromTwo-v0", StripFromTwo, 9, {}),
    ("StripBool-v0", Strip, 5, {"dtype": bool}),
    ("Draws-v0", Draws, 6, {}),
    ("Infinite-v0", Infinite, 6, {}),
]:
    gymnasium.register(_id, _kind, max_episode_steps=_steps, kwargs=_kwargs)

RGB_VIEW = (
    "minigrid.wrappers:RGBImgPartialObsWrapper(tile_size=3)",
    "minigrid.wrappers:ImgObsWrapper",
)
CODES = ("minigrid.wrappers:ImgObsWrapper",)


def alone(game, seed, actions, protocol, channels_first):
    """Rows of one environment stepped by hand, reset where an episode has ended."""
    for wrapper in protocol.wrappers:
        pytest.importorskip(wrapper.partition(":")[0])
    kwargs = (
        {}
        if protocol.max_episode_steps is None
        else {"max_episode_steps": protocol.max_episode_steps}
    )
    env = gymnasium.make(game.removeprefix("gym:"), disable_env_checker=True, **kwargs)
    if protocol.wrappers:
        from minigrid import wrappers

        if len(protocol.wrappers) == 2:
            env = wrappers.RGBImgPartialObsWrapper(env, tile_size=3)
        env = wrappers.ImgObsWrapper(env)

    def frame(image):
        image = image.astype(np.uint8) * (255 if image.dtype == bool else 1)
        return image if channels_first else np.moveaxis(image, -1, 0)

    image, _ = env.reset(seed=seed)
    frames, total, steps, over = [frame(image)], 0.0, 0, False
    yield stacked(frames, protocol.stack_num), 0.0, False, False, (0.0, 0)
    for action in actions:
        if over:
            image, _ = env.reset()
            frames, total, steps, over = [frame(image)], 0.0, 0, False
            yield stacked(frames, protocol.stack_num), 0.0, False, False, (0.0, 0)
            continue
        image, reward, terminated, truncated, _ = env.step(env.action_space.start + action)
        frames.append(frame(image))
        total, steps, over = total + reward, steps + 1, terminated or truncated
        ended = (total, steps) if over else (0.0, 0)
        yield stacked(frames, protocol.stack_num), reward, terminated, truncated, ended
    env.close()


def stacked(frames, count):
    blank = [np.zeros_like(frames[0])] * (count - 1)
    return np.concatenate([*blank, *frames][-count:])


def compare(game, protocol, steps=120, num_envs=3, channels_first=False):
    """Every number of `steps` random steps; how many episodes were terminated and truncated."""
    env = make_env(game, num_envs=num_envs, seed=11, protocol=protocol)
    count = len(env.action_meanings)
    actions = np.random.default_rng(0).integers(count, size=(steps, num_envs))
    oracles = [
        alone(game, 11 + i, actions[:, i], protocol, channels_first) for i in range(num_envs)
    ]
    obs, info = env.reset()
    reward, terminated, truncated = np.zeros(num_envs), *np.zeros((2, num_envs), bool)
    ends, begun = np.zeros(2, int), np.ones(num_envs, bool)
    for t in range(steps + 1):
        for i, oracle in enumerate(oracles):
            frames, *rest, (total, length) = next(oracle)
            np.testing.assert_array_equal(obs[i], frames)
            assert [np.float32(rest[0]), *rest[1:]] == [reward[i], terminated[i], truncated[i]]
            assert info["episode_return"][i] == pytest.approx(total, abs=1e-12)
            assert info["episode_steps"][i] == length
        assert info["episode_start"].tolist() == begun.tolist()
        assert info["episode_end"].tolist() == np.logical_or(terminated, truncated).tolist()
        assert not np.any([info["lives"], info["life_loss"]])
        begun = info["episode_end"].copy()
        ends += [np.sum(terminated), np.sum(truncated)]
        if t < steps:
            obs, reward, terminated, truncated, info = env.step(actions[t])
    env.close()
    return ends.tolist()


@pytest.mark.parametrize(
    ("game", "stack_num"), [("gym:Strip-v0", 1), ("gym:Strip-v0", 3), ("gym:StripFromTwo-v0", 2)]
)
def test_colour_fractions_and_both_kinds_of_ends(game, stack_num):
    terminated, truncated = compare(game, GymProtocol(stack_num=stack_num))
    assert terminated > 5
    assert truncated > 5


def test_booleans_become_black_and_white():
    assert min(compare("gym:StripBool-v0", GymProtocol())) > 5


def test_frames_are_counted_without_resets():
    env = make_env("gym:Strip-v0", num_envs=1, seed=1, max_episode_steps=3)
    infos = [env.reset()[1], *(env.step([0])[-1] for _ in range(6)), env.reset()[1]]
    seen = [(i["frame_number"].item(), i["episode_frame_number"].item()) for i in infos]
    # the fourth step begins an episode, with a frame that no action led to
    assert seen == [(0, 0), (1, 1), (2, 2), (3, 3), (3, 0), (4, 1), (5, 2), (0, 0)]


@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7)])
def test_grey_images_and_channels_first(shape):
    protocol = GymProtocol(kwargs=f"shape={shape}", stack_num=2)
    env = make_env("gym:Strip-v0", num_envs=2, seed=0, protocol=protocol)
    spec = env.step_spec
    assert (spec.channels, spec.height, spec.width) == ((1, 5, 7) if len(shape) == 2 else shape)
    obs, _ = env.reset()
    one = gymnasium.make("Strip-v0", shape=shape)
    image, _ = one.reset(seed=1)
    np.testing.assert_array_equal(spec.newest(obs)[1], image)
    assert not obs[:, : spec.channels].any()  # nothing before the first frame


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_atari_through_gymnasium_in_colour(vectorization):
    protocol = GymProtocol(stack_num=2, max_episode_steps=9, vectorization=vectorization)
    assert compare("gym:ALE/Breakout-v5", protocol, steps=22, num_envs=2) == [0, 4]


def test_minatar():
    pytest.importorskip("minatar", reason="needs the extra gymnasium (MinAtar)")
    terminated, truncated = compare("gym:MinAtar/Breakout-v1", GymProtocol(), steps=90, num_envs=2)
    assert terminated > 1
    assert truncated == 0


@pytest.mark.parametrize(("wrappers", "vectorization"), [(CODES, "sync"), (RGB_VIEW, "async")])
def test_minigrid_with_its_image_wrappers(wrappers, vectorization):
    pytest.importorskip("minigrid", reason="needs the extra gymnasium (MiniGrid)")
    protocol = GymProtocol(wrappers=wrappers, max_episode_steps=30, vectorization=vectorization)
    terminated, truncated = compare("gym:MiniGrid-Empty-5x5-v0", protocol, steps=150)
    assert terminated + truncated > 8


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_reset_after_an_interruption_begins_anew(vectorization, monkeypatch):
    game = "gym:ALE/Pong-v5"
    env = make_env(game, num_envs=2, seed=3, vectorization=vectorization)
    first, _ = env.reset()
    env.send([2, 3])
    collect = env._collect

    def interrupted():
        collect()
        raise KeyboardInterrupt

    monkeypatch.setattr(env, "_collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        env.recv()
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"call reset\(\) first"):
        env.send([0, 0])
    again, info = env.reset(seed=3)
    np.testing.assert_array_equal(first, again)
    assert info["episode_start"].all()
    env.send([2, 3])
    np.testing.assert_array_equal(env.reset(seed=3)[0], first)  # with steps under way
    env.close()


class Shows(Strip):
    """With any spaces."""

    def __init__(self, obs, actions):
        self.observation_space, self.action_space = obs, actions


IMAGE = Box(0, 255, (4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("obs", "actions", "message"),
    [
        (Box(0, 255, (4,), np.uint8), Discrete(2), r"observations Box \(4,\), uint8 .* one image"),
        (Box(0, 1, (4, 4, 3), np.float32), Discrete(2), "float32 are not allowed: one image"),
        (
            Box(0, 255, (2, 4, 4, 3), np.uint8),
            Discrete(2),
            r"\(2, 4, 4, 3\), uint8 are not allowed",
        ),
        (Dict(image=IMAGE, mission=Discrete(3)), Discrete(2), "Dict of image, mission .*wrappers"),
        (
            IMAGE,
            MultiDiscrete([2, 2]),
            "actions MultiDiscrete.* not allowed: Discrete, at most 256",
        ),
        (IMAGE, Discrete(257), r"actions Discrete\(257\) are not allowed"),
    ],
)
def test_wrong_spaces_are_refused_in_one_line(obs, actions, message):
    gymnasium.register("Shows-v0", lambda: Shows(obs, actions))
    try:
        with pytest.raises(ValueError, match=f"^gym:Shows-v0: .*{message}") as error:
            make_env("gym:Shows-v0")
    finally:
        del gymnasium.registry["Shows-v0"]
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("game", "fields", "message"),
    [
        ("gym:", {}, "game: 'gym:' is not allowed, must be gym:ID"),
        ("gim:Strip-v0", {}, "prefix 'gim' is not registered; did you mean 'gym'"),
        ("gym:Stripe-v0", {}, "Did you mean: `Strip`.*gym:PACKAGE:ID imports"),
        ("gym:no_such_package:X-v0", {}, "No module named 'no_such_package'"),
        ("gym:Strip-v0", {"kwargs": "size=1"}, "unexpected keyword argument 'size'"),
        ("gym:Strip-v0", {"kwargs": "1 + 1"}, "kwargs: '1 . 1' is not allowed"),
        ("gym:Strip-v0", {"kwargs": "shape=print(1)"}, "kwargs: .* is not allowed"),
        ("gym:Strip-v0", {"kwargs": "**{}"}, "kwargs: .* is not allowed"),
        ("gym:Strip-v0", {"kwargs": "a=1)(b=2"}, "kwargs: .* is not allowed"),
        ("gym:Strip-v0", {"kwargs": "a=1, a=2"}, "kwargs: .* is not allowed"),
        ("gym:Strip-v0", {"wrappers": ["..m:C"]}, "'..m:C' cannot be imported: TypeError"),
        ("gym:Strip-v0", {"wrappers": ["os:system"]}, "must be a gymnasium.Wrapper"),
        ("gym:Strip-v0", {"wrappers": ["nowhere:X"]}, "'nowhere:X' is not found"),
        ("gym:Strip-v0", {"wrappers": ["nothing"]}, "must be 'module:Class'"),
        ("gym:Strip-v0", {"noop_max": 3}, "'noop_max' is unknown"),
        ("gym:Strip-v0", {"stack_num": 17}, "stack_num: 17 is not allowed"),
        ("gym:Strip-v0", {"max_episode_steps": 0}, "max_episode_steps: 0 is not allowed"),
        ("gym:Strip-v0", {"vectorization": "asynch"}, "did you mean 'async'"),
        ("gym:Strip-v0", {"batch_size": 2}, "batch_size: 2 is not allowed"),
        ("gym:Strip-v0", {"num_envs": 0}, "num_envs: 0 is not allowed"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(game, fields, message):
    with pytest.raises(ValueError, match=message) as error:
        make_env(game, **fields)
    assert len(str(error.value).splitlines()) == 1


def test_options_of_another_kind_of_game_are_refused():
    assert env_protocol("gym:Strip-v0", {"protocol": "rltime", "noop_max": None}) == GymProtocol()
    with pytest.raises(ValueError, match="noop_max: 3 is not allowed: no option of a gym: env"):
        env_protocol("gym:Strip-v0", {"noop_max": 3})
    with pytest.raises(
        ValueError, match=r"wrappers: .* is not allowed: no option of an Atari game"
    ):
        env_protocol("pong", {"wrappers": ("a:B",)})


def test_render_shows_the_newest_frame_where_nothing_else_is_drawn():
    env = make_env("gym:Strip-v0", num_envs=2, seed=0, stack_num=2, render_mode="rgb_array")
    obs, _ = env.reset()
    np.testing.assert_array_equal(env.render()[1], obs[1, 3:].transpose(1, 2, 0))
    assert not env.draws


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (4, 6, 4), (4, 6, 2)])
def test_pictures_are_rgb_however_they_are_drawn(shape, monkeypatch):
    monkeypatch.setattr(Draws, "shape", shape)
    env = make_env("gym:Draws-v0", num_envs=2, seed=0, render_mode="rgb_array")
    drawn = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    if shape[-1] == 2:
        with pytest.raises(ValueError, match=r"renders pictures of shape \(4, 6, 2\)"):
            env.reset()
        return
    env.reset()
    expected = drawn[..., None].repeat(3, -1) if drawn.ndim == 2 else drawn[..., :3]
    np.testing.assert_array_equal(env.render()[1], expected)


def test_a_reward_that_is_not_finite_is_refused():
    env = make_env("gym:Infinite-v0", num_envs=2, seed=0)
    env.reset()
    for _ in range(2):
        env.step([0, 0])
    with pytest.raises(
        ValueError, match=r"gym:Infinite-v0: rewards \[-inf, -inf\] are not allowed"
    ):
        env.step([0, 0])


@pytest.mark.filterwarnings("ignore:.*o render fps")  # of the one made by hand
@pytest.mark.filterwarnings("ignore:.*RGB-array rendering")
def test_render_asks_the_environment_where_it_draws():
    pytest.importorskip("minatar", reason="needs the extra gymnasium (MinAtar)")
    env = make_env("gym:MinAtar/Breakout-v1", num_envs=2, seed=0, render_mode="rgb_array")
    env.reset()
    one = gymnasium.make("MinAtar/Breakout-v1", render_mode="rgb_array")
    one.reset(seed=1)
    expected = np.rint(255 * one.render()).astype(np.uint8)
    np.testing.assert_array_equal(env.render()[1], expected)


def test_what_a_score_is_told_with():
    env = make_env("gym:Strip-v0", num_envs=1, kwargs="shape=(4, 4, 3)")
    assert isinstance(env, GymVecEnv)
    assert env.full_id == "gymnasium/Strip-v0"
    assert env.versions == {"packages": f"gymnasium {gymnasium.__version__}"}


def test_a_maker_of_ones_own(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @register_env("mine", protocol=lambda _: GymProtocol(), scores=lambda _: (1.0, 3.0))
    def make_mine(game, **more):
        return make_env(f"gym:{game.removeprefix('mine:')}-v0", **more)

    assert make_env("mine:Strip", num_envs=2).game == "gym:Strip-v0"
    assert registry.human_normalized_score("mine:Strip", 2.0) == 0.5
    with pytest.raises(ValueError, match="'mine' is already registered"):
        register_env("mine", protocol=lambda _: GymProtocol())
    with pytest.raises(ValueError, match="'pong' is not allowed: an Atari game"):
        register_env("pong", protocol=lambda _: GymProtocol())
    with pytest.raises(ValueError, match=r"'min' is unknown.*; did you mean 'mine'?.*package"):
        make_env("min")
