"""The task of bouncing balls: its model, losses, baselines, rollouts, report and video."""

import json
import math

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rl_nfm.supervised.cli import main
from rl_nfm.supervised.data.frame_video import write_comparison
from rl_nfm.supervised.tasks.bouncing_balls import (
    BouncingBallsConfig,
    BouncingBallsTask,
    losses_by_frame,
)
from rl_nfm.supervised.tasks.frame_predictor import EnlargingConvolution, FramePredictor
from tests.rl_nfm.supervised.test_supervised_sequences import MODELS

CPU = torch.device("cpu")
SMALL = {
    "hidden_size": 12,
    "frame_size": 8,
    "width": 2,
    "feature_size": 9,
    "train_sequences": 10,
    "validation_sequences": 3,
    "test_sequences": 5,
    "frames": 7,
    "seen_frames": 3,
    "batch_size": 4,
}
FLAGS = [
    word for name, value in SMALL.items() for word in (f"--{name}".replace("_", "-"), str(value))
]
FLAGS += ["--device", "cpu"]


def task_of(**options):
    return BouncingBallsTask(BouncingBallsConfig(**{**SMALL, **options}), CPU)


def model_of(task):
    model = task.build_model()
    assert isinstance(model, FramePredictor)
    return model.eval()


def test_enlarging_and_convolving_are_one():
    """Twin: the image enlarged, padded and convolved; values and gradients in float64."""
    ours = EnlargingConvolution(3, 5).double()
    images = torch.randn(2, 3, 4, 7, dtype=torch.double, requires_grad=True)
    enlarged = F.pad(F.interpolate(images, scale_factor=2), (1, 2, 1, 2))
    twin = F.conv2d(enlarged, ours.weight, ours.bias)
    out = ours(images)
    torch.testing.assert_close(out, twin)
    weights = torch.randn_like(out)
    inputs = (images, ours.weight, ours.bias)
    for a, b in zip(
        torch.autograd.grad((out * weights).sum(), inputs),
        torch.autograd.grad((twin * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("core", MODELS)
def test_a_rollout_is_that_of_a_model_that_begins_again_at_every_step(core):
    """Twin: no state is carried; the whole sequence so far is read again for each prediction."""
    torch.manual_seed(0)
    task = task_of(model=core)
    model, frames = model_of(task), next(iter(task.batches(0)))
    with torch.no_grad():
        ours = model.rollout(frames[:, :3], 3)
        fed = frames[:, :3]
        for _ in range(3):
            fed = torch.cat([fed, model(fed)[0][:, -1:].sigmoid()], dim=1)
        torch.testing.assert_close(ours, model(fed)[0])
    assert ours.shape == (4, 6, 8, 8)


def test_true_frames_after_the_seen_ones_change_nothing():
    task = task_of(model="gru")
    model, frames = model_of(task), next(iter(task.batches(0)))
    with torch.no_grad():
        other = torch.cat([frames[:, :3], 1 - frames[:, 3:]], dim=1)
        assert torch.equal(model.rollout(frames[:, :3], 3), model.rollout(other[:, :3], 3))
        early = torch.cat([1 - frames[:, :1], frames[:, 1:3]], dim=1)
        assert not torch.equal(model.rollout(frames[:, :3], 3), model.rollout(early, 3))


def test_losses_are_nats_per_pixel():
    """Logit ln 3 is the probability 3/4: ln 4/3 for a pixel that is on, ln 4 for one off."""
    frames = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]]])
    logits = torch.full_like(frames, math.log(3))
    expected = [(math.log(4 / 3) + 3 * math.log(4)) / 4, math.log(4 / 3)]
    assert losses_by_frame(logits, frames).tolist() == pytest.approx(expected)
    twice = losses_by_frame(logits.repeat(2, 1, 1, 1), frames.repeat(2, 1, 1, 1))
    assert twice.tolist() == pytest.approx([2 * x for x in expected])


class Half(FramePredictor):
    """Always undecided."""

    def __init__(self):
        nn.Module.__init__(self)

    def forward(self, frames, state=None):
        return torch.zeros_like(frames), state


