"""Encoders with a state: trunks by name, further inputs, resets, acting and unrolling alike."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rl_nfm.encoders import Extras, encoder_entry, encoder_names, make_encoder
from rl_nfm.encoders.brims import BRIMsEncoder
from rl_nfm.encoders.nature import NatureConfig
from rl_nfm.encoders.nfm import NFMEncoderConfig
from rl_nfm.encoders.recurrent import RecurrentEncoder
from rl_nfm.encoders.resnet import ResNetEncoderConfig
from rl_nfm.encoders.rim import RIMEncoder
from rl_nfm.nfm import NFMConfig

OBS_SHAPE = (1, 36, 36)
NUM_ACTIONS = 5
TINY: dict[str, Any] = {
    "nature": NatureConfig(width=2),
    "resnet": ResNetEncoderConfig(width=4, depth=10),
    "nfm": NFMEncoderConfig(width=4, depth=10, nfm=NFMConfig(key_size=4, value_size=4)),
}
SMALL: dict[str, dict[str, Any]] = {
    "lstm": {"hidden_size": 12},
    "rim": {"hidden_size": 12, "num_rims": 3, "num_active": 2},
    "brims": {"hidden_size": 12, "num_rims": (3, 2), "num_active": (2, 1)},
}
STATES = {"lstm": (12,), "rim": (12,), "brims": (2, 12)}
"""Shapes of one environment's states."""
NO_EXTRAS = {"last_action": False, "last_reward": False, "episode_step": False}


def build(name: str, trunk: str = "nature", **options: Any) -> RecurrentEncoder:
    torch.manual_seed(0)
    encoder = make_encoder(
        name,
        obs_shape=OBS_SHAPE,
        num_actions=NUM_ACTIONS,
        trunk=trunk,
        trunk_config=TINY.get(trunk),
        **{**SMALL[name], **options},
    )
    assert isinstance(encoder, RecurrentEncoder)
    with torch.no_grad():  # away from small initial weights
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.eval()


