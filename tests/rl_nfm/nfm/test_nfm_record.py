"""Attention as arrays: labels of slots, shares by source, how often a slot is among the top k."""

import pytest
import torch
from torch import nn

from rl_nfm.nfm import NeuralFunctionModule, NFMConfig, record_attention
from rl_nfm.nfm.places import NULL_SLOT, Slot
from rl_nfm.nfm.record import ReaderAttention


def make_net(**options) -> NeuralFunctionModule:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)]
    config = NFMConfig(key_size=3, value_size=3, heads=2, **options)
    return NeuralFunctionModule(layers, channels=(4, 6), config=config)


def test_slots_are_labelled():
    net = make_net(top_k=2)
    with record_attention(net) as record:
        net(torch.randn(5, 3, 6, 4))
    assert list(record.readers) == [(1, 0), (1, 1)]
    fine, coarse = record.readers.values()
    assert fine.slots == (Slot(0, 0, (0, 0)), Slot(0, 1, (0, 0)), Slot(1, 0, (0, 0)), NULL_SLOT)
    assert fine.weights.shape == (5, 6, 4, 2, 4)
    window = [(0, 0), (0, 1), (1, 0), (1, 1)]  # 6x4 read at 3x2
    assert coarse.slots == (
        *(Slot(0, 0, offset) for offset in window),
        Slot(0, 1, (0, 0)),
        *(Slot(1, 0, offset) for offset in window),
        Slot(1, 1, (0, 0)),
        NULL_SLOT,
    )
    assert coarse.sources == ((0, 0), (0, 1), (1, 0), (1, 1), None)
    for reader in (fine, coarse):
        shares = reader.by_source()
        assert shares.shape == (*reader.weights.shape[:-2], len(reader.sources))
        torch.testing.assert_close(shares.sum(-1), torch.ones(shares.shape[:-1]))
        # two of the slots each time, but padding and exact zeros
        assert reader.top_k_frequency().sum().item() == pytest.approx(2, abs=1e-4)


def test_summaries_of_hand_made_weights():
    slots = (Slot(0, 0, (0,)), Slot(0, 0, (1,)), Slot(0, 1, (0,)), NULL_SLOT)
    # One position, two heads.
    weights = torch.tensor([[[[0.6, 0.0, 0.4, 0.0], [0.1, 0.2, 0.3, 0.4]]]])
    even = torch.full((4,), 0.25)
    common = {"place": 0, "top_k": 2, "gain": 0.5}
    reader = ReaderAttention(pass_index=1, slots=slots, weights=weights, even=even, **common)
    torch.testing.assert_close(reader.even_by_source(), torch.tensor([0.5, 0.25, 0.25]))
    assert reader.sources == ((0, 0), (0, 1), None)
    # (.6 + .0 + .1 + .2) / 2, (.4 + .3) / 2, .4 / 2
    torch.testing.assert_close(reader.by_source()[0, 0], torch.tensor([0.45, 0.35, 0.2]))
    # chosen: slots 0, 2 by the first head and 2, 3 by the second
    torch.testing.assert_close(reader.top_k_frequency(), torch.tensor([0.5, 0.0, 1.0, 0.5]))
    # (0.6, 0.4) have 0.971 bits, (0.1, 0.2, 0.3, 0.4) have 1.846; four slots can have 2 bits
    assert reader.entropy() == pytest.approx((0.970951 + 1.846439) / 4, rel=1e-5)
    one = torch.ones(1, 1, 2, 1)
    only = ReaderAttention(pass_index=0, slots=slots[:1], weights=one, even=one[0, 0, 0], **common)
    assert only.entropy() == 0.0  # one slot leaves no choice


@pytest.mark.parametrize("mode", ["masked", "sab", "sab_published", "dense"])
def test_entropy_is_a_share_of_the_highest_whatever_the_mode(mode):
    net = make_net(top_k=3, top_k_mode=mode)
    with record_attention(net) as record:
        net(torch.randn(2, 3, 6, 4))
    assert all(0 < reader.entropy() <= 1 for reader in record.readers.values())


