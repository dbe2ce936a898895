"""The physics and the pictures of bouncing balls.

Checked once against an engine that no one here wrote, pymunk 7.3.1 with 2000 steps a frame: the 24
boxes of all sets agreed within 0.07 pixels after 25 frames, most of them within 0.01. Here:
conservation laws, worked examples and twins.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from rl_nfm.supervised.data.bouncing_balls import (
    BOX,
    CURTAIN,
    SETS,
    BallSequences,
    make_sequences,
    place,
    render,
    simulate,
)


def scene(name, count, seed):
    """Positions, velocities, radii and masses of `count` boxes with the most balls of a set."""
    rng, kind = np.random.default_rng(seed), SETS[name]
    kinds = rng.integers(len(kind.radii), size=(count, max(kind.counts)))
    radii, masses = np.asarray(kind.radii)[kinds], np.asarray(kind.masses)[kinds]
    positions = place(radii, rng)
    return positions, 1.5 * rng.standard_normal(positions.shape), radii, masses


def energies(velocities, masses):
    return (0.5 * masses[:, None] * np.square(velocities).sum(-1)).sum(-1)  # [N, T]


@pytest.mark.parametrize("name", SETS)
def test_energy_is_kept_and_nothing_overlaps(name):
    x, v, radii, masses = scene(name, 19, 1)
    positions, velocities = simulate(x, v, radii, masses, 101)
    before = energies(v[:, None], masses)
    np.testing.assert_allclose(energies(velocities, masses), np.tile(before, 101), rtol=1e-12)
    assert np.abs(velocities[:, -1] - v).max() > 1, "something has happened"
    assert (positions > radii[:, None, :, None] - 1e-9).all()
    assert (positions < BOX - radii[:, None, :, None] + 1e-9).all()
    for a, b in itertools.combinations(range(x.shape[1]), 2):
        distance = np.linalg.norm(positions[:, :, a] - positions[:, :, b], axis=-1)
        assert (distance > (radii[:, a] + radii[:, b])[:, None] - 1e-9).all()


def test_arguments_are_not_changed():
    given = scene("4balls", 3, 2)
    before = [part.copy() for part in given]
    simulate(*given, 9)
    for old, new in zip(before, given, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", SETS)
def test_backwards_in_time_leads_to_the_start(name):
    x, v, radii, masses = scene(name, 9, 3)
    positions, velocities = simulate(x, v, radii, masses, 31)
    back, last = simulate(positions[:, -1], -velocities[:, -1], radii, masses, 31)
    np.testing.assert_allclose(back[:, ::-1], positions, atol=1e-6)
    np.testing.assert_allclose(last[:, -1], -v, atol=1e-6)


def test_a_lone_ball_is_reflected_like_light():
    x, v, radius = np.array([[[7.0, 30.0]]]), np.array([[[-3.7, 5.3]]]), 5.0
    positions, _ = simulate(x, v, np.full((1, 1), radius), np.ones((1, 1)), 60)
    room = BOX - 2 * radius
    free = (x[0, 0] - radius + np.arange(60)[:, None] * v[0, 0]) % (2 * room)
    np.testing.assert_allclose(positions[0, :, 0], radius + np.minimum(free, 2 * room - free))


def test_a_light_ball_meets_a_heavy_one_at_rest():
    """Masses 1 and 6, one behind the other: the velocities 1 and 0 become -5/7 and 2/7.

    They touch when the light ball has come from 20 to 40 - 4 - 6 = 30, after ten frames.
    """
    x = np.array([[[20.0, 32.0], [40.0, 32.0]]])
    v = np.array([[[1.0, 0.0], [0.0, 0.0]]])
    positions, velocities = simulate(x, v, np.array([[4.0, 6.0]]), np.array([[1.0, 6.0]]), 13)
    np.testing.assert_allclose(velocities[0, -1], [[-5 / 7, 0], [2 / 7, 0]], atol=1e-12)
    np.testing.assert_allclose(positions[0, -1], [[30 - 10 / 7, 32], [40 + 4 / 7, 32]])
    np.testing.assert_allclose(positions[0, 10, 0], [30, 32])


def test_an_oblique_collision_keeps_momentum_and_the_tangential_velocities():
    """The centres are at an angle of 45 degrees when the balls touch."""
    along = np.array([1.0, 1.0]) / math.sqrt(2)
    first = np.array([20.0, 20.0])
    second = first + (3 + 5) * along
    before = np.array([[0.9, 0.2], [-0.4, 0.1]])
    masses = np.array([2.0, 7.0])
    start = np.stack([first, second]) - 2.5 * before
    _, velocities = simulate(
        start[None], before[None], np.array([[3.0, 5.0]]), masses[None], frames=6
    )
    after = velocities[0, -1]
    np.testing.assert_allclose(masses @ after, masses @ before)
    across = np.array([1.0, -1.0])
    np.testing.assert_allclose(after @ across, before @ across)
    closing = (before[0] - before[1]) @ along
    assert closing > 0
    assert (after[0] - after[1]) @ along == pytest.approx(-closing)


def naive(positions, velocities, radii, masses, frames):
    """One box in plain Python: the next event of all, one after the other."""
    x, v = positions.copy(), velocities.copy()
    n, shown, left = len(x), [positions.copy()], 1.0
    while len(shown) < frames:
        time, event = left, None
        for ball, axis in itertools.product(range(n), range(2)):
            if v[ball, axis]:
                wall = BOX - radii[ball] if v[ball, axis] > 0 else radii[ball]
                until = max((wall - x[ball, axis]) / v[ball, axis], 0.0)
                if until < time:
                    time, event = until, (ball, axis)
        for a, b in itertools.combinations(range(n), 2):
            d, w = x[a] - x[b], v[a] - v[b]
            if d @ w < 0:
                roots = np.roots([w @ w, 2 * d @ w, d @ d - (radii[a] + radii[b]) ** 2])
                if np.isreal(roots).all() and max(roots.real.min(), 0.0) < time:
                    time, event = max(roots.real.min(), 0.0), {a, b}
        x, left = x + v * time, left - time
        if event is None:
            shown.append(x.copy())
            left = 1.0
        elif isinstance(event, tuple):
            v[event] *= -1
        else:
            a, b = event
            centre = (masses[a] * v[a] + masses[b] * v[b]) / (masses[a] + masses[b])
            normal = (x[a] - x[b]) / np.linalg.norm(x[a] - x[b])
            for ball in (a, b):  # mirrored as seen from the centre of mass
                v[ball] -= 2 * ((v[ball] - centre) @ normal) * normal
    return np.stack(shown)


@pytest.mark.parametrize("name", SETS)
def test_boxes_side_by_side_are_those_of_a_naive_twin(name):
    x, v, radii, masses = scene(name, 3, 4)
    positions, _ = simulate(x, v, radii, masses, 17)
    for box in range(len(x)):
        twin = naive(x[box], v[box], radii[box], masses[box], 17)
        np.testing.assert_allclose(positions[box], twin, atol=1e-5)


def test_places_without_contact_or_an_error():
    rng = np.random.default_rng(0)
    radii = rng.uniform(3, 8, (50, 7))
    places = place(radii, rng)
    assert ((places > radii[..., None]) & (places < BOX - radii[..., None])).all()
    for a, b in itertools.combinations(range(7), 2):
        apart = np.linalg.norm(places[:, a] - places[:, b], axis=-1)
        assert (apart >= radii[:, a] + radii[:, b]).all()
    with pytest.raises(ValueError, match="no room for 5 balls"):
        place(np.full((2, 5), 20.0), rng)


def test_sequences_depend_on_the_seed_alone():
    first, again = (make_sequences("678balls", 41, 7, [2]) for _ in range(2))
    assert torch.equal(first.positions, again.positions)
    assert torch.equal(first.radii, again.radii)
    assert not torch.equal(first.positions, make_sequences("678balls", 41, 7, [1]).positions)


@pytest.mark.parametrize("name", SETS)
def test_sets_have_their_numbers_and_kinds_of_balls(name):
    kind, sequences = SETS[name], make_sequences(name, 200, 2, [0])
    assert sequences.positions.shape == (200, 2, max(kind.counts), 2)
    numbers = (sequences.radii > 0).sum(1)
    assert numbers.unique().tolist() == sorted(kind.counts)
    kinds = sequences.radii[sequences.radii > 0].unique().tolist()
    assert kinds == pytest.approx(list(kind.radii))
    assert (sequences.curtains is None) == (not kind.curtain)


def test_squared_speeds_sum_to_that_of_the_set():
    """From a frame to the next, in the boxes where no ball changes its velocity."""
    sequences = make_sequences("curtain", 60, 3, [5])
    steps = sequences.positions.diff(dim=1)
    straight = (steps[:, 0] - steps[:, 1]).abs().amax((1, 2)) < 1e-4
    assert straight.sum() > 10
    sums = steps[straight, 0].square().sum((1, 2))
    torch.testing.assert_close(sums, torch.full_like(sums, 8.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("size", [24, 7])
def test_pictures_are_those_of_a_naive_twin(size):
    sequences = BallSequences(
        positions=torch.tensor([[[[20.0, 9.0], [50.3, 44.1], [-64, -64]]], [[[31, 31]] * 3]]),
        radii=torch.tensor([[5.12, 13.0, 0.0], [7.68, 3.0, 0.0]]),
        curtains=torch.tensor([[40.0, 30.0], [0.0, 0.0]]),
    )
    frames = render(sequences, size)
    assert frames.shape == (2, 1, size, size)
    for box, row, column in np.ndindex(2, size, size):
        x, y = ((place + 0.5) * BOX / size for place in (column, row))
        lit = any(
            math.hypot(x - float(ball_x), y - float(ball_y)) < float(radius)
            for (ball_x, ball_y), radius in zip(
                sequences.positions[box, 0], sequences.radii[box], strict=True
            )
        )
        assert sequences.curtains is not None
        left, top = sequences.curtains[box].tolist()
        hidden = left <= x < left + CURTAIN and top <= y < top + CURTAIN
        assert frames[box, 0, row, column] == (lit and not hidden)


def test_a_ball_has_the_area_of_a_disc_and_a_subset_is_drawn_alike():
    sequences = make_sequences("4balls", 30, 5, [0])
    frames = render(sequences, 64)
    areas = (math.pi * sequences.radii.square()).sum(1)
    torch.testing.assert_close(frames.sum((2, 3)).mean(1), areas, rtol=0.02, atol=0)
    rows = torch.tensor([7, 3])
    assert torch.equal(render(sequences[rows], 64), frames[rows])
