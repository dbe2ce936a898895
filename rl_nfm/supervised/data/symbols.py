"""Pictures of letters in many fonts, colours and poses, in the manner of Synbols' default data.

Synbols (Lacoste et al. 2020, arXiv 2009.06415) draws one of 48 lower-case letters, plain and
accented, on 32 x 32 pixels. What varies, and how, is taken from its `basic_attribute_sampler`:

- font, bold or not, slanted or not (y + 0.2 x), rotation N(0, 0.3) in radians;
- size: the longer side of the unrotated letter is 0.6 exp(N(0, 0.2)) of the picture's side;
- position: uniform over 0.9 of the room that the letter's bounding box leaves;
- colours of letter and background: a gradient each, linear or radial, of three colours;
- half of the pictures are inverted; contrast is stretched to 0 .. 1; pixel noise N(0, 0.01).

The drawing is our own, without cairo: glyphs come from Pillow, and poses, gradients and smoothing
are computed for a whole batch. Differences: Synbols has over a thousand fonts, here there are the
seven that matplotlib brings, unless a folder of fonts is given; its 22 accented letters are those
that all its fonts have and are not listed anywhere, ours are the grave, acute, circumflex and
diaeresis of a, e, i, o, u, with c-cedilla and n-tilde.

Shapes: N pictures, K letters of one batch, G glyphs, M pixels of a glyph's side, S of a picture's.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rl_nfm.support.progress import Progress

LETTERS = "abcdefghijklmnopqrstuvwxyzàáâäçèéêëìíîïñòóôöùúûü"
"""48 of them; a picture's label is the position of its letter here."""
SIDE = 32
"""S."""
_GLYPH = 96
"""M; a letter fills all of it but a border."""
_BORDER = 4
_SMOOTHING = 4
"""Samples per pixel and axis, averaged."""
_BATCH = 250
_OWN_FONTS = (
    ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"),
    ("DejaVuSansMono-Oblique.ttf", "DejaVuSansMono-BoldOblique.ttf"),
    ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf"),
    ("DejaVuSerif-Italic.ttf", "DejaVuSerif-BoldItalic.ttf"),
    ("STIXGeneral.ttf", "STIXGeneralBol.ttf"),
    ("STIXGeneralItalic.ttf", "STIXGeneralBolIta.ttf"),
)
"""Regular and bold faces, in the folder of matplotlib's fonts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glyphs:
    """The letters of all faces, each scaled until its longer side fills the picture."""

    masks: Tensor
    """[G, 1, M, M] in 0 .. 1; glyph `face * 48 + letter`."""
    corners: NDArray[np.float64]
    """[G, 8, 2]: x and y of ink at the ends of eight directions, in longer sides from the centre.
    Their span after a transformation is that of the letter."""
    faces: NDArray[np.int64]
    """[fonts, 2]: the regular and the bold face of each font; the same where it has no bold."""


def make_symbols(
    count: int, *, seed: int, fonts: Path | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw pictures.

    Args:
        count: N.
        seed: of everything that varies.
        fonts: a folder with .ttf and .otf files (searched with its subfolders) to use instead of
            matplotlib's; files without all the letters are left out.

    Returns:
        RGB pictures uint8 [N, 3, 32, 32] and labels int64 [N].

    Raises:
        ValueError: there is no usable font in the folder.
    """
    glyphs = load_glyphs(fonts)
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(LETTERS), size=count)
    pictures = np.empty((count, 3, SIDE, SIDE), np.uint8)
    with Progress(count, unit="picture", name="symbols") as progress:
        for start in range(0, count, _BATCH):
            batch = slice(start, min(start + _BATCH, count))
            pictures[batch] = _draw(glyphs, labels[batch], rng)
            progress.advance(batch.stop - start)
    return pictures, labels


def load_glyphs(folder: Path | None) -> Glyphs:
    """The glyphs of matplotlib's fonts, or of those in a folder; see `make_symbols`."""
    paths, pairs = [], []
    for regular, bold in _own_fonts() if folder is None else _fonts_of(folder):
        pairs.append((len(paths), len(paths) + (bold is not None)))
        paths += [regular] if bold is None else [regular, bold]
    if not paths:
        raise ValueError(f"data_folder: no font in {folder} has all of {LETTERS!r}")
    masks = [_glyph(path, letter) for path in paths for letter in LETTERS]
    return Glyphs(
        masks=torch.from_numpy(np.stack(masks))[:, None],
        corners=np.stack([_corners(mask) for mask in masks]),
        faces=np.array(pairs, np.int64),
    )


def _own_fonts() -> Iterator[tuple[Path, Path]]:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for regular, bold in _OWN_FONTS:
        yield folder / regular, folder / bold


def _fonts_of(folder: Path) -> Iterator[tuple[Path, None]]:
    from fontTools.ttLib import TTFont, TTLibError

    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".ttf", ".otf"):
            try:
                with path.open("rb") as file, TTFont(file, lazy=True) as font:
                    known = font.getBestCmap() or {}
            except (TTLibError, OSError):
                continue
            if all(ord(letter) in known for letter in LETTERS):
                yield path, None


