"""Sequences of balls that bounce off each other and off the walls of a box, from a seed.

The data sets of Relational Neural Expectation Maximization (van Steenkiste et al. 2018), on which
RIMs (Goyal et al. 2019, section 4.2 and appendix D.4) were compared with LSTMs: `4balls` (light and
heavy balls), `678balls` (six to eight of them) and `curtain` (three equal balls and an invisible
square that hides what is behind it). Their generator is not public, and the files are not shipped
anywhere that needs no network, so the sizes were measured in the animations of the true sequences
that the authors published beside their code (500 frames each):

* radii 5.12 and 6.4 pixels of 64 (`curtain`: 7.67, here 7.68), hard edges;
* a heavy ball has six times the mass of a light one: 42 collisions of a light with a heavy ball
  gave ratios of 6.06 in the median, half of them between 5.8 and 6.4;
* the curtain is a square of 28 pixels, anywhere in the frame and at rest;
* the sum of the squared speeds is about 4 square pixels a frame (`curtain`: 8), however many balls
  there are, so the first velocities here are normal numbers scaled to that sum.

Collisions are elastic and without friction. The balls move by exact events, so energy is kept to
rounding and no ball ever enters another one or a wall.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BOX = 64.0
"""Side of the box; lengths are in pixels of the original frames."""
CURTAIN = 28.0
"""Side of the square behind which nothing is seen."""
_CHUNK = 2000
_MAX_TRIES = 1000

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BallSet:
    """What distinguishes one data set from another."""

    counts: Sequence[int]
    """Numbers of balls, equally likely."""
    radii: Sequence[float]
    """Radius of each kind of ball; kinds are equally likely."""
    masses: Sequence[float]
    """Mass of each kind."""
    squared_speeds: float
    """Sum of the balls' squared speeds at the start, in square pixels per frame."""
    curtain: bool = False


SETS = {
    "4balls": BallSet(counts=(4,), radii=(5.12, 6.4), masses=(1.0, 6.0), squared_speeds=4.0),
    "678balls": BallSet(counts=(6, 7, 8), radii=(5.12, 6.4), masses=(1.0, 6.0), squared_speeds=4.0),
    "curtain": BallSet(counts=(3,), radii=(7.68,), masses=(1.0,), squared_speeds=8.0, curtain=True),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BallSequences:
    """Where the balls of N sequences of T frames are; `render` draws them.

    Sequences of fewer balls than n end in balls of radius 0, which are not drawn.
    """

    positions: Tensor
    """Float [N, T, n, 2], in pixels: x to the right, y downwards."""
    radii: Tensor
    """Float [N, n]."""
    curtains: Tensor | None
    """Float [N, 2], the left upper corners of the curtains; None: nothing is hidden."""

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: Tensor) -> "BallSequences":
        """The sequences of some rows, int64 [M] on the same device."""
        curtains = None if self.curtains is None else self.curtains[rows]
        return BallSequences(
            positions=self.positions[rows], radii=self.radii[rows], curtains=curtains
        )

    def to(self, device: torch.device) -> "BallSequences":
        """The same on another device."""
        curtains = None if self.curtains is None else self.curtains.to(device)
        return BallSequences(
            positions=self.positions.to(device), radii=self.radii.to(device), curtains=curtains
        )


def render(sequences: BallSequences, size: int) -> Tensor:
    """Draw the frames: float32 [N, T, size, size] of 0 and 1, rows from top to bottom.

    A pixel is 1 if its centre is inside a ball and not behind the curtain. Sizes other than 64
    are the same box at another resolution.
    """
    centres = (torch.arange(size, device=sequences.positions.device) + 0.5) * (BOX / size)
    squares = (sequences.positions[..., None] - centres).square()  # [N, T, n, 2, size]
    across, down = squares.unbind(-2)
    reach = sequences.radii.square()[:, None, :, None, None]
    shape = (*sequences.positions.shape[:2], size, size)
    lit = torch.zeros(shape, dtype=torch.bool, device=centres.device)
    for ball in range(sequences.radii.shape[1]):
        lit |= down[:, :, ball, :, None] + across[:, :, ball, None, :] < reach[:, :, ball]
    if sequences.curtains is not None:
        offset = centres - sequences.curtains[..., None]  # [N, 2, size]
        columns, rows = ((offset >= 0) & (offset < CURTAIN)).unbind(1)
        lit &= ~(rows[:, :, None] & columns[:, None, :])[:, None]
    return lit.float()


def make_sequences(name: str, count: int, frames: int, seed: Sequence[int]) -> BallSequences:
    """Simulate new sequences.

    Args:
        name: one of `SETS`.
        count: how many sequences.
        frames: frames of each, the first one at the start of the motion.
        seed: of numpy's generator; the first k of `count` sequences are not those of `count` = k.
    """
    kind, rng = SETS[name], np.random.default_rng(seed)
    numbers = rng.choice(kind.counts, count)
    most = max(kind.counts)
    positions = np.full((count, frames, most, 2), -BOX)
    radii = np.zeros((count, most))
    for number in kind.counts:
        for rows in _chunks(np.flatnonzero(numbers == number)):
            kinds = rng.integers(len(kind.radii), size=(len(rows), number))
            size, mass = np.asarray(kind.radii)[kinds], np.asarray(kind.masses)[kinds]
            start = place(size, rng)
            velocity = rng.standard_normal(start.shape)
            total = np.square(velocity).sum((1, 2), keepdims=True)
            velocity *= np.sqrt(kind.squared_speeds / total)
            positions[rows, :, :number] = simulate(start, velocity, size, mass, frames)[0]
            radii[rows, :number] = size
    curtains = rng.uniform(0, BOX - CURTAIN, (count, 2)) if kind.curtain else None
    return BallSequences(
        positions=torch.from_numpy(positions).float(),
        radii=torch.from_numpy(radii).float(),
        curtains=None if curtains is None else torch.from_numpy(curtains).float(),
    )


