"""Rescaling: windows for any pair of sizes, against slices and loops."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from rl_nfm.nfm.rescale import gather_slots, window_length, window_offsets


def naive_slots(memory, target, mode):
    """Per position, the list of pixels (or None for padding) that its slots hold."""
    source = memory.shape[1:-1]
    lengths = [window_length(s, t, mode) for s, t in zip(source, target, strict=True)]
    slots = {}
    for position in itertools.product(*map(range, target)):
        found = []
        for offset in itertools.product(*map(range, lengths)):
            pixel = []
            for i, a, s, t in zip(position, offset, source, target, strict=True):
                start = math.floor(i * s / t)
                end = (
                    math.ceil((i + 1) * s / t) if mode == "space_to_depth" and s > t else start + 1
                )
                pixel.append(start + a if start + a < end else None)
            found.append(None if None in pixel else tuple(pixel))
        slots[position] = found
    return slots


SIZES = [
    ((6, 6), (3, 3)),
    ((21, 21), (11, 11)),
    ((21, 21), (6, 6)),
    ((11, 7), (3, 5)),
    ((3, 5), (11, 7)),
    ((2, 9), (5, 4)),
    ((4, 4), (4, 4)),
    ((1, 1), (3, 2)),
    ((5, 7), (1, 1)),
    ((10,), (4,)),
    ((3, 5, 8), (2, 7, 3)),
]


@pytest.mark.parametrize("mode", ["space_to_depth", "nearest"])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_slots_equal_a_loop(source, target, mode):
    memory = torch.randn(2, *source, 3)
    slots, valid = gather_slots(memory, target, mode)
    expected = naive_slots(memory, target, mode)
    assert slots.shape == (2, *target, len(window_offsets(source, target, mode)), 3)
    for position, pixels in expected.items():
        for slot, pixel in enumerate(pixels):
            real = True if valid is None else bool(valid[(*position, slot)])
            assert real == (pixel is not None)
            if pixel is not None:
                at = (slice(None), *position, slot)
                assert torch.equal(slots[at], memory[(slice(None), *pixel)])


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_windows_see_every_pixel(source, target):
    if any(s < t for s, t in zip(source, target, strict=True)):
        pytest.skip("up-sampled")
    seen = naive_slots(torch.zeros(1, *source, 1), target, "space_to_depth").values()
    pixels = set(itertools.chain.from_iterable(seen)) - {None}
    assert pixels == set(itertools.product(*map(range, source)))


def test_space_to_depth_by_two_is_four_strided_slices():
    memory = torch.randn(2, 6, 8, 3)
    slots, valid = gather_slots(memory, (3, 4), "space_to_depth")
    assert valid is None
    offsets = window_offsets((6, 8), (3, 4), "space_to_depth")
    assert offsets == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for slot, (row, column) in enumerate(offsets):
        assert torch.equal(slots[..., slot, :], memory[:, row::2, column::2])


def test_space_to_depth_by_one_is_nearest():
    memory = torch.randn(2, 3, 5, 4)
    one, _ = gather_slots(memory, (3, 5), "space_to_depth")
    assert torch.equal(one, gather_slots(memory, (3, 5), "nearest")[0])
    assert torch.equal(one[..., 0, :], memory)


@pytest.mark.parametrize(("source", "target"), [((7, 9), (3, 2)), ((2, 3), (5, 9))])
def test_nearest_equals_interpolate(source, target):
    memory = torch.randn(2, *source, 4)
    expected = F.interpolate(memory.movedim(-1, 1), size=target, mode="nearest").movedim(1, -1)
    assert torch.equal(gather_slots(memory, target, "nearest")[0][..., 0, :], expected)


@pytest.mark.parametrize(("source", "target"), [((5, 7), (3, 2)), ((2, 3), (3, 5))])
def test_gradients_against_finite_differences(source, target):
    memory = torch.randn(1, *source, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda m: gather_slots(m, target, "space_to_depth")[0].square(), memory
    )