def _glyph(path: Path, letter: str) -> NDArray[np.float32]:
    """One letter [M, M] in 0 .. 1, centred, its longer side M less the border."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(path), 2 * _GLYPH)
    left, top, right, bottom = font.getbbox(letter)
    large = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(large).text((1 - left, 1 - top), letter, fill=255, font=font)
    ink = large.crop(large.getbbox())
    inner = _GLYPH - 2 * _BORDER
    scale = inner / max(ink.size)
    size = tuple(max(1, round(side * scale)) for side in ink.size)
    picture = Image.new("L", (_GLYPH, _GLYPH))
    corner = tuple((_GLYPH - side) // 2 for side in size)
    picture.paste(ink.resize((size[0], size[1]), Image.Resampling.BOX), (corner[0], corner[1]))
    return np.asarray(picture, np.float32) / np.float32(255)


def _corners(mask: NDArray[np.float32]) -> NDArray[np.float64]:
    """See `Glyphs.corners`."""
    y, x = np.nonzero(mask > 0.5)
    points = (np.stack([x, y], -1) + 0.5 - _GLYPH / 2) / (_GLYPH - 2 * _BORDER)
    angles = np.arange(8) * math.pi / 4
    directions = np.stack([np.cos(angles), np.sin(angles)])
    return points[(points @ directions).argmax(0)]


def _draw(glyphs: Glyphs, labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """One batch [K, 3, S, S]."""
    count = len(labels)
    font = rng.integers(len(glyphs.faces), size=count)
    glyph = glyphs.faces[font, rng.integers(2, size=count)] * len(LETTERS) + labels
    matrix, centre = _poses(glyphs.corners[glyph], rng)
    ink = _place(glyphs.masks[torch.from_numpy(glyph)], matrix, centre)[:, None].numpy()
    letter, background = _gradients(count, rng), _gradients(count, rng)
    picture = letter * ink + background * (1 - ink)
    inverted = rng.integers(2, size=(count, 1, 1, 1))
    picture = np.where(inverted, 1 - picture, picture)
    low = picture.min((1, 2, 3), keepdims=True)
    high = picture.max((1, 2, 3), keepdims=True)
    picture = (picture - low) / np.maximum(high - low, 1e-6)
    picture = picture + 0.01 * rng.standard_normal(picture.shape)
    return (picture.clip(0, 1) * 255).astype(np.uint8)


def _poses(
    corners: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Matrices [K, 2, 2] from a glyph's longer sides to picture sides, and centres [K, 2]."""
    count = len(corners)
    slant = 0.2 * rng.integers(2, size=count)
    angle = 0.3 * rng.standard_normal(count)
    size = 0.6 * np.exp(0.2 * rng.standard_normal(count))
    shift = rng.uniform(-0.9, 0.9, (count, 2))
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    shear = np.broadcast_to(np.eye(2), (count, 2, 2)).copy()
    shear[:, 1, 0] = slant
    matrix = size[:, None, None] * turn @ shear
    outline = corners @ matrix.swapaxes(1, 2)
    low, high = outline.min(1), outline.max(1)
    centre = (shift + 1) / 2 * (1 - (high - low)) - low
    return matrix, centre


def _place(masks: Tensor, matrix: NDArray[np.float64], centre: NDArray[np.float64]) -> Tensor:
    """How much of each pixel [K, S, S] the letters cover."""
    fine = SIDE * _SMOOTHING
    along = (torch.arange(fine) + 0.5) / fine
    points = torch.stack(torch.meshgrid(along, along, indexing="xy"), -1).view(1, -1, 2)
    inverse = torch.from_numpy(np.linalg.inv(matrix)).float()
    back = (points - torch.from_numpy(centre).float()[:, None]) @ inverse.transpose(1, 2)
    # from longer sides to -1 .. 1 of the whole mask
    grid = back * (2 * (_GLYPH - 2 * _BORDER) / _GLYPH)
    covered = F.grid_sample(masks, grid.view(len(masks), fine, fine, 2), align_corners=False)
    return F.avg_pool2d(covered, _SMOOTHING)[:, 0]


def _gradients(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Pictures [K, 3, S, S] of three random colours at 0, 1/2 and 1 of a line, or of a cone."""
    along = (np.arange(SIDE) + 0.5) / SIDE
    points = np.stack(np.meshgrid(along, along), -1)[None]  # [1, S, S, 2]
    position = np.where(
        rng.integers(2, size=(count, 1, 1)),
        _linear(points, count, rng),
        _radial(points, count, rng),
    ).clip(0, 1)[:, None]
    first, middle, last = rng.random((3, count, 3, 1, 1))
    lower, upper = (2 * position).clip(0, 1), (2 * position - 1).clip(0, 1)
    return first + (middle - first) * lower + (last - middle) * upper


def _linear(points: NDArray[Any], count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Place of each point [K, S, S] along a line of random start, direction and length."""
    start = rng.random((count, 1, 1, 2))
    angle = rng.uniform(0, 2 * math.pi, (count, 1, 1))
    length = 1 + 0.2 * rng.standard_normal((count, 1, 1))
    direction = np.stack([np.cos(angle), np.sin(angle)], -1)
    return ((points - start) * direction).sum(-1) / length


def _radial(points: NDArray[Any], count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Place of each point on the cone from a circle of radius 2 to one of radius 0.1, as in cairo.

    The largest t with |p - c0 - t (c1 - c0)| = r(t) and r(t) = 2 - 1.9 t >= 0. The smaller circle
    lies within the larger one, so the quadratic opens downwards, and it is 0 or more at the t
    where the radius vanishes: its smaller root is the one.
    """
    first, last = rng.random((2, count, 1, 1, 2))
    away, between, shrink = points - first, last - first, -1.9
    a = (between**2).sum(-1) - shrink**2
    b = (away * between).sum(-1) + 2.0 * shrink
    c = (away**2).sum(-1) - 4.0
    root = np.sqrt(np.maximum(b**2 - a * c, 0))
    both = np.stack([(b + root) / a, (b - root) / a])
    valid = 2.0 + shrink * both >= 0
    return np.where(valid, both, -np.inf).max(0)
