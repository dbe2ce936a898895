"""The GAN as a task: whose turn it is, resume, pictures, features by name, bad input."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from agents.cli import main as cli
from rl_nfm.backbones.matching import count_parameters
from rl_nfm.supervised.cli import main
from rl_nfm.supervised.loop.reporting import read_metrics
from rl_nfm.supervised.report.command import write_report
from rl_nfm.supervised.tasks.gan import features
from rl_nfm.supervised.tasks.gan.networks import Gan
from rl_nfm.supervised.tasks.gan.task import PRESETS, GanTask

CPU = torch.device("cpu")
SIZES = {
    "generator_updates_per_epoch": 2,
    "batch_size": 5,
    "generator_width": 4,
    "discriminator_width": 3,
    "latent_size": 6,
    "projection_size": 7,
    "samples": 40,
    "features.width": 2,
    "features.updates": 2,
}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]


def tiny(**changes):
    own = {name: value for name, value in SIZES.items() if "." not in name}
    small = features.FeatureConfig(width=2, updates=2)
    return dataclasses.replace(PRESETS["small"], **{**own, "features": small, **changes})


@pytest.mark.parametrize("model", ["infomax", "nfm", "sngan"])
def test_each_turn_updates_one_network_alone(model):
    torch.manual_seed(0)
    task = GanTask(tiny(model=model, discriminator_updates=3, discriminator_width=12), CPU)
    net = task.build_model()
    assert isinstance(net, Gan)
    optimizer = task.build_optimizer(net)
    batches = list(task.batches(0))
    assert [batch is None for batch in batches] == [False, False, False, True] * 2
    seen = set()
    for batch in batches:
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        optimizer.zero_grad(set_to_none=True)
        task.loss(net, batch).backward()
        optimizer.step()
        changed = {
            name.split(".")[0]
            for name, p in net.named_parameters()
            if not torch.equal(p, before[name])
        }
        # A hinge that all scores have passed, or a silent ReLU, may leave the gradient at zero.
        assert changed <= {"generator" if batch is None else "discriminator"}
        seen |= changed
    assert seen == {"generator", "discriminator"}
    assert all(p.requires_grad for p in net.parameters())


def test_losses_are_weighted_as_published(monkeypatch):
    """hinge + 0.2 InfoNCE: of real images for the discriminator, of its own for the generator."""
    torch.manual_seed(0)
    task = GanTask(tiny(model="infomax", infomax_scale=0.2), CPU)
    net = task.build_model()
    seen = []
    monkeypatch.setattr(
        "rl_nfm.supervised.tasks.gan.task.info_nce",
        lambda local, whole: seen.append(local.shape) or 0 * whole.sum() + 5.0,
    )
    for batch, name in ((next(iter(task.batches(0))), "discriminator"), (None, "generator")):
        loss = task.loss(net, batch)
        hinge = task.losses[f"loss/{name}"][-1]
        assert float(loss.detach()) == pytest.approx(float(hinge) + 1.0, rel=1e-5)
    assert seen == [(5, 7, 64)] * 2


def test_the_matched_generator_has_nfms_parameters_and_no_nfm():
    sizes = {}
    for model in ("infomax", "infomax_matched", "nfm"):
        net = GanTask(tiny(model=model, generator_width=12), CPU).build_model()
        assert isinstance(net, Gan)
        sizes[model] = count_parameters(net.generator), count_parameters(net.discriminator)
    assert sizes["nfm"][0] > 2 * sizes["infomax"][0]
    assert sizes["infomax_matched"][0] == pytest.approx(sizes["nfm"][0], rel=0.05)
    assert len({size for _, size in sizes.values()}) == 1


def test_a_resumed_run_repeats_an_unbroken_one_bit_for_bit(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = ["gan", "--model", "nfm", "--nfm.attention-dropout", "0.1", *FLAGS]
    main([*common, "--epochs", "2", "--eval-every-epochs", "1", "--out", str(whole)])
    main([*common, "--epochs", "1", "--eval-every-epochs", "1", "--out", str(parts)])
    main(["gan", "--resume", str(parts), "--epochs", "2"])
    rows = read_metrics(whole / "trial0")
    assert rows == read_metrics(parts / "trial0")
    for name in ("checkpoint/model.safetensors", "checkpoint/optimizer.safetensors"):
        files = [run / "trial0" / name for run in (whole, parts)]
        assert files[0].read_bytes() == files[1].read_bytes()
    pictures = [run / "trial0" / "samples_000002.png" for run in (whole, parts)]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    result = json.loads((whole / "result.json").read_text())
    assert result["mean"]["feature_distance"] == rows[-1]["feature_distance"]
    assert result["mean"]["reference_images"] == result["mean"]["real_images"] == 40
    assert {"real_feature_distance", "density", "coverage"} <= set(result["mean"])
    assert result["trials"][0]["updates"] == 2 * 2 * (1 + PRESETS["small"].discriminator_updates)


def test_a_picture_shows_the_same_latents_each_time():
    torch.manual_seed(0)
    task = GanTask(tiny(model="infomax"), CPU)
    net = task.build_model().eval()
    assert isinstance(net, Gan)
    with torch.no_grad():
        picture = task.pictures(net)["samples"].numpy()
        torch.manual_seed(99)
        assert np.array_equal(task.pictures(net)["samples"].numpy(), picture)
        latents = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
        images = net.generator(latents)
    assert picture.shape == (8 * 34 + 2, 8 * 34 + 2, 1)
    row, column = 3, 5
    cell = picture[row * 34 + 2 : (row + 1) * 34, column * 34 + 2 : (column + 1) * 34, 0]
    expected = ((images[row * 8 + column, 0] + 1) * 127.5).round().numpy()
    assert np.abs(cell.astype(float) - expected).max() <= 1


@pytest.fixture
def _own_features(monkeypatch):
    monkeypatch.setattr(features, "_FEATURES", dict(features._FEATURES))


def cifar(folder):
    """Made data in CIFAR-10's binary format: label, then 3 x 32 x 32 pixels."""
    random = np.random.RandomState(0)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        rows = random.randint(0, 256, (12, 3073)).astype(np.uint8)
        rows[:, 0] %= 10
        (folder / name).write_bytes(rows.tobytes())


