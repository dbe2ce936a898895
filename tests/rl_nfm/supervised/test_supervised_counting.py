import json

import pytest
import torch

from rl_nfm.supervised.registry import task_entry
from rl_nfm.supervised.tasks.counting import CountingConfig, CountingTask, make_grids

TINY = ["--epochs", "1", "--updates-per-epoch", "2", "--batch-size", "5", "--channels", "4"]
TINY += ["--test-examples", "21", "--device", "cpu"]


def marked(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of 2x3 pixels whose value names the image; labels are its last digit."""
    values = torch.arange(1, count + 1, dtype=torch.uint8)
    return values.view(-1, 1, 1, 1).expand(-1, 1, 2, 3), values.long() % 10


def test_grids_equal_a_naive_reading_of_their_cells():
    images, labels = marked(37)
    grids, counts = make_grids(images, labels, (2, 7), 50, 3, torch.Generator().manual_seed(0))
    assert grids.shape == (50, 1, 6, 9)
    for grid, count in zip(grids, counts, strict=True):
        found, filled = [0] * 10, 0
        for row in range(3):
            for column in range(3):
                cell = grid[0, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
                assert len(cell.unique()) == 1
                value = int(cell[0, 0])
                if value:
                    found[value % 10] += 1
                    filled += 1
        assert count.tolist() == found
        assert 2 <= filled <= 7


def test_every_number_of_digits_and_every_cell_occurs():
    images, labels = marked(9)
    grids, counts = make_grids(images, labels, (0, 4), 400, 2, torch.Generator().manual_seed(1))
    numbers = torch.bincount(counts.sum(1), minlength=5)
    assert (numbers > 50).all()
    cells = (grids[:, 0, ::2, ::3] > 0).float().mean(0)  # each is filled in half of the images
    assert cells.flatten().tolist() == pytest.approx([0.5] * 4, abs=0.08)


def test_a_full_grid_fits():
    images, labels = marked(5)
    _, counts = make_grids(images, labels, (9, 9), 3, 3)
    assert counts.sum(1).tolist() == [9, 9, 9]


def test_targets_and_images_of_the_two_tests():
    task = CountingTask(CountingConfig(target="count", test_examples=60), torch.device("cpu"))
    inside, beyond = task.tests["inside"][1].sum(1), task.tests["beyond"][1].sum(1)
    assert (inside.min(), inside.max()) == (1, 5)
    assert (beyond.min(), beyond.max()) == (6, 16)
    sums = CountingTask(CountingConfig(target="sum", test_examples=60), torch.device("cpu"))
    weights = torch.arange(10).float()
    assert torch.equal(task.tests["beyond"][0], sums.tests["beyond"][0])
    torch.testing.assert_close(task.tests["beyond"][1] @ weights, sums.tests["beyond"][1][:, 0])


def test_figures_of_a_model_that_knows_the_answer_and_of_one_that_is_off():
    task = CountingTask(CountingConfig(target="sum", test_examples=30), torch.device("cpu"))
    sets = [task.validation, *task.tests.values()]
    answers = torch.cat([targets for _, targets in sets])

    class Oracle(torch.nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.shift, self.seen = shift, 0

        def forward(self, x):
            part = answers[self.seen : self.seen + len(x)]
            self.seen += len(x)
            return part + self.shift

    right = task.evaluate(Oracle(0.4))
    assert right["exact_inside"] == right["exact_beyond"] == 1.0  # rounded
    assert right["error_beyond"] == pytest.approx(0.4, abs=1e-5)
    assert right["validation"] == pytest.approx(0.4, abs=1e-5)
    wrong = task.evaluate(Oracle(0.6))
    assert wrong["exact_inside"] == wrong["exact_beyond"] == 0.0
    beyond = task.tests["beyond"][1]
    expected = (beyond - task.validation[1].mean()).abs().mean().item()
    baselines = task.baselines()
    assert baselines["error_beyond"] == pytest.approx(expected, rel=1e-5)
    assert set(baselines) == set(wrong) - {"validation"}


@pytest.mark.parametrize("model", ["linear", "nac", "nalu"])
@pytest.mark.parametrize("target", ["count", "sum"])
def test_every_head_trains(tmp_path, model, target):
    flags = [*TINY, "--model", model, "--target", target, "--out", str(tmp_path / "a")]
    assert task_entry("counting").main(flags) == 0
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["mean"]["error_beyond"] > 0
    assert result["trials"][0]["updates"] == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train-digits", "3", "2"], r"train_digits: \(3, 2\) does not fit .*16 cells"),
        (["--test-digits", "1", "17"], r"test_digits: \(1, 17\) does not fit .*16 cells"),
        (["--grid", "0"], "grid"),
        (["--data", "mnist"], "data_folder: is needed for data 'mnist'"),
    ],
)
def test_bad_options_are_refused(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        task_entry("counting").main([*TINY, *flags, "--out", str(tmp_path / "a")])