def _chunks(rows: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Pieces that keep the arrays of a simulation in a processor's cache."""
    return [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]


def place(radii: Floats, rng: np.random.Generator) -> Floats:
    """Random centres [N, n, 2] at which balls of radii [N, n] touch neither walls nor each other.

    Raises:
        ValueError: there is no room for the balls of some row.
    """
    positions = np.zeros((*radii.shape, 2))
    for ball in range(radii.shape[1]):
        rows = np.arange(len(radii))
        for _ in range(_MAX_TRIES):
            radius = radii[rows, ball, None]
            positions[rows, ball] = rng.uniform(radius, BOX - radius, (len(rows), 2))
            apart = positions[rows, :ball] - positions[rows, ball, None]
            least = radii[rows, :ball] + radius
            rows = rows[(np.square(apart).sum(-1) < np.square(least)).any(1)]
            if not len(rows):
                break
        else:
            raise ValueError(f"no room for {radii.shape[1]} balls in a box of {BOX:g} pixels")
    return positions


def simulate(
    positions: Floats, velocities: Floats, radii: Floats, masses: Floats, frames: int
) -> tuple[Floats, Floats]:
    """Move N boxes of n balls by exact events until each has had all its frames.

    Every box has its own clock and goes on to its next event: a frame, a ball that reaches a wall,
    or two balls that reach each other.

    Args:
        positions: [N, n, 2], in pixels; not changed.
        velocities: [N, n, 2], in pixels per frame; not changed.
        radii: [N, n].
        masses: [N, n].
        frames: T; the first frame shows `positions`.

    Returns:
        Positions and velocities at the frames, both [N, T, n, 2].
    """
    x, v = positions.copy(), velocities.copy()
    first, second = np.triu_indices(x.shape[1], k=1)
    track, speed = (np.empty((len(x), frames, *x.shape[1:])) for _ in range(2))
    track[:, 0], speed[:, 0] = x, v
    rows, frame, left = np.arange(len(x)), np.ones(len(x), int), np.ones(len(x))
    while len(rows):
        if not (moving := frame < frames).all():  # some boxes have had all their frames
            rows, frame, left = rows[moving], frame[moving], left[moving]
            x, v = x[moving], v[moving]
            continue
        radius, mass = radii[rows], masses[rows]
        walls = _times_to_walls(x, v, radius).reshape(len(x), -1)  # [M, n * 2]
        pairs = _times_to_pairs(x, v, radius, first, second)
        times = np.concatenate([left[:, None], walls, pairs], axis=1)
        event = times.argmin(1)
        step = times[np.arange(len(x)), event]
        x += v * step[:, None, None]
        left -= step
        shown = np.flatnonzero(event == 0)
        track[rows[shown], frame[shown]], speed[rows[shown], frame[shown]] = x[shown], v[shown]
        frame[shown] += 1
        left[shown] = 1.0
        at_wall = np.flatnonzero((event > 0) & (event <= walls.shape[1]))
        ball, axis = np.divmod(event[at_wall] - 1, 2)
        v[at_wall, ball, axis] *= -1.0
        met = np.flatnonzero(event > walls.shape[1])
        pair = event[met] - 1 - walls.shape[1]
        _collide(x, v, mass, met, (first[pair], second[pair]))
    return track, speed


def _times_to_walls(x: Floats, v: Floats, radii: Floats) -> Floats:
    """Time until each ball reaches the wall that it moves towards, per axis: [N, n, 2]."""
    radius = radii[..., None]
    way = np.where(v > 0, BOX - radius - x, x - radius)
    time = np.full_like(way, np.inf)
    np.divide(way, np.abs(v), out=time, where=v != 0)
    return np.maximum(time, 0.0)  # rounding may leave a ball a trifle beyond


def _times_to_pairs(
    x: Floats, v: Floats, radii: Floats, first: NDArray[np.intp], second: NDArray[np.intp]
) -> Floats:
    """Time until the balls of each pair touch, infinite if they do not: [N, pairs].

    The smaller root of |d + t w|^2 = (r + s)^2 for distance d and relative velocity w.
    """
    d, w = x[:, first] - x[:, second], v[:, first] - v[:, second]
    reach = radii[:, first] + radii[:, second]
    approach = -(d * w).sum(-1)
    gap = np.square(d).sum(-1) - np.square(reach)
    discriminant = np.square(approach) - np.square(w).sum(-1) * gap
    meets = (approach > 0) & (discriminant >= 0)
    time = np.full_like(gap, np.inf)
    divisor = approach + np.sqrt(np.where(meets, discriminant, 0.0))  # this form cancels nothing
    np.divide(gap, divisor, out=time, where=meets)
    return np.maximum(time, 0.0)


def _collide(
    x: Floats,
    v: Floats,
    masses: Floats,
    rows: NDArray[np.intp],
    pair: tuple[NDArray[np.intp], NDArray[np.intp]],
) -> None:
    """Elastic collisions of one pair in each of some rows: changes `v` [N, n, 2] in place."""
    a, b = pair
    normal = x[rows, a] - x[rows, b]
    normal /= np.sqrt(np.square(normal).sum(-1, keepdims=True))
    closing = ((v[rows, a] - v[rows, b]) * normal).sum(-1, keepdims=True)
    mass_a, mass_b = masses[rows, a, None], masses[rows, b, None]
    impulse = 2.0 * closing / (mass_a + mass_b) * normal
    v[rows, a] -= mass_b * impulse
    v[rows, b] += mass_a * impulse
