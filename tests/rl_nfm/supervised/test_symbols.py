"""Letters in the manner of Synbols: poses, gradients and what is drawn."""

import math
import shutil

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from rl_nfm.supervised.cli import main
from rl_nfm.supervised.data import symbols
from rl_nfm.supervised.data.datasets import load_images
from rl_nfm.supervised.data.symbols import LETTERS, SIDE, load_glyphs, make_symbols
from rl_nfm.supervised.tasks.classification import PRESETS, Classifier, ResNetConfig


@pytest.fixture(scope="module")
def one_font(tmp_path_factory):
    """A folder with one font that has all letters, one that has not, and a file that is none."""
    folder = tmp_path_factory.mktemp("fonts")
    own = matplotlib.get_data_path() + "/fonts/ttf/"
    (folder / "inner").mkdir()
    shutil.copy(own + "DejaVuSerif.ttf", folder / "inner")
    shutil.copy(own + "cmr10.ttf", folder)
    (folder / "broken.ttf").write_bytes(b"no font")
    (folder / "readme.txt").write_text("fonts")
    return folder


@pytest.fixture(scope="module")
def glyphs(one_font):
    return load_glyphs(one_font)


def test_letters_are_synbols_number_of_classes():
    assert len(set(LETTERS)) == len(LETTERS) == 48
    assert LETTERS.lower() == LETTERS


def test_a_folder_of_fonts_gives_those_that_have_all_letters(glyphs):
    assert glyphs.faces.tolist() == [[0, 0]]
    assert glyphs.masks.shape == (48, 1, 96, 96)
    filled = glyphs.masks.sum((1, 2, 3))
    assert filled.min() > 96 * 96 * 0.05
    assert len(torch.unique(glyphs.masks, dim=0)) == 48


def test_no_font_is_one_line(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"data_folder: no font in .* has all of"):
        make_symbols(3, seed=0, fonts=tmp_path)


def test_own_fonts_have_bold_faces_and_all_letters():
    own = load_glyphs(None)
    assert own.faces.tolist() == [[2 * i, 2 * i + 1] for i in range(7)]
    assert len(torch.unique(own.masks, dim=0)) == 7 * 2 * 48
    ink = own.masks.sum((1, 2, 3)).view(7, 2, 48).mean(-1)
    assert (ink[:, 1] > ink[:, 0]).all()


