"""Auxiliary losses: their sum with that of the values, their gradients, logs and checkpoints."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from agents.config import make_config, to_plain
from agents.learning.auxiliary import Latents, auxiliaries, make_auxiliaries
from agents.learning.auxiliary.base import AuxiliaryLoss, register_auxiliary
from agents.learning.config import LearnerConfig
from agents.learning.learner import Learner
from agents.learning.network import QNetwork
from agents.presets import read_preset
from agents.replay.batch import Batch
from agents.saving import checkpoint
from agents.saving.run_folder import read_metrics
from agents.training.train import train
from rl_nfm.encoders import encoder_names, make_encoder
from rl_nfm.values.heads import HeadConfig

CPU = torch.device("cpu")
SHAPE, ACTIONS, B = (2, 40, 44), 5, 3
HEAD = HeadConfig(distribution="none", hidden_size=4, noisy=False)
TINY = {"nature": {"width": 2}, "impala": {"width": 2}, "hadamax": {"width": 2}}
TINY |= {"resnet": {"depth": 10, "width": 2}, "nfm": {"depth": 10, "width": 2}}
TINY |= {"rim": {"hidden_size": 6, "num_rims": 3, "num_active": 2}, "lstm": {"hidden_size": 6}}
TINY |= {"brims": {"hidden_size": 12, "num_rims": (3, 2), "num_active": (2, 1)}}


def batch_for(network, *, positions=1, seed=0):
    """T positions, each of which bootstraps one observation later; the last one does not."""
    generator = torch.Generator().manual_seed(seed)
    spans = (positions + 1, B)
    obs = torch.randint(0, 256, (*spans, *SHAPE), dtype=torch.uint8, generator=generator)
    extras = {
        "last_action": torch.randint(ACTIONS, spans, generator=generator),
        "last_reward": torch.randn(spans, generator=generator),
        "episode_step": torch.randint(9, spans, generator=generator),
    }
    discount = torch.full((positions, B), 0.9)
    discount[-1, -1] = 0.0
    return Batch(
        obs=obs,
        state=network.initial_state(B),
        reset=torch.zeros(spans, dtype=torch.bool),
        extras=extras,
        a_tm1=torch.randint(ACTIONS, (positions, B), generator=generator),
        r_t=torch.randn((positions, B), generator=generator),
        discount_t=discount,
        bootstrap=torch.arange(1, positions + 1)[:, None].expand(positions, B),
        mask=torch.ones(positions, B, dtype=torch.bool),
        index=torch.arange(B),
        probability=torch.full((B,), 0.1, dtype=torch.float64),
        weight=torch.ones(B),
        burn_in_steps=0,
    )


def make_learner(encoder="nature", **options):
    networks = []
    for _ in range(2):
        torch.manual_seed(7)
        built = make_encoder(encoder, obs_shape=SHAPE, num_actions=ACTIONS, **TINY.get(encoder, {}))
        auxiliary = make_auxiliaries(
            options.get("auxiliary", {}), built, obs_shape=SHAPE, num_actions=ACTIONS
        )
        torch.manual_seed(8)  # the same head with and without auxiliary losses
        networks.append(QNetwork(built, ACTIONS, HEAD, auxiliary))
    config = LearnerConfig(precision="fp32", max_grad_norm=None, **options)
    return Learner(config, *networks, device=CPU)


def gradients(learner, batch):
    learner.optimizer.zero_grad()
    terms = learner.objective(batch)
    loss = terms.loss + sum(terms.auxiliary.values())
    loss.mean().backward()
    return terms, {k: p.grad for k, p in learner.online.named_parameters() if p.grad is not None}


def test_future_frame_by_hand():
    """Means over blocks of pixels of the newest frame at the bootstrap, against the decoder."""
    learner = make_learner(auxiliary={"future_frame": 1.0})
    loss = learner.online.auxiliary["future_frame"]
    batch = batch_for(learner.online)
    features = torch.randn(1, B, learner.online.encoder.feature_dim)
    found = loss(batch, Latents(features, None), learner.target.encoder)
    for b in range(B - 1):
        frame = batch.obs[1, b, -1].float() / 255
        small = F.adaptive_avg_pool2d(frame[None, None], (12, 12)).flatten()
        one_hot = torch.zeros(ACTIONS)
        one_hot[batch.a_tm1[0, b]] = 1
        predicted = loss.decoder(torch.cat([features[0, b], one_hot]))
        torch.testing.assert_close(found[0, b], (predicted - small).square().mean())
    assert found[0, -1] == 0, "the game ended before"
    # 40 rows in 12 blocks: the first is rows 0..3, the second 3..6 (floor and ceiling of 40 / 12)
    block = batch.obs[1, 0, -1, :4, :4].float().mean() / 255
    torch.testing.assert_close(loss.picture(batch)[0, 0, 0], block)


def test_the_term_is_weighted_and_added_and_moves_the_encoder():
    batch = batch_for(make_learner().online)
    _, plain = gradients(make_learner(), batch)
    terms, once = gradients(make_learner(auxiliary={"future_frame": 1.0}), batch)
    more, thrice = gradients(make_learner(auxiliary={"future_frame": 3.0}), batch)
    torch.testing.assert_close(more.auxiliary["future_frame"], 3 * terms.auxiliary["future_frame"])
    name = "encoder.convs.0.weight"
    assert (once[name] - plain[name]).abs().max() > 1e-8
    torch.testing.assert_close(
        thrice[name] - plain[name], 3 * (once[name] - plain[name]), rtol=1e-3, atol=1e-6
    )
    assert "auxiliary.future_frame.decoder.weight" in once
    assert "auxiliary.future_frame.decoder.weight" not in plain


def test_priorities_are_those_of_the_values_alone():
    batch = batch_for(make_learner().online)
    for priority in ("td_error", "loss"):
        wanted = make_learner(priority=priority).update(batch)
        found = make_learner(priority=priority, auxiliary={"future_frame": 5.0}).update(batch)
        torch.testing.assert_close(found, wanted)


def test_an_update_trains_and_logs_it():
    learner = make_learner(auxiliary={"future_frame": 2.0}, learning_rate=1e-2)
    batch, logged = batch_for(learner.online), []
    for _ in range(20):
        learner.update(batch)
        logged.append(learner.metrics())
    assert list(logged[0])[-1] == "loss/future_frame"
    assert logged[-1]["loss/future_frame"] < 0.5 * logged[0]["loss/future_frame"]
    assert learner.finite()


def maps_loss():
    """A loss that reads feature maps: their mean square."""
    if "mean_square_of_maps" not in auxiliaries:

        @register_auxiliary("mean_square_of_maps")
        class MapsLoss(AuxiliaryLoss):
            reads_maps = True

            def forward(self, batch, latents, target):
                assert latents.maps is not None
                return latents.maps.square().mean((-3, -2, -1))

    return "mean_square_of_maps"


@pytest.mark.parametrize("encoder", encoder_names())
def test_every_encoder_gives_its_maps_beside_the_same_features(encoder):
    if encoder not in TINY:
        pytest.skip("registered by another test")
    learner = make_learner(encoder, auxiliary={maps_loss(): 1.0})
    network = learner.online
    positions = 2 if network.encoder.recurrent else 1
    batch = batch_for(network, positions=positions)
    inputs = (batch.obs, network.initial_state(B), batch.reset, batch.extras)
    features, state = network.encoder(*inputs)
    again, other, maps = network.encoder.forward_with_maps(*inputs)
    assert maps.shape[:2] == features.shape[:2] == (positions + 1, B)
    assert maps.dim() == 5
    torch.testing.assert_close(again, features)
    torch.testing.assert_close(other, state)
    terms, grads = gradients(learner, batch)
    wanted = maps[:positions].square().mean((-3, -2, -1))
    torch.testing.assert_close(terms.auxiliary[maps_loss()], wanted, rtol=1e-3, atol=1e-5)
    assert grads


def test_an_encoder_without_maps_says_so(toys):
    encoder = toys.LinearEncoder()
    with pytest.raises(ValueError, match="LinearEncoder has no feature maps"):
        encoder.forward_with_maps(torch.zeros(1, 1, *toys.obs_shape, dtype=torch.uint8))


def test_names_and_weights_are_checked():
    encoder = make_encoder("nature", obs_shape=SHAPE, width=2)
    with pytest.raises(ValueError, match="did you mean 'future_frame'"):
        make_auxiliaries({"future_frames": 1.0}, encoder, obs_shape=SHAPE, num_actions=2)
    with pytest.raises(ValueError, match=r"learner\.auxiliary"):
        make_config({"learner": {"auxiliary": {"future_frame": 0.0}}})
    for name in ("future_frame", "not a name"):
        with pytest.raises(ValueError, match="must be a free Python identifier"):
            register_auxiliary(name)


def test_a_run_logs_it_and_its_checkpoint_holds_it(tmp_path):
    values = to_plain(read_preset("debug"))
    values["steps"] = 200
    values["learner"]["auxiliary"] = {"future_frame": 0.5}
    run = train(make_config(values), out=tmp_path / "run")
    assert read_metrics(run / "metrics.jsonl")[-1]["loss/future_frame"] > 0
    found = checkpoint.open_checkpoint(checkpoint.find(run))
    assert found.config.learner.auxiliary == {"future_frame": 0.5}
    network = checkpoint.load_network(found, CPU)
    assert set(network.auxiliary) == {"future_frame"}
    assert dataclasses.replace(found.config.learner, auxiliary={}) != found.config.learner


def test_the_picture_of_a_colour_frame_has_its_colours():
    encoder = make_encoder("nature", obs_shape=(6, 40, 44), num_actions=2, width=2)
    losses = make_auxiliaries(
        {"future_frame": 1.0}, encoder, obs_shape=(6, 40, 44), num_actions=2, frame_channels=3
    )
    obs = torch.zeros(2, B, 6, 40, 44, dtype=torch.uint8)
    obs[1, :, 3] = 255  # red, in the newer of two frames
    batch = dataclasses.replace(batch_for(make_learner().online), obs=obs)
    picture = losses["future_frame"].picture(batch)[0, 0].view(3, 12, 12)
    assert picture.mean((1, 2)).tolist() == [1, 0, 0]


def test_a_run_on_colour_frames_predicts_all_channels():
    config = make_config(
        {**to_plain(read_preset("minigrid")), "learner": {"auxiliary": {"future_frame": 1.0}}}
    )
    network = checkpoint.build_network(config, (3 * config.protocol.stack_num, 40, 40), 3)
    assert network.auxiliary["future_frame"].decoder.out_features == 3 * 12 * 12