@pytest.mark.usefixtures("_own_features")
def test_registered_features_measure_cifar_in_colour_beside_the_published_fid(tmp_path):
    cifar(tmp_path)
    seen = []

    def build(data, config, device):
        assert data.train_images.shape == (60, 3, 32, 32)
        return lambda images: seen.append(images.dtype) or images.float().mean(dim=(2, 3))

    features.register_features("colours", build, metric="fid")
    with pytest.raises(ValueError, match="'colours' are already registered"):
        features.register_features("colours", build)
    out = tmp_path / "run"
    options = ["--data", "cifar10", "--data-folder", str(tmp_path), "--features.name", "colours"]
    main(["gan", "--model", "infomax", *FLAGS, *options, "--epochs", "1", "--out", str(out)])
    metrics = json.loads((out / "result.json").read_text())["mean"]
    assert metrics["fid"] > 0
    assert not any("feature" in name for name in metrics)
    assert set(seen) == {torch.uint8}
    with Image.open(out / "trial0" / "samples_000001.png") as image:
        assert image.mode == "RGB"
    text = write_report([out], tmp_path / "report")[0].read_text()
    assert "FID 15.12, Inception score 8.08" in text
    assert "| 15.12 |" in text
    assert "![gan_1_samples_000001.png]" in text


def test_features_leave_the_training_s_random_numbers_alone():
    task = GanTask(tiny(), CPU)
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    first = task.scores.extractor
    assert torch.equal(torch.randn(3), expected)
    second = GanTask(tiny(), CPU).scores.extractor
    images = task.data.test_images[:7]
    assert torch.equal(first(images), second(images))


def test_scores_tell_real_images_from_noise():
    """Of real images of the other split, of independent pixels and of the reference itself."""
    changes = {"samples": 300, "features": features.FeatureConfig(width=4, updates=30)}
    task = GanTask(tiny(**changes), CPU)
    own = task.scores.of(task.data.train_images)
    real, noise = task.scores.of_real_images(), task.baselines()
    assert own["feature_distance"] < real["real_feature_distance"] < noise["feature_distance"] / 3
    assert noise["coverage"] < 0.5 * real["real_coverage"]
    assert own["coverage"] > real["real_coverage"]
    assert real["feature_classifier_accuracy"] > 0.3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "2000"], "batch_size: 2000 exceeds the 1437 training images"),
        (["--patience-epochs", "3"], "patience_epochs: has no effect on the GAN"),
        (
            ["--features.name", "clasifier"],
            "features.name: 'clasifier' is unknown; did you mean 'classifier'? (allowed: ",
        ),
        (["--nearest", "40", "--samples", "40"], "nearest: 40 is not below the 40 real images"),
        (["--model", "sngan", "--infomax-scale", "1"], "infomax_scale: has no effect on model"),
        (["--model", "infomax", "--nfm.heads", "2"], "nfm: has no effect on model 'infomax'"),
        (["--data", "mnist"], "data_folder: is needed for data 'mnist'"),
        (["--samples", "1"], "samples: 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_run(tmp_path, capsys, flags, message):
    out = tmp_path / "run"
    assert cli(["supervised", "gan", *flags, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not out.exists()