def test_an_upright_letter_is_what_pillow_shrinks_it_to(glyphs):
    """Pillow's exact means as the oracle: no turn, and the longer side fills the picture.

    88 pixels of a glyph become 32, so each is repeated 4 times, and 11 x 11 are averaged.
    """
    inner = 96 - 2 * symbols._BORDER
    matrix = np.eye(2)[None].repeat(3, 0)
    centre = np.full((3, 2), 0.5)
    drawn = symbols._place(glyphs.masks[:3], matrix, centre)
    for mask, picture in zip(glyphs.masks[:3, 0], drawn, strict=True):
        border = symbols._BORDER
        ink = Image.fromarray((mask.numpy() * 255).astype(np.uint8))
        ink = ink.crop((border, border, border + inner, border + inner))
        fine = ink.resize((4 * inner, 4 * inner), Image.Resampling.NEAREST)
        expected = np.asarray(fine.reduce(4 * inner // SIDE)) / 255
        assert abs(picture.numpy() - expected).mean() < 0.01
        assert abs(picture.numpy() - expected).max() < 0.15


def test_ink_goes_by_the_area_of_the_transformation(glyphs):
    """Turned by any angle and sheared, size 0.5: a quarter of the ink; moved, it stays the same."""
    angle, letters = 0.7, torch.arange(0, 48, 5)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = (0.5 * turn @ np.array([[1, 0], [0.2, 1]]))[None].repeat(len(letters), 0)
    whole = glyphs.masks[letters].sum((1, 2, 3)) / (96 - 2 * symbols._BORDER) ** 2
    for centre in (0.5, 0.45):
        drawn = symbols._place(glyphs.masks[letters], matrix, np.full((len(letters), 2), centre))
        torch.testing.assert_close(drawn.mean((1, 2)), whole * 0.25, rtol=0.02, atol=0)


def test_letters_stay_inside_where_there_is_room(glyphs):
    rng = np.random.default_rng(3)
    corners = glyphs.corners[rng.integers(48, size=400)]
    matrix, centre = symbols._poses(corners, rng)
    outline = corners @ matrix.swapaxes(1, 2) + centre[:, None]
    span = outline.max(1) - outline.min(1)
    fits = (span < 1).all(1)
    assert 0.9 < fits.mean() < 1
    assert outline[fits].min() > 0
    assert outline[fits].max() < 1
    # sizes: the longer side of the letter is 0.6 exp(0.2 z), so its logarithm has these moments
    size = np.log(np.sqrt(abs(np.linalg.det(matrix))) / 0.6)
    assert abs(size.mean()) < 4 * 0.2 / math.sqrt(400)
    assert abs(size.std() - 0.2) < 0.03


def naive_radial(point, first, last):
    """The largest t whose circle passes through the point, by trying many."""
    t = np.linspace(-30, 2 / 1.9, 400_001)
    centres = first + t[:, None] * (last - first)
    gap = np.linalg.norm(point - centres, axis=1) - (2 - 1.9 * t)
    crossing = np.nonzero(np.sign(gap[1:]) != np.sign(gap[:-1]))[0]
    return t[crossing[-1]]


def test_radial_gradients_are_cones():
    class Fixed:
        def __init__(self, circles):
            self.circles = circles

        def random(self, _):
            return self.circles

    rng = np.random.default_rng(0)
    circles, points = rng.random((2, 4, 1, 1, 2)), rng.random((1, 3, 3, 2))
    found = symbols._radial(points, 4, Fixed(circles))
    for k in range(4):
        for i, j in ((0, 0), (1, 2), (2, 1)):
            expected = naive_radial(points[0, i, j], circles[0, k, 0, 0], circles[1, k, 0, 0])
            assert found[k, i, j] == pytest.approx(expected, abs=2e-4)


def test_gradients_have_their_colours_where_they_should():
    rng = np.random.default_rng(1)
    colours = symbols._gradients(50, rng)
    assert colours.shape == (50, 3, SIDE, SIDE)
    assert colours.min() >= 0
    assert colours.max() <= 1
    steps = abs(np.diff(colours, axis=-1)).max((1, 2, 3))
    assert np.median(steps) < 0.1, "gradients change slowly"
    assert (colours.std((2, 3)).max(1) > 0.01).mean() > 0.9, "and do change"


def test_pictures_depend_on_the_seed_alone(one_font):
    pictures, labels = make_symbols(260, seed=4, fonts=one_font)  # more than one batch
    again, same = make_symbols(260, seed=4, fonts=one_font)
    other, _ = make_symbols(260, seed=5, fonts=one_font)
    assert np.array_equal(pictures, again)
    assert np.array_equal(labels, same)
    assert not np.array_equal(pictures, other)
    assert pictures.shape == (260, 3, SIDE, SIDE)
    assert set(labels) <= set(range(48))
    # contrast is stretched before the noise
    assert (pictures.min((1, 2, 3)) < 10).all()
    assert (pictures.max((1, 2, 3)) > 245).all()


def test_the_last_fifth_tests(one_font):
    data = load_images("symbols", one_font, num_symbols=505)
    assert (len(data.train_images), len(data.test_images), data.classes) == (404, 101, 48)


@pytest.mark.parametrize(
    ("width", "alone", "with_nfm"),
    [(12, 177_468, 206_836), (24, 698_760, 757_108), (64, 4_919_920, 5_074_868)],
)
def test_parameters_are_those_of_table_9(width, alone, with_nfm):
    """The paper: 177k -> 206k, 698k -> 757k, 4M -> 5M."""
    nets = ResNetConfig(depth=PRESETS["symbols"].depth, width=width, stem="pixel")
    counts = [
        sum(p.numel() for p in Classifier(nets, nfm, in_channels=3, classes=48).parameters())
        for nfm in (None, PRESETS["symbols"].nfm)
    ]
    assert counts == [alone, with_nfm]


def test_classification_runs_on_symbols(tmp_path, one_font):
    words = ["--preset", "symbols", "--num-symbols", "500", "--epochs", "1", "--width", "4"]
    words += ["--data-folder", str(one_font), "--out", str(tmp_path / "run")]
    assert main(["classification", *words]) == 0
    assert (tmp_path / "run" / "result.json").is_file()