def test_gain_and_size_of_what_was_read():
    net = make_net()
    reading = [place for place in net.places.places if place.parts[0]]
    with record_attention(net) as record, torch.no_grad():
        net(torch.randn(2, 3, 6, 4))
        first = list(record.readers.values())
        for gain, place in zip((0.5, -2.0), reading, strict=True):
            place.gamma.fill_(gain)
        x = torch.randn(2, 3, 6, 4)
        output = net(x)
    assert [(r.gain, r.relative_size) for r in first] == [(0.0, 0.0)] * 2, "gamma starts at 0"
    started = [p.gamma.item() for p in make_net(initial_gamma=0.25).places.places if p.parts[0]]
    assert started == [0.25, 0.25]
    assert [r.gain for r in record.readers.values()] == [0.5, -2.0]
    sizes = [r.relative_size for r in record.readers.values()]
    with torch.no_grad():
        reading[1].gamma.zero_()  # and nothing reads after it, so the output is the layer's own
        bare = net(x)
    assert sizes[1] == pytest.approx(float((output - bare).norm() / bare.norm()), rel=1e-4)


def test_weights_are_those_that_were_used():
    """The recorded weights, applied to the values by hand, give what the network computes."""
    net = make_net(rescale="nearest")
    for place in net.places.places:
        if place.parts[0]:
            nn.init.ones_(place.gamma)
    x = torch.randn(2, 3, 6, 4)
    with record_attention(net) as record:
        recorded = net(x)
    torch.testing.assert_close(recorded, net(x), rtol=1e-5, atol=1e-6)  # fused without a record
    places = net.places.places
    first, second = net.passes[0][0](x), net.passes[0][1](net.passes[0][0](x))
    now = net.passes[1][0](x)
    values = [
        places[0].project(first.movedim(1, -1))[..., -6:],
        places[1].project(second.movedim(1, -1))[..., -6:].repeat_interleave(2, 1),
        places[2].project(now.movedim(1, -1))[..., -6:],
    ]
    values[1] = values[1].repeat_interleave(2, 2)
    stacked = torch.stack([value.unflatten(-1, (2, 3)) for value in values], dim=-2)
    weights = record.readers[1, 0].weights[..., :3, None]
    read = (weights * stacked).sum(-2).flatten(-2).flatten(1, 2)
    h = now + places[2].out(read, (6, 4)).movedim(-1, 1).reshape(now.shape)
    with record_attention(net):
        memory: list = []
        for place, state in enumerate((first, second)):
            net.places(state, memory, pass_index=0, place=place)
        torch.testing.assert_close(net.places(now, memory, pass_index=1, place=0), h)


def test_nothing_is_recorded_outside():
    net = make_net()
    x = torch.randn(1, 3, 6, 4)
    with record_attention(net) as record:
        pass
    net(x)
    assert not record.readers
    assert all(place.recorder is None for place in net.places.places)


def test_gradients_flow_while_recording():
    net = make_net()
    with record_attention(net) as record:
        net(torch.randn(1, 3, 6, 4)).sum().backward()
    assert not record.readers[1, 0].weights.requires_grad
    assert net.places.places[2].gamma.grad is not None


def test_networks_without_nfm_are_refused():
    with (
        pytest.raises(ValueError, match="Linear holds no Neural Function Module"),
        record_attention(nn.Linear(2, 2)),
    ):
        pass


def test_a_recording_inside_a_recording_ends_alone():
    torch.manual_seed(0)
    net = NeuralFunctionModule([nn.Linear(3, 3), nn.Linear(3, 3)], channels=[3, 3], rank=0)
    with record_attention(net) as outer:
        with record_attention(net) as inner:
            net(torch.randn(2, 3))
        assert len(inner.readers) == 2
        assert not outer.readers
        net(torch.randn(2, 3))
    assert len(outer.readers) == 2


@pytest.mark.parametrize(("height", "width"), [(7, 5), (6, 4), (9, 2)])
def test_even_attention_is_over_the_slots_that_there_are(height, width):
    """7 rows are read at 4 as the rows 0-1, 1-3, 3-5 and 5-6: two positions lack a third row."""

    def windows(source, target):
        return [-(-(i + 1) * source // target) - i * source // target for i in range(target)]

    net = make_net(top_k=2)
    with record_attention(net) as record:
        net(torch.randn(2, 3, height, width))
    fine, coarse = record.readers.values()
    torch.testing.assert_close(fine.even_by_source(), torch.full((4,), 0.25))
    rows, columns = windows(height, -(-height // 2)), windows(width, -(-width // 2))
    counts = torch.tensor([[r * c, 1, r * c, 1, 1] for r in rows for c in columns]).float()
    expected = (counts / counts.sum(1, keepdim=True)).mean(0)
    torch.testing.assert_close(coarse.even_by_source(), expected)
