"""Sort-of-CLEVR (Santoro et al. 2017, section 4.2), generated in one vectorised pass.

75 x 75 white images with one object of each of six colours, a square (11 x 11) or a disc (radius
5) by a fair coin, centres at least 10 pixels apart. Each image has 10 relational and 10
non-relational questions. A question is 11 bits: colour (6), kind (relational or not), subtype (3).

| kind | subtype | question | answers |
|---|---|---|---|
| non-relational | 0 | shape of the object | rectangle, circle |
| non-relational | 1 | is it in the left half | yes, no |
| non-relational | 2 | is it in the upper half | yes, no |
| relational | 0 | shape of the closest other object | rectangle, circle |
| relational | 1 | shape of the furthest other object | rectangle, circle |
| relational | 2 | how many objects have its shape, itself included | 1 .. 6 |

Knowing the question alone, the best relational accuracy is (1/2 + 1/2 + 10/32) / 3 = 43.75 %, so
below 44 % nothing relational was learned: with the empirical answers, 43.9 %.

Differences from the public generators: "closest" excludes the object itself (they replace its
distance by 999, so that 6.9 % of the objects are their own neighbour); shapes and questions are
random (the NFM authors' file seeds them with a constant, so all objects are circles and all images
have the same questions); N held-out combinations are N colours that have one fixed shape in
training and either shape at test, colour bits unchanged.

Letters: N images, 6 objects, Q questions, H = W = 75.
"""

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SIZE = 75
OBJECTS = 6
RADIUS = 5
MIN_DISTANCE = 10
QUESTIONS = 10
"""Questions of each kind per image."""
QUESTION_BITS = OBJECTS + 2 + 3
ANSWERS = ("yes", "no", "rectangle", "circle", "1", "2", "3", "4", "5", "6")
YES, NO, RECTANGLE, CIRCLE, ONE = 0, 1, 2, 3, 4
SUBTYPES = (("shape", "left", "upper"), ("closest", "furthest", "count"))
"""By kind: non-relational, relational."""
COLOURS = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 156, 0),
    (128, 128, 128),
    (255, 255, 0),
)
"""Red, green and blue of each object."""
QUESTION_ONLY_CEILING = 0.439
"""Best possible relational accuracy without the image."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenes:
    """Images, questions and answers.

    Kind 0 of `colours`, `subtypes` and `answers` is non-relational, kind 1 relational.
    """

    centres: NDArray[np.int64]
    """[N, 6, 2]: x (column) and y (row) of each object, in the order of the colours."""
    circles: NDArray[np.bool_]
    """[N, 6]: whether it is a disc."""
    images: NDArray[np.uint8]
    """[N, 3, 75, 75]: red, green and blue planes."""
    colours: NDArray[np.int64]
    """[N, 2, 10]: the object that the question is about."""
    subtypes: NDArray[np.int64]
    """[N, 2, 10]."""
    answers: NDArray[np.int64]
    """[N, 2, 10]: index into `ANSWERS`."""


def make_scenes(count: int, *, seed: int, held_out: int = 0) -> Scenes:
    """Generate scenes.

    Args:
        count: N.
        seed: equal seeds give equal scenes.
        held_out: this many of the 12 colour-shape combinations never occur.

    Raises:
        ValueError: `held_out` outside 0 .. 3.
    """
    if not 0 <= held_out <= 3:
        raise ValueError(f"held_out: {held_out} is not allowed (allowed: 0, 1, 2, 3)")
    rng = np.random.default_rng(seed)
    centres = _draw_centres(rng, count)
    circles = rng.random((count, OBJECTS)) < 0.5
    circles[:, :held_out] = ~held_out_shapes(held_out)
    shape = (count, 2, QUESTIONS)
    colours = rng.integers(OBJECTS, size=shape)
    subtypes = rng.integers(3, size=shape)
    return Scenes(
        centres=centres,
        circles=circles,
        images=_render(centres, circles),
        colours=colours,
        subtypes=subtypes,
        answers=_answer(centres, circles, colours, subtypes),
    )


def held_out_shapes(held_out: int) -> NDArray[np.bool_]:
    """[N]: whether the disc is the shape that colour i never has in training."""
    return np.arange(held_out) % 2 == 0


def _draw_centres(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Place objects one by one; an object too close to an earlier one is drawn again."""
    centres = np.empty((count, OBJECTS, 2), dtype=np.int64)
    for index in range(OBJECTS):
        todo = np.arange(count)
        while todo.size:
            new = rng.integers(RADIUS, SIZE - RADIUS, size=(todo.size, 2))
            centres[todo, index] = new
            squared = ((centres[todo, :index] - new[:, None]) ** 2).sum(-1)  # [todo, index]
            todo = todo[(squared < MIN_DISTANCE**2).any(-1)]
    return centres


