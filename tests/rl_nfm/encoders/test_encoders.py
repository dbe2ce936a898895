"""Every registered encoder keeps the contract of `rl_nfm.encoders.base`."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from rl_nfm.encoders import Encoder, encoder_entry, encoder_names, make_encoder
from rl_nfm.encoders.cost import encoder_macs
from rl_nfm.nfm import NFM_PRESETS

SMALL: dict[str, dict[str, Any]] = {
    "nature": {"width": 8},
    "impala": {"width": 4},
    "hadamax": {"width": 4},
    "resnet": {"width": 8, "depth": 10},
    "nfm": {"width": 8, "depth": 10, "nfm": {"key_size": 4, "value_size": 4}},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "impala-max6-spectral": {"width": 4, "pool": "max6", "spectral_norm": True},
    "impala-gap-layer": {"width": 4, "pool": "gap", "layer_norm": True},
    "impala-all": {"width": 4, "pool": "max6", "spectral_norm": True, "layer_norm": True},
}
"""Options of registered encoders that change what they compute."""
NUM_ACTIONS = 5


def build(name: str, obs_shape: tuple[int, int, int] = (4, 84, 84)) -> Encoder:
    torch.manual_seed(0)
    options = VARIANTS.get(name) or SMALL.get(name, {})
    encoder = make_encoder(
        name.partition("-")[0], obs_shape=obs_shape, num_actions=NUM_ACTIONS, **options
    )
    with torch.no_grad():  # away from special starting points such as gamma = 0
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder.eval()


def make_inputs(steps: int, batch: int, obs_shape: tuple[int, int, int]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    obs = torch.randint(0, 256, (steps, batch, *obs_shape), dtype=torch.uint8)
    return obs, torch.rand(steps, batch) < 0.3


def make_extras(steps: int, batch: int) -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {
        "last_action": torch.randint(0, NUM_ACTIONS, (steps, batch)),
        "last_reward": torch.randn(steps, batch),
        "episode_step": torch.randint(0, 99, (steps, batch)),
    }


def run(encoder: Encoder, obs: Tensor, reset: Tensor) -> Tensor:
    steps, batch = obs.shape[:2]
    state = encoder.initial_state(batch)
    return encoder(obs, state, reset, make_extras(steps, batch))[0]


@pytest.fixture(params=[*encoder_names(), *VARIANTS])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("obs_shape", [(4, 84, 84), (1, 84, 84), (3, 47, 61)])
def test_shapes_gradients_and_odd_sizes(name, obs_shape):
    encoder = build(name, obs_shape)
    obs, reset = make_inputs(2, 3, obs_shape)
    features = run(encoder, obs, reset)
    assert features.shape == (2, 3, encoder.feature_dim)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    features.square().sum().backward()
    without = [key for key, p in encoder.named_parameters() if p.grad is None]
    assert not without
    still = [key for key, p in encoder.named_parameters() if not p.grad.any()]
    assert not still


def test_pixels_are_scaled_once(name):
    """255 times as bright frames give other features: uint8 is read as intensity in [0, 1]."""
    encoder = build(name)
    obs, reset = make_inputs(1, 2, (4, 84, 84))
    features = run(encoder, obs, reset)
    assert features.abs().max() < 1e3
    assert not torch.allclose(features, run(encoder, obs // 2, reset))


def test_batch_entries_are_independent(name):
    encoder = build(name)
    obs, reset = make_inputs(2, 5, (4, 84, 84))
    extras = make_extras(2, 5)
    together, _ = encoder(obs, encoder.initial_state(5), reset, extras)
    for entry in (slice(0, 1), slice(3, 5)):
        part = {key: value[:, entry] for key, value in extras.items()}
        count = obs[:, entry].shape[1]
        alone, _ = encoder(obs[:, entry], encoder.initial_state(count), reset[:, entry], part)
        torch.testing.assert_close(alone, together[:, entry], rtol=1e-4, atol=1e-5)


def test_sequence_equals_single_steps(name):
    encoder = build(name)
    obs, reset = make_inputs(3, 2, (4, 84, 84))
    extras = make_extras(3, 2)
    together, last = encoder(obs, encoder.initial_state(2), reset, extras)
    state = encoder.initial_state(2)
    for t in range(3):
        now = {key: value[t : t + 1] for key, value in extras.items()}
        features, state = encoder(obs[t : t + 1], state, reset[t : t + 1], now)
        torch.testing.assert_close(features[0], together[t], rtol=1e-4, atol=1e-5)
    for expected, actual in zip(last, state, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_channels_last_changes_nothing(name):
    encoder = build(name)
    obs, reset = make_inputs(1, 2, (4, 84, 84))
    plain = run(encoder, obs, reset)
    torch.testing.assert_close(
        run(encoder.to(memory_format=torch.channels_last), obs, reset), plain, rtol=1e-4, atol=1e-5
    )


def test_bf16_autocast_is_close(name):
    encoder = build(name)
    obs, reset = make_inputs(1, 4, (4, 84, 84))
    exact = run(encoder, obs, reset)
    with torch.autocast("cpu", torch.bfloat16):
        rough = run(encoder, obs, reset)
        rough.float().square().mean().backward()
    # 8 bits of mantissa; errors of a few layers add up.
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)]
)
def test_an_encoder_computes_in_the_type_of_its_parameters(name, dtype, bound):
    encoder = build(name)
    obs, reset = make_inputs(2, 3, (4, 84, 84))
    exact = run(encoder, obs, reset)
    found = run(copy.deepcopy(encoder).to(dtype), obs, reset)
    assert found.dtype == dtype
    assert (found.float() - exact).norm() < bound * exact.norm()
    if dtype == torch.float64 and name not in ("rim", "brims"):  # these block some gradients
        wide = encoder.double()
        run(wide, obs, reset).square().sum().backward()
        parameter = next(p for n, p in wide.named_parameters() if n.endswith("bias"))
        step = 1e-5 * torch.ones_like(parameter)
        values: list[float] = []
        with torch.no_grad():
            for shift in (step, -2 * step):
                parameter.add_(shift)
                values.append(float(run(wide, obs, reset).square().sum()))
        assert parameter.grad is not None
        slope = (values[0] - values[1]) / 2
        assert float((parameter.grad * step).sum()) == pytest.approx(slope, rel=1e-2, abs=1e-9)


def test_copies_are_independent(name):
    """A target network is a deep copy: it computes with its own weights."""
    encoder = build(name)
    obs, reset = make_inputs(1, 2, (4, 84, 84))
    before = run(encoder, obs, reset)
    target = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(0.5)
    assert torch.equal(run(target, obs, reset), before)
    assert not torch.allclose(run(encoder, obs, reset), before)


def test_default_parameters_and_features():
    # the first three as published without their linear layer; resnet: 3 x 3 x 512 features
    sizes = {}
    for name in ("nature", "impala", "hadamax", "resnet", "nfm"):
        encoder = make_encoder(name)
        sizes[name] = (encoder.feature_dim, sum(p.numel() for p in encoder.parameters()))
    assert sizes["nature"] == (3136, 77_984)
    assert sizes["impala"] == (3872, 97_744)
    assert sizes["hadamax"] == (7744, 156_608)
    assert sizes["resnet"][0] == sizes["nfm"][0] == 4608
    # NFM runs a second network: about twice the parameters.
    assert 2.0 < sizes["nfm"][1] / sizes["resnet"][1] < 2.2


@pytest.mark.parametrize("preset", sorted(NFM_PRESETS))
def test_nfm_presets_are_reachable(preset):
    options = {**SMALL["nfm"], "nfm": {}}
    encoder = make_encoder("nfm", preset=preset, obs_shape=(1, 36, 36), **options)
    obs, reset = make_inputs(1, 2, (1, 36, 36))
    assert run(encoder, obs, reset).isfinite().all()
    with pytest.raises(ValueError, match="preset"):
        make_encoder("nfm", preset=preset, nfm={"top_k": 2})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet", {"width": 0}, "width"),
        ("resnet", {"depth": 20}, "depth"),
        ("impala", {"width": -1}, "width"),
        ("impala", {"pool": "max7"}, "'max6'"),
        ("hadamax", {"width": 0}, "width"),
        ("nfm", {"nfm": {"top_k": 0}}, "top_k"),
        ("nfm", {"nfm": {"passes": 0}}, "passes"),
        ("nfm", {"nfm": {"read_places": (4,)}}, r"read_places: 4 .*0 to 3"),
        # behind the last stage: (64 + 16 + 4 + 1) pixels a pass, without the one of pass 1's last
        ("nfm", {"nfm": {"top_k": 1000}}, r"nfm\.top_k: 1000 .* no layer has more than \d+ slots"),
        ("nfm", {"nfm": {"heads": 0}}, "heads"),
        ("nfm", {"nfm": {"keysize": 3}}, "key_size"),
        ("resnt", {}, "resnet"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        make_encoder(name, **options)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", encoder_names())
def test_observations_without_time_or_batch_are_refused(name):
    encoder = make_encoder(name, **SMALL.get(name, {}))
    with pytest.raises(ValueError, match=r"shape \(2, 4, 84, 84\) is not allowed: must be \[T, B"):
        encoder(torch.zeros(2, 4, 84, 84, dtype=torch.uint8))
    with pytest.raises(
        ValueError, match=r"observations: torch.float32 is not allowed: must be uint8"
    ):
        encoder(torch.zeros(1, 2, 4, 84, 84))


def test_entries_have_a_summary():
    for name in encoder_names():
        assert encoder_entry(name).summary


def test_nfm_passes_that_share_convolutions():
    sizes = {"obs_shape": (1, 36, 36), "width": 4, "depth": 10}
    counts = [
        sum(p.numel() for p in make_encoder("nfm", **sizes, **options).parameters())
        for options in ({"nfm": {"share_passes": True}}, {"share_convolutions": True}, {})
    ]
    assert counts[0] < counts[1] < counts[2]
    encoder = make_encoder("nfm", **sizes, share_convolutions=True)
    again = make_encoder("nfm", **sizes, share_convolutions=True)
    again.load_state_dict(encoder.state_dict())
    x = torch.randint(0, 256, (1, 2, 1, 36, 36), dtype=torch.uint8)
    assert torch.equal(encoder.eval()(x)[0], again.eval()(x)[0])
    with pytest.raises(ValueError, match="share_convolutions: has no effect"):
        make_encoder("nfm", **sizes, share_convolutions=True, nfm={"share_passes": True})


def test_a_config_of_another_encoder_and_options_beside_a_config_are_refused():
    config = encoder_entry("nature").config()
    with pytest.raises(ValueError, match=r"config: encoder 'impala' takes .*, got NatureConfig"):
        make_encoder("impala", config=config)
    with pytest.raises(ValueError, match="wdth: not allowed beside config"):
        make_encoder("nature", config=config, wdth=64)


@pytest.mark.parametrize("name", encoder_names())
def test_an_empty_batch_has_no_features(name):
    encoder = make_encoder(name, obs_shape=(1, 40, 44), num_actions=3)
    extras = {
        "last_action": torch.zeros(2, 0, dtype=torch.int64),
        "last_reward": torch.zeros(2, 0),
        "episode_step": torch.zeros(2, 0, dtype=torch.int64),
    }
    obs = torch.zeros(2, 0, 1, 40, 44, dtype=torch.uint8)
    assert encoder(obs, extras=extras)[0].shape == (2, 0, encoder.feature_dim)


@pytest.mark.parametrize("name", ["nature", "lstm"])
def test_images_of_another_size_are_refused(name):
    encoder = make_encoder(name, obs_shape=(1, 40, 44), num_actions=3, **no_extras(name))
    with pytest.raises(
        ValueError, match=r"observations: images of \(1, 48, 48\) give 256 features"
    ):
        encoder(torch.zeros(1, 2, 1, 48, 48, dtype=torch.uint8))


def no_extras(name: str) -> dict[str, Any]:
    return {"last_action": False, "last_reward": False} if name == "lstm" else {}


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet", {"norm": "batch", "depth": 10, "width": 4}), ("impala", {"spectral_norm": True})],
)
def test_counting_operations_changes_nothing(name, options):
    encoder = make_encoder(name, obs_shape=(4, 36, 36), **options).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert encoder_macs(encoder, (4, 36, 36)) > 0
    assert encoder.training
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