def make_inputs(steps: int, batch: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(1)
    obs = torch.randint(0, 256, (steps, batch, *OBS_SHAPE), dtype=torch.uint8)
    extras = {
        "last_action": torch.randint(0, NUM_ACTIONS, (steps, batch)),
        "last_reward": 3 * torch.randn(steps, batch),
        "episode_step": torch.randint(0, 27_000, (steps, batch)),
    }
    return obs, torch.rand(steps, batch) < 0.3, extras


def part(extras: Extras, *index: Any) -> dict[str, Tensor]:
    return {name: value[index] for name, value in extras.items()}


@pytest.fixture(params=SMALL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_on_every_registered_trunk(name):
    trunks = [n for n in encoder_names() if not encoder_entry(n).takes_trunk]
    assert {"nature", "impala", "resnet", "nfm"} <= set(trunks)
    obs, reset, extras = make_inputs(2, 3)
    for trunk in trunks:
        encoder = build(name, trunk)
        features, state = encoder(obs, encoder.initial_state(3), reset, extras)
        assert features.shape == (2, 3, encoder.feature_dim) == (2, 3, 12)
        assert [s.shape for s in state] == [(3, *STATES[name])] * 2
        features.sum().backward()
        assert all(p.grad is not None for p in encoder.trunk.parameters())


def test_the_norm_is_of_what_the_trunk_gives_and_of_nothing_else(name):
    obs, reset, extras = make_inputs(3, 2)
    encoder, plain = build(name, trunk_norm=True), build(name)
    assert plain.trunk_norm is None
    assert set(encoder.state_dict()) - set(plain.state_dict()) == {
        "trunk_norm.weight",
        "trunk_norm.bias",
    }
    trunk = encoder.trunk(obs)[0].double()
    centred = trunk - trunk.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert encoder.trunk_norm is not None
    expected = expected * encoder.trunk_norm.weight + encoder.trunk_norm.bias
    found = encoder.core_inputs(obs, extras)
    torch.testing.assert_close(
        found[..., : trunk.shape[-1]], expected.float(), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        found[..., trunk.shape[-1] :], plain.core_inputs(obs, extras)[..., trunk.shape[-1] :]
    )
    encoder(obs, (), reset, extras)[0].sum().backward()
    assert all(p.grad is not None for p in encoder.trunk_norm.parameters())


def test_with_skip_the_features_are_those_without_and_what_the_core_reads(name):
    obs, reset, extras = make_inputs(3, 2)
    encoder, plain = build(name, skip=True), build(name)
    encoder.load_state_dict(plain.state_dict())
    features, state = encoder(obs, (), reset, extras)
    expected, expected_state = plain(obs, (), reset, extras)
    read = plain.core_inputs(obs, extras)
    assert encoder.feature_dim == features.shape[-1] == plain.feature_dim + plain.input_size
    assert torch.equal(features, torch.cat([expected, read], -1))
    assert all(map(torch.equal, state, expected_state))
    mapped, _, _ = encoder.forward_with_maps(obs, (), reset, extras)
    assert torch.equal(mapped, features)


def test_the_trunk_has_the_config_that_is_given(name):
    encoder = build(name, "nature")
    assert isinstance(encoder.trunk.convs, nn.Sequential)
    assert (
        encoder.trunk.feature_dim
        == make_encoder("nature", obs_shape=OBS_SHAPE, width=2).feature_dim
    )
    assert encoder.input_size == encoder.trunk.feature_dim + NUM_ACTIONS + 2
    plain = make_encoder(name, obs_shape=OBS_SHAPE)
    assert plain.trunk.feature_dim == make_encoder("nature", obs_shape=OBS_SHAPE).feature_dim


def test_state_is_zero_at_first_and_has_a_row_per_environment(name):
    encoder = build(name)
    assert encoder.recurrent
    state = encoder.initial_state(4)
    assert [s.shape for s in state] == [(4, *STATES[name])] * 2
    assert not any(s.any() for s in state)
    obs, reset, extras = make_inputs(2, 4)
    given, _ = encoder(obs, state, reset, extras)
    assert torch.equal(given, encoder(obs, (), reset, extras)[0])


def test_acting_step_by_step_equals_one_unroll(name):
    """Many steps, with borders: the sum of what rounding differs stays at rounding's size."""
    encoder = build(name)
    obs, reset, extras = make_inputs(25, 3)
    together, last = encoder(obs, (), reset, extras)
    state = encoder.initial_state(3)
    for t in range(25):
        now = slice(t, t + 1)
        features, state = encoder(obs[now], state, reset[now], part(extras, now))
        torch.testing.assert_close(features[0], together[t], rtol=1e-5, atol=1e-6)
    for actual, wanted in zip(state, last, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)


def test_reset_zeroes_the_state_before_the_step(name):
    encoder = build(name)
    obs, _, extras = make_inputs(4, 2)
    state = tuple(torch.randn_like(s) for s in encoder.initial_state(2))
    reset = torch.zeros(4, 2, dtype=torch.bool)
    reset[0, 0] = reset[2, 1] = True
    features, _ = encoder(obs, state, reset, extras)
    fresh, _ = encoder(obs[:, :1], (), None, part(extras, slice(None), slice(1)))
    torch.testing.assert_close(features[:, :1], fresh)
    tail = (slice(2, None), slice(1, None))
    fresh, _ = encoder(obs[tail], (), None, part(extras, *tail))
    torch.testing.assert_close(features[2:, 1:], fresh)
    assert not torch.allclose(features[:2, 1], encoder(obs, (), None, extras)[0][:2, 1])


def test_what_came_before_matters_and_another_environment_does_not(name):
    encoder = build(name)
    obs, _, extras = make_inputs(3, 2)
    features, _ = encoder(obs, (), None, extras)
    other = obs.clone()
    other[0, 0] = 255 - other[0, 0]
    changed, _ = encoder(other, (), None, extras)
    assert (features[:, 0] != changed[:, 0]).any(-1).all()
    torch.testing.assert_close(features[:, 1], changed[:, 1])


def test_further_inputs_by_hand(name):
    encoder = build(name)
    obs = torch.zeros(1, 3, *OBS_SHAPE, dtype=torch.uint8)
    extras = {
        "last_action": torch.tensor([[2, 0, -1]]),
        "last_reward": torch.tensor([[7.5, 0.0, -0.1]]),
        "episode_step": torch.tensor([[50_000, 0, 1]]),
    }
    inputs = encoder.core_inputs(obs, extras)[0, :, encoder.trunk.feature_dim :]
    # one-hot of 5 actions (none for -1), sign of the reward, step / 100000
    wanted = [[0, 0, 1, 0, 0, 1, 0.5], [1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, -1, 1e-5]]
    torch.testing.assert_close(inputs, torch.tensor(wanted))


@pytest.mark.parametrize("kept", ["last_action", "last_reward", "episode_step", None])
def test_the_config_chooses_the_further_inputs(name, kept):
    encoder = build(name, **{**NO_EXTRAS, **({kept: True} if kept else {})})
    obs, _, extras = make_inputs(2, 2)
    width = {"last_action": NUM_ACTIONS, None: 0}.get(kept, 1)
    assert encoder.input_size == encoder.trunk.feature_dim + width
    wanted = extras if kept is None else {kept: extras[kept]}
    given, _ = encoder(obs, (), None, wanted)
    assert torch.equal(given, encoder(obs, (), None, extras)[0])
    if kept is None:
        assert torch.equal(given, encoder(obs)[0])
        return
    with pytest.raises(ValueError, match=f"{kept}: is not given"):
        encoder(obs)


def test_the_core_stays_in_float32_under_autocast(name):
    encoder = build(name)
    obs, reset, extras = make_inputs(3, 2)
    inputs = encoder.core_inputs(obs, extras)
    exact, _ = encoder.unroll(inputs, encoder.initial_state(2), reset)
    with torch.autocast("cpu", torch.bfloat16):
        same, state = encoder.unroll(inputs, encoder.initial_state(2), reset)
        features, _ = encoder(obs, (), reset, extras)
        features.square().sum().backward()
    assert torch.equal(same, exact)
    assert {s.dtype for s in state} == {features.dtype} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def test_lstm_is_nn_lstm_between_resets():
    encoder = build("lstm")
    obs, _, extras = make_inputs(4, 3)
    inputs = encoder.core_inputs(obs, extras)
    plain = nn.LSTM(encoder.input_size, 12)
    plain.load_state_dict({f"{key}_l0": value for key, value in encoder.cell.state_dict().items()})
    wanted, (hidden, cell) = plain(inputs)
    features, state = encoder(obs, (), None, extras)
    torch.testing.assert_close(features, wanted)
    torch.testing.assert_close(state, (hidden[0], cell[0]))
    loss = torch.randn_like(features)
    (features * loss).sum().backward()
    (wanted * loss).sum().backward()
    for key, value in encoder.cell.named_parameters():
        torch.testing.assert_close(value.grad, getattr(plain, f"{key}_l0").grad)


@pytest.mark.parametrize("variant", ["official", "paper", "previous", "across", "dido1998"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_rim_options(variant, cell):
    encoder = build("rim", variant=variant, cell=cell)
    assert isinstance(encoder, RIMEncoder)
    obs, reset, extras = make_inputs(3, 2)
    with encoder.record() as recording:
        features, state = encoder(obs, (), reset, extras)
    assert len(state) == (2 if cell == "lstm" else 1)
    assert torch.equal(state[0], features[-1])
    active = recording.activity
    assert active is not None
    assert encoder.shows == {"activity"}
    assert encoder.recording is None, "only inside the block"
    assert active.shape == (3, 2, 3)
    assert (active.sum(-1) == 2).all()
    unchanged = features[1:].unflatten(-1, (3, 4)) == features[:-1].unflatten(-1, (3, 4))
    still = ~active[1:] & ~reset[1:].unsqueeze(-1)
    assert unchanged[still].all()


@pytest.mark.parametrize("variant", ["mnist", "cifar10"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_brims_options(variant, cell):
    encoder = build("brims", variant=variant, cell=cell)
    assert isinstance(encoder, BRIMsEncoder)
    obs, reset, extras = make_inputs(3, 2)
    with encoder.record() as recording:
        features, state = encoder(obs, (), reset, extras)
    assert len(state) == (2 if cell == "lstm" else 1)
    assert torch.equal(state[0][:, -1], features[-1]), "the topmost layer"
    active = recording.activity
    assert active is not None
    assert active.shape == (3, 2, 3 + 2)
    assert (active[..., :3].sum(-1) == 2).all()
    assert (active[..., 3:].sum(-1) == 1).all()
    unchanged = features[1:].unflatten(-1, (2, 6)) == features[:-1].unflatten(-1, (2, 6))
    still = ~active[1:, :, 3:] & ~reset[1:].unsqueeze(-1)
    assert unchanged[still].all()


@pytest.mark.parametrize("name", ["rim", "brims"])
def test_rim_dropout_is_off_unless_asked_for(name):
    obs, reset, extras = make_inputs(3, 2)
    encoder = build(name).train()
    assert torch.equal(encoder(obs, (), reset, extras)[0], encoder(obs, (), reset, extras)[0])
    encoder = build(name, rim_dropout=0.1).train()
    assert not torch.equal(encoder(obs, (), reset, extras)[0], encoder(obs, (), reset, extras)[0])


def test_published_sizes_are_the_defaults():
    lstm, rim = make_encoder("lstm"), make_encoder("rim")
    assert (lstm.feature_dim, rim.feature_dim) == (512, 600)
    # 3136 features, 18 actions, reward, time.
    assert lstm.input_size == rim.input_size == 3156
    assert {f.name for f in dataclasses.fields(encoder_entry("lstm").config)} >= set(NO_EXTRAS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_encoder("rim", trunk="natur"), "did you mean 'nature'"),
        (lambda: make_encoder("rim", trunk="lstm"), "trunk: 'lstm' is not allowed"),
        (lambda: make_encoder("lstm", trunk="lstm"), "trunk: 'lstm' is not allowed"),
        (
            lambda: make_encoder("rim", trunk="resnet", trunk_config=NatureConfig()),
            "'resnet' takes ResNetEncoderConfig, got NatureConfig",
        ),
        (
            lambda: make_encoder("nature", trunk_config=NatureConfig()),
            "'nature' .* no trunk_config",
        ),
        (lambda: make_encoder("rim", hidden_size=100), r"hidden_size: 100 .* num_rims \(6\)"),
        (lambda: make_encoder("rim", num_active=7), r"num_active: 7 .*6"),
        (lambda: make_encoder("rim", rim_dropout=1.0), "rim_dropout"),
        (lambda: make_encoder("rim", variant="papr"), "variant"),
        (lambda: make_encoder("brims", hidden_size=100), r"num_rims: 6 .* hidden_size \(100\)"),
        (lambda: make_encoder("brims", num_active=(4, 4)), r"num_active: 4 .* 1\.\.3"),
        (lambda: make_encoder("brims", num_rims=(6,)), r"num_rims: \(6,\) .* num_active"),
        (lambda: make_encoder("brims", num_rims=(), num_active=()), r"num_rims: \(\)"),
        (lambda: make_encoder("brims", variant="minst"), "variant"),
        (lambda: make_encoder("lstm", hidden_size=0), "hidden_size"),
        (lambda: make_encoder("lstm", width=32), "width"),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert len(str(error.value).splitlines()) == 1