def test_an_undecided_model_loses_ln_2_everywhere():
    task = task_of()
    metrics = task.evaluate(Half())
    names = {f"{part}_{name}" for part in ("seen", "rollout10", "rollout") for name in task.tests}
    assert set(metrics) == {*names, "validation"}
    assert list(metrics.values()) == pytest.approx([math.log(2)] * 10)
    assert task.loss(Half(), next(iter(task.batches(0)))).item() == pytest.approx(math.log(2))
    assert {len(curve) for curve in task.by_step(Half()).values()} == {6}


class Oracle(FramePredictor):
    """Knows the test sequences: each frame's successor is looked up by the last frame seen."""

    def __init__(self, frames):
        nn.Module.__init__(self)
        self.frames = frames

    def forward(self, frames, state=None):
        done = 0 if state is None else state
        steps = frames.shape[1]
        return 40 * self.frames[:, done + 1 : done + 1 + steps] - 20, done + steps


def test_a_perfect_model_loses_nothing_and_each_prediction_meets_its_frame():
    task = task_of(test_data=("678balls",))
    curves = task.by_step(Oracle(next(task._chunks(task.tests["678balls"]))))
    assert max(curves["678balls"]) < 1e-6


def test_curves_are_those_of_rollouts_from_the_seen_frames():
    task = task_of(model="gru", test_data=("4balls",))
    model, frames = model_of(task), next(task._chunks(task.tests["4balls"]))
    with torch.no_grad():
        logits = model.rollout(frames[:, :3], 3)
        losses = F.binary_cross_entropy_with_logits(logits, frames[:, 1:], reduction="none")
        curve = task.by_step(model)["4balls"]
    assert curve == pytest.approx(losses.mean((0, 2, 3)).tolist(), rel=1e-5)


def test_constant_predictors_are_those_of_naive_twins():
    task = task_of(frame_size=16, train_sequences=6, test_data=("curtain", "4balls"))
    known = next(task._chunks(task.train)).numpy()
    mean = known.mean((0, 1)).clip(1e-6, 1 - 1e-6)
    for name, test in task.tests.items():
        frames, curves = next(task._chunks(test)).numpy(), task.baselines_by_step()[name]
        for step in range(6):
            now, source = step + 1, min(step, 2)
            chance = np.empty_like(frames[:, 0])
            for value in (0, 1):
                follows = known[:, now][known[:, source] == value]
                chance[frames[:, source] == value] = follows.mean().clip(1e-6, 1 - 1e-6)
            for label, p in (("last frame repeated", chance), ("mean frame", mean)):
                truth = frames[:, now]
                loss = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean()
                assert curves[label][step] == pytest.approx(loss, rel=1e-4)
    assert task.baselines()["rollout_4balls"] == pytest.approx(
        np.mean(task.baselines_by_step()["4balls"]["last frame repeated"][3:])
    )


