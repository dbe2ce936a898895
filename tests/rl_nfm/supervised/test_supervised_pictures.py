"""Pictures of a task: tiled, written at each evaluation, shown by the report."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rl_nfm.supervised.data.tiles import tile
from rl_nfm.supervised.loop.run import LoopConfig, Task, register_loop_task, run_trials
from rl_nfm.supervised.report.command import write_report
from rl_nfm.supervised.report.pictures import _some


def test_a_tile_is_where_a_loop_would_put_it():
    images = torch.randint(256, (5, 3, 4, 7), dtype=torch.uint8)
    picture = tile(images, 2, border=1)
    assert picture.shape == (3 * 5 + 1, 2 * 8 + 1, 3)
    expected = np.full(picture.shape, 128, dtype=np.uint8)
    for n in range(5):
        for y in range(4):
            for x in range(7):
                for c in range(3):
                    expected[1 + n // 2 * 5 + y, 1 + n % 2 * 8 + x, c] = images[n, c, y, x]
    assert np.array_equal(picture.numpy(), expected)


class Dots(Task):
    """Its picture holds the number of evaluations."""

    channels = 1

    def build_model(self):
        self.evaluations = 0
        return nn.Linear(1, 1)

    def batches(self, epoch):
        yield torch.ones(1, 1)

    def loss(self, model, batch):
        return model(batch).square().mean()

    def evaluate(self, model):
        self.evaluations += 1
        return {"count": float(self.evaluations)}

    def pictures(self, model):
        shape = (3, 5, self.channels)
        return {"dots": torch.full(shape, self.evaluations, dtype=torch.uint8)}


class ColouredDots(Dots):
    channels = 3


@pytest.fixture(autouse=True)
def _own_tasks(monkeypatch):
    monkeypatch.setattr("rl_nfm.supervised.registry._TASKS", {})


@pytest.mark.parametrize(("task", "mode"), [(Dots, "L"), (ColouredDots, "RGB")])
def test_pictures_of_each_evaluation_are_written_and_reported(tmp_path, task, mode):
    out = tmp_path / "run"
    config = LoopConfig(epochs=9, eval_every_epochs=1, out=out)
    register_loop_task("dots", "", task, {"small": config})
    run_trials("dots", task, config)
    for epoch in range(1, 10):
        with Image.open(out / "trial0" / f"dots_{epoch:06d}.png") as image:
            assert image.mode == mode
            assert image.size == (5, 3)
            assert set(np.asarray(image).ravel()) == {epoch}
    files = write_report([out], tmp_path / "report")
    text = files[0].read_text()
    shown = [1, 3, 6, 9]
    for epoch in shown:
        name = f"dots_1_dots_{epoch:06d}.png"
        assert f"epoch {epoch} ![{name}]({name})" in text
        copy, source = tmp_path / "report" / name, out / "trial0" / f"dots_{epoch:06d}.png"
        assert copy.read_bytes() == source.read_bytes()
        assert copy in files
    assert text.count("![dots_1_") == len(shown)


@pytest.mark.parametrize("count", range(1, 12))
def test_some_pictures_include_the_ends_and_repeat_none(tmp_path, count):
    paths = [tmp_path / f"{n}" for n in range(count)]
    some = _some(paths)
    assert len(some) == len(set(some)) == min(count, 4)
    assert (some[0], some[-1]) == (paths[0], paths[-1])
