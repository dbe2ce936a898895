"""The variational autoencoder: its pixel distribution, its bounds, its models."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import logistic
from torch.distributions import Independent, Normal, kl_divergence

from rl_nfm.backbones.matching import count_parameters
from rl_nfm.nfm import NeuralFunctionModule
from rl_nfm.supervised.cli import main
from rl_nfm.supervised.loop.evaluate import load_trained
from rl_nfm.supervised.tasks import autoencoding
from rl_nfm.supervised.tasks.autoencoding import Autoencoder, AutoencodingConfig, log_bins


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize(
    ("mean", "log_scale"), [(0.0, 0.0), (0.3, -3.0), (-1.2, -6.5), (1.7, -1.0)]
)
def test_bins_are_those_of_the_logistic_distribution(mean, log_scale, levels):
    """Oracle: SciPy's distribution function, in float64."""
    pixels = torch.arange(levels, dtype=torch.uint8)
    like = torch.zeros(levels, dtype=torch.float64)
    ours = log_bins(pixels, like + mean, like + log_scale, levels)
    assert float(ours.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    scale = math.exp(log_scale)
    centres, half = np.linspace(-1, 1, levels), 1 / (levels - 1)
    upper = logistic.cdf(centres + half, loc=mean, scale=scale)
    lower = logistic.cdf(centres - half, loc=mean, scale=scale)
    upper[-1], lower[0] = 1.0, 0.0
    theirs = torch.from_numpy(upper - lower)
    seen = theirs > 1e-9  # below, SciPy's difference has no digits left
    torch.testing.assert_close(ours[seen].exp(), theirs[seen], rtol=1e-6, atol=0.0)


def test_bins_far_from_the_mean_have_finite_values_and_right_gradients():
    pixels = torch.tensor([0, 1, 7, 128, 254, 255], dtype=torch.uint8)
    mean = torch.tensor([1.9, 1.9, -3.0, 0.1, -1.9, -1.9], requires_grad=True)
    log_scale = torch.full((6,), -6.9, requires_grad=True)
    out = log_bins(pixels, mean, log_scale, 256)
    assert torch.isfinite(out).all()
    out.sum().backward()
    for parameter in (mean, log_scale):
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
    doubles = [torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda m, s: log_bins(pixels, m, s - 1.0, 256), doubles)


def test_divergence_from_the_standard_normal():
    mean, log_std = torch.randn(3, 5), torch.randn(3, 5)
    posterior = Independent(Normal(mean, log_std.exp()), 1)
    prior = Independent(Normal(torch.zeros(3, 5), torch.ones(3, 5)), 1)
    torch.testing.assert_close(
        autoencoding.kl_from_standard_normal(mean, log_std), kl_divergence(posterior, prior)
    )


def test_odd_sizes_are_padded_on_the_way_in_and_cut_on_the_way_out():
    config = AutoencodingConfig(width=4, latent_size=3)
    net = Autoencoder((2, 5, 11), levels=256, encoder_width=4, config=config, nfm=None)
    images = torch.randint(256, (3, 2, 5, 11), dtype=torch.uint8)
    mean, log_std = net.encode(images)
    assert mean.shape == log_std.shape == (3, 3)
    pixels, log_scale = net.decode(mean)
    assert pixels.shape == log_scale.shape == images.shape
    assert net.log_likelihood(images, mean).shape == (3,)


def test_one_draw_and_many_draws_are_the_bounds_of_a_naive_twin():
    """Written again with torch.distributions: log p(x|z) + log p(z) - log q(z|x)."""
    torch.manual_seed(0)
    config = AutoencodingConfig(model="cnn", width=4, latent_size=3, importance_samples=7)
    task = autoencoding.AutoencodingTask(config, torch.device("cpu"))
    net = task.build_model()
    assert isinstance(net, Autoencoder)
    task.tests = task.tests[:5]
    with torch.no_grad():
        found = {**task.evaluate(net), **task.test(net)}
        mean, log_std = net.encode(task.tests)
        posterior = Independent(Normal(mean, log_std.exp()), 1)
        prior = Independent(Normal(torch.zeros(5, 3), torch.ones(5, 3)), 1)
        generator, weights = torch.Generator().manual_seed(1), []
        for _ in range(7):
            latent = mean + log_std.exp() * torch.randn(5, 3, generator=generator)
            weights.append(
                log_bins(task.tests, *net.decode(latent), 17).sum((1, 2, 3))
                + prior.log_prob(latent)
                - posterior.log_prob(latent)
            )
        bound = torch.stack(weights).double().exp().mean(0).log().mean()  # some 300 nats
    bits = float(bound) / math.log(2) / 64
    assert found["iw_bits_per_dim"] == pytest.approx(-bits, rel=1e-4)
    assert found["bits_per_dim"] == pytest.approx(
        (found["pixel_bits"] + found["kl_bits"]) / 64, rel=1e-6
    )


def test_the_baseline_is_the_histogram_of_each_pixel():
    config = AutoencodingConfig(model="cnn")
    task = autoencoding.AutoencodingTask(config, torch.device("cpu"))
    task.train = torch.tensor([3, 3, 15], dtype=torch.uint8).view(3, 1, 1, 1)
    task.tests = torch.tensor([3, 15, 9], dtype=torch.uint8).view(3, 1, 1, 1)
    task.dims = 1
    expected = -(math.log2(3 / 20) + math.log2(2 / 20) + math.log2(1 / 20)) / 3
    assert task.baselines()["bits_per_dim"] == pytest.approx(expected)


def test_models_are_what_their_names_say():
    device = torch.device("cpu")
    nets: dict[str, Any] = {
        model: autoencoding.AutoencodingTask(
            AutoencodingConfig(model=model, width=4), device
        ).build_model()
        for model in ("cnn", "nfm", "cnn_matched")
    }
    module = nets["nfm"].trunk
    assert isinstance(module, NeuralFunctionModule)
    sizes = {model: count_parameters(net) for model, net in nets.items()}
    assert sizes["cnn"] < sizes["nfm"]
    assert sizes["cnn_matched"] == pytest.approx(sizes["nfm"], rel=0.1)
    decoder = {model: count_parameters(net.decoder) for model, net in nets.items()}
    assert len(set(decoder.values())) == 1


def test_a_short_run_improves(tmp_path):
    out = tmp_path / "run"
    options = ["--model", "cnn", "--width", "8", "--importance-samples", "2"]
    options += ["--epochs", "8", "--eval-every-epochs", "1", "--learning-rate", "3e-3"]
    options += ["--validation", "0"]
    assert main(["autoencoding", "--out", str(out), *options]) == 0
    result = json.loads((out / "result.json").read_text())
    lines = (out / "trial0" / "metrics.jsonl").read_text().splitlines()
    curve = [json.loads(line)["bits_per_dim"] for line in lines]
    assert curve[-1] < 0.9 * curve[0]
    assert result["mean"]["bits_per_dim"] == pytest.approx(curve[-1])
    assert result["baselines"]["bits_per_dim"] > 0


def test_the_best_validation_is_reported_whole(tmp_path, monkeypatch):
    """The bounds of training and those computed once are of the same weights."""
    real, errors = autoencoding.AutoencodingTask.evaluate, [2.0, 1.0, 3.0]

    def evaluate(self, model):
        found = real(self, model)
        return {**found, "validation": errors.pop(0)} if errors else found

    monkeypatch.setattr(autoencoding.AutoencodingTask, "evaluate", evaluate)
    options = ["--model", "cnn", "--width", "4", "--importance-samples", "2"]
    options += ["--epochs", "3", "--eval-every-epochs", "1", "--device", "cpu"]
    assert main(["autoencoding", "--out", str(tmp_path / "run"), *options]) == 0
    trial = json.loads((tmp_path / "run" / "result.json").read_text())["trials"][0]
    assert trial["best_epoch"] == 2
    best, last = (load_trained(tmp_path / "run", weights=weights) for weights in ("best", "last"))
    for name in ("bits_per_dim", "iw_bits_per_dim"):
        assert trial["metrics"][name] == best.evaluate()[name] != last.evaluate()[name]
    assert main(["autoencoding", "--resume", str(tmp_path / "run"), "--epochs", "4"]) == 0
    again = load_trained(tmp_path / "run", weights="last")
    assert again.epoch == 4, "training went on from the last weights, not from the best"


def test_images_that_validate_are_not_trained_on():
    torch.manual_seed(1)
    config = AutoencodingConfig(model="cnn", width=4, validation=0.2)
    task = autoencoding.AutoencodingTask(config, torch.device("cpu"))
    assert (len(task.train), len(task.validation), len(task.tests)) == (1150, 287, 360)
    whole = autoencoding.AutoencodingTask(AutoencodingConfig(), torch.device("cpu"))
    assert len(whole.train) == 1437
    both = torch.cat([task.train, task.validation]).flatten(1)
    assert both.unique(dim=0).shape == whole.train.flatten(1).unique(dim=0).shape
    net = task.build_model().eval()
    with torch.no_grad():
        found = task.evaluate(net)
        task.tests = task.validation
        assert task.evaluate(net)["bits_per_dim"] == found["validation"]
    assert "validation" not in whole.baselines()
    assert set(task.baselines()) == {"bits_per_dim", "validation"}
    with pytest.raises(ValueError, match="patience_epochs: has no effect without validation"):
        autoencoding.AutoencodingTask(AutoencodingConfig(patience_epochs=2), torch.device("cpu"))