def test_all_seeds_see_the_same_balls():
    torch.manual_seed(1)
    first = task_of().train.positions
    torch.manual_seed(2)
    task = task_of()
    assert torch.equal(first, task.train.positions)
    for other in (task.validation, task.tests["4balls"]):
        assert not torch.equal(first[:3, 0], other.positions[:3, 0])
    assert not torch.equal(task.validation.positions, task.tests["4balls"].positions[:3])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--frame-size 12", "frame_size: 12 is not allowed, must be a multiple of 8"),
        ("--seen-frames 6", "seen_frames: 6 is not allowed, must be at most frames - 2 = 5"),
        ("--model lstm --num-rims 2", "num_rims: has no effect on model 'lstm'"),
        ("--train-data 5balls", "train.data"),
    ],
)
def test_bad_options(flags, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        main(["bouncing_balls", *FLAGS, *flags.split(), "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of two epochs of each of two models, with its arguments."""
    folder = tmp_path_factory.mktemp("balls")
    for model in ("lstm", "rim_lstm"):
        out = ["--model", model, "--out", str(folder / model)]
        assert main(["bouncing_balls", *FLAGS, *out, "--epochs", "2", "--dropout", "0.1"]) == 0
    return folder


def test_a_run_goes_on_bit_for_bit(runs, tmp_path):
    out = ["--model", "rim_lstm", "--out", str(tmp_path / "run")]
    assert main(["bouncing_balls", *FLAGS, *out, "--epochs", "1", "--dropout", "0.1"]) == 0
    assert main(["bouncing_balls", "--resume", str(tmp_path / "run"), "--epochs", "2"]) == 0
    whole, resumed = (
        json.loads((folder / "result.json").read_text())
        for folder in (runs / "rim_lstm", tmp_path / "run")
    )
    assert whole["mean"] == resumed["mean"]
    assert whole["trials"][0]["by_step"] == resumed["trials"][0]["by_step"]


def test_the_result_has_curves_of_the_reported_weights(runs):
    result = json.loads((runs / "lstm" / "result.json").read_text())
    curves = result["trials"][0]["by_step"]
    assert list(curves) == ["4balls", "678balls", "curtain"]
    for name, curve in curves.items():
        assert result["mean"][f"rollout_{name}"] == pytest.approx(np.mean(curve[3:]))
        assert result["mean"][f"seen_{name}"] == pytest.approx(np.mean(curve[:3]))
    assert {len(x) for lines in result["baselines_by_step"].values() for x in lines.values()} == {6}


def test_report_draws_the_loss_over_the_rollout(runs, tmp_path, capsys):
    folders = [str(runs / model) for model in ("lstm", "rim_lstm")]
    assert main(["report", *folders, "--out", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "rollout10_4balls" in text
    assert "![steps_bouncing_balls.png](steps_bouncing_balls.png)" in text
    assert "steps_bouncing_balls.png" in capsys.readouterr().out
    picture = cv2.imread(str(tmp_path / "report" / "steps_bouncing_balls.png"))
    assert picture is not None
    assert picture.std() > 1


def test_evaluation_on_other_balls_with_a_video(runs, tmp_path, capsys):
    video, figures = tmp_path / "rollouts.mp4", tmp_path / "figures.json"
    flags = ["--test-data", "678balls", "--frames", "9", "--test-sequences", "2"]
    files = ["--video", str(video), "--json", str(figures)]
    assert main(["evaluate", str(runs / "lstm"), *flags, *files]) == 0
    assert "rollout_678balls" in capsys.readouterr().out
    assert "rollout_4balls" not in json.loads(figures.read_text())["mean"]
    reader = cv2.VideoCapture(str(video))
    assert reader.get(cv2.CAP_PROP_FRAME_COUNT) == 8
    with pytest.raises(ValueError, match="width: cannot change"):
        main(["evaluate", str(runs / "lstm"), "--width", "3"])


def test_other_tasks_have_no_video(tmp_path):
    run, video = str(tmp_path / "run"), tmp_path / "v.mp4"
    small = "--model gru --hidden-size 3 --epochs 1 --updates-per-epoch 1 --test-examples 4"
    assert main(["adding", *small.split(), "--out", run]) == 0
    with pytest.raises(ValueError, match=r"video: .*v\.mp4 cannot be made"):
        main(["evaluate", run, "--video", str(video)])
    assert not video.exists()


def test_video_shows_truth_above_prediction(tmp_path):
    """Grey lines while true frames are seen, then orange ones; frames enlarged to 128 pixels."""
    truth, predicted = torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.5)
    truth[1, :, :4] = 1.0
    write_comparison(tmp_path / "v.mp4", truth, predicted, seen=2)
    reader, frames = cv2.VideoCapture(str(tmp_path / "v.mp4")), []
    while (read := reader.read())[0]:
        frames.append(read[1][..., ::-1].astype(int))
    assert len(frames) == 3
    assert frames[0].shape == (2 * 128 + 3 * 16, 2 * 128 + 3 * 16, 3)
    for step, border in enumerate([(90,) * 3, (90,) * 3, (213, 94, 0)]):
        np.testing.assert_allclose(frames[step][5, 5], border, atol=12)
        np.testing.assert_allclose(frames[step][16 + 30, 16 + 64], 0, atol=12)
        np.testing.assert_allclose(frames[step][16 + 30, 16 + 144 + 64], 255, atol=12)
        np.testing.assert_allclose(frames[step][16 + 100, 16 + 144 + 64], 0, atol=12)
        np.testing.assert_allclose(frames[step][160 + 64, 16 + 64], 128, atol=12)