def _render(centres: NDArray[np.int64], circles: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Images [N, 3, H, W]; a later object is painted over an earlier one."""
    images = np.full((len(centres), 3, SIZE, SIZE), 255, dtype=np.uint8)
    flat = images.reshape(-1)
    rows, columns = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
    offsets = rows * SIZE + columns
    disc = offsets[rows**2 + columns**2 <= RADIUS**2]
    starts = np.arange(len(centres))[:, None] * 3 * SIZE**2
    middles = starts + centres[..., 1] * SIZE + centres[..., 0]
    for index, planes in enumerate(COLOURS):
        for circle, stamp in ((False, offsets.ravel()), (True, disc)):
            middle = middles[circles[:, index] == circle, index]
            target = middle[:, None] + stamp
            for plane, value in enumerate(planes):
                flat[target + plane * SIZE**2] = value
    return images


def _answer(
    centres: NDArray[np.int64],
    circles: NDArray[np.bool_],
    colours: NDArray[np.int64],
    subtypes: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Answers [N, 2, Q], looked up in a table of all answers for all objects."""
    count = len(centres)
    shape = np.where(circles, CIRCLE, RECTANGLE)  # [N, 6]
    squared = ((centres[:, :, None] - centres[:, None]) ** 2).sum(-1)  # [N, 6, 6]
    others = squared + np.eye(OBJECTS, dtype=np.int64) * (2 * SIZE**2 + 1)
    same = (circles[:, :, None] == circles[:, None]).sum(-1)  # [N, 6]
    table = np.empty((count, 2, 3, OBJECTS), dtype=np.int64)
    table[:, 0, 0] = shape
    table[:, 0, 1] = np.where(centres[..., 0] < SIZE / 2, YES, NO)
    table[:, 0, 2] = np.where(centres[..., 1] < SIZE / 2, YES, NO)
    table[:, 1, 0] = np.take_along_axis(shape, others.argmin(-1), axis=1)
    table[:, 1, 1] = np.take_along_axis(shape, squared.argmax(-1), axis=1)
    table[:, 1, 2] = ONE - 1 + same
    images, kinds = np.arange(count)[:, None, None], np.arange(2)[:, None]
    return table[images, kinds, subtypes, colours]


def encode_questions(scenes: Scenes) -> Tensor:
    """Question bits, float [N, 2, Q, 11]."""
    bits = np.zeros((*scenes.colours.shape, QUESTION_BITS), dtype=np.float32)
    images, kinds, asked = np.ogrid[tuple(map(slice, scenes.colours.shape))]
    bits[images, kinds, asked, scenes.colours] = 1.0
    bits[images, kinds, asked, OBJECTS + kinds] = 1.0
    bits[images, kinds, asked, OBJECTS + 2 + scenes.subtypes] = 1.0
    return torch.from_numpy(bits)


def touches_held_out(scenes: Scenes, held_out: int) -> NDArray[np.bool_]:
    """[N, 2, Q]: whether the question is about a combination that training never shows."""
    unseen = np.zeros_like(scenes.circles)
    unseen[:, :held_out] = scenes.circles[:, :held_out] == held_out_shapes(held_out)
    return unseen[np.arange(len(unseen))[:, None, None], scenes.colours]
