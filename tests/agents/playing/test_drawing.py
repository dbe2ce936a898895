"""Bars, maps and strips: what is drawn is as large as the numbers say."""

import numpy as np
import torch

from agents.playing.attention_pictures import HISTORY_STEPS, PANEL, draw_activity, draw_readers
from agents.playing.drawing import BACKGROUND, COLORS, GRAY, value_bars
from rl_nfm.nfm.places import NULL_SLOT, Slot
from rl_nfm.nfm.record import ReaderAttention


def count(image, color):
    return int((image == np.array(color, np.uint8)).all(-1).sum())


def reader(shares, slots_of_first):
    """One that reads two layers at 3 x 2 positions: the first by many slots, the second by one."""
    slots = [Slot(0, 0, (0, 0))] * slots_of_first + [Slot(0, 1, (0, 0)), NULL_SLOT]
    first, second, null = shares
    row = torch.tensor([first / slots_of_first] * slots_of_first + [second, null])
    weights = row.expand(1, 3, 2, 2, len(slots)).clone()
    return ReaderAttention(
        pass_index=1,
        place=0,
        slots=tuple(slots),
        weights=weights,
        even=torch.full((len(slots),), 1 / len(slots)),
        top_k=len(slots),
        gain=1.0,
    )


def bars_of(image):
    """Height of the bar of each layer: the longest column of its colour below the map."""
    plot = image[20 + PANEL : 20 + PANEL + 76]
    return [int((plot == np.array(color, np.uint8)).all(-1).sum(0).max()) for color in COLORS[:2]]


def test_bars_are_shares_of_layers_however_many_slots_there_are():
    frame = np.zeros((84, 84), np.uint8)
    for slots, half in ((1, 75), (100, 37)):
        image = draw_readers([reader((0.5, 0.25, 0.25), slots)], frame)
        high, low = bars_of(image)
        assert abs(high - 2 * low) <= 2
        assert abs(high - half) <= 2, "the axis ends at 50 %, or at 100 % for the white line"


def test_maps_are_faint_where_attention_is_even():
    frame = np.full((84, 84), 128, np.uint8)
    middle = (slice(20, 20 + PANEL), slice(0, PANEL))
    even = draw_readers([reader((1 / 3, 1 / 3, 1 / 3), 4)], frame)[middle].reshape(-1, 3)
    sharp = draw_readers([reader((0.9, 0.05, 0.05), 4)], frame)[middle].reshape(-1, 3)
    spread = [float(np.ptp(pixels.astype(int), axis=1).mean()) for pixels in (even, sharp)]
    assert spread[1] > 2 * spread[0]


def test_panels_stand_four_in_a_row():
    one = draw_readers([reader((0.5, 0.25, 0.25), 3)], np.zeros((84, 84), np.uint8))
    eight = draw_readers([reader((0.5, 0.25, 0.25), 3)] * 8, np.zeros((84, 84), np.uint8))
    assert one.shape[1] >= PANEL
    assert 4 * PANEL < eight.shape[1] <= 1120, "as wide as the game above"


def test_a_strip_is_filled_where_a_rim_is_updated():
    active = np.zeros((10, 3), bool)
    active[:, 1], active[7:, 2] = True, True
    image = draw_activity(active)
    filled = [count(image[20 + 20 * rim : 40 + 20 * rim], COLORS[1]) for rim in range(3)]
    assert filled == [0, 10 * 5 * 16, 3 * 5 * 16]
    assert image.shape[1] == 112 + HISTORY_STEPS * 5
    assert count(image, GRAY) > 0, "ticks of the time axis"
    assert count(image, BACKGROUND) > 0


def test_values_are_bars_and_the_action_is_marked():
    values = np.array([-1.0, 3.0, 1.0])
    image = value_bars((60, 480), ["NOOP", "UP", "DOWN"], values, chosen=2)
    lengths = [
        int((image[20 * i + 3] == np.array(color, np.uint8)).all(-1).sum())
        for i, color in enumerate([(170,) * 3, (170,) * 3, COLORS[0]])
    ]
    assert lengths[0] <= 3
    assert abs(lengths[1] - 2 * lengths[2]) <= 4
    same = value_bars((60, 480), ["NOOP", "UP", "DOWN"], np.zeros(3), chosen=0)
    assert same.shape == image.shape


def test_of_many_actions_the_best_are_shown_and_long_names_are_cut():
    values = np.arange(200.0)
    names = [f"the action that is called number {index} by its inventor" for index in range(200)]
    image = value_bars((180, 480), names, values, chosen=3)
    bright = (image == 170).all(-1)  # a bar of each action but the chosen one
    starts = bright[:, 300] & ~np.roll(bright[:, 300], 1)
    assert starts.sum() == 180 // 12 - 1, "those whose bars are nearly whole"
    assert (image == COLORS[0]).all(-1)[:12].any(), (
        "the chosen one, whose value is among the lowest"
    )
    assert bright[:, 480 // 3 + 20 : 400].any()
