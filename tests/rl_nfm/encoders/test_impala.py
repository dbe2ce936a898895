"""Variants of the IMPALA encoder: pooling, spectral norm, layer norm."""

from typing import Any

import pytest
import torch
from torch import nn

from rl_nfm.backbones.matching import count_macs, count_parameters
from rl_nfm.encoders import make_encoder
from rl_nfm.encoders.impala import ImpalaEncoder
from rl_nfm.values.heads import HeadConfig, ValueHead


def build(**options: Any) -> ImpalaEncoder:
    torch.manual_seed(0)
    encoder = make_encoder("impala", **{"obs_shape": (4, 84, 84), **options})
    assert isinstance(encoder, ImpalaEncoder)
    return encoder


def residual_weights(encoder: ImpalaEncoder) -> list[torch.Tensor]:
    convs = [m for name, m in encoder.named_modules() if ".convs." in name]
    return [conv.weight for conv in convs if isinstance(conv, nn.Conv2d)]


@pytest.mark.parametrize("pool", ["gap", "max6"])
def test_pooling_equals_loops_over_the_feature_map(pool: str) -> None:
    """11x11 pixels: their mean; or maxima over rows floor(11 i / 6) to ceil(11 (i + 1) / 6)."""
    flat, pooled = build(width=3), build(width=3, pool=pool)
    pooled.load_state_dict(flat.state_dict())
    pixels = torch.rand(2, 4, 84, 84)
    with torch.no_grad():
        maps = flat.embed(pixels).view(2, 6, 11, 11)
        got = pooled.embed(pixels)
    if pool == "gap":
        assert got.shape == (2, 6)
        assert torch.allclose(got, maps.mean((2, 3)), atol=1e-6)
        return
    assert got.shape == (2, 6 * 36)
    edges = [(11 * i // 6, -(-11 * (i + 1) // 6)) for i in range(6)]
    assert edges == [(0, 2), (1, 4), (3, 6), (5, 8), (7, 10), (9, 11)]
    for i, (top, bottom) in enumerate(edges):
        for j, (left, right) in enumerate(edges):
            window = maps[:, :, top:bottom, left:right].amax((2, 3))
            assert torch.equal(got.view(2, 6, 6, 6)[:, :, i, j], window)


def test_residual_convolutions_have_spectral_norm_one() -> None:
    """Of the weight as a matrix [outputs, inputs * 9]; the stages' first convolutions are free."""
    encoder = build(width=8, spectral_norm=True)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "original" in name:
                parameter.copy_(torch.randn_like(parameter) * 3)
        for _ in range(200):  # one power iteration each
            encoder.embed(torch.zeros(1, 4, 84, 84))
    weights = residual_weights(encoder)
    assert len(weights) == 12
    for weight in weights:
        largest = torch.linalg.matrix_norm(weight.detach().double().flatten(1), ord=2)
        assert float(largest) == pytest.approx(1.0, abs=1e-3)
    assert not any("original" in name for name, _ in encoder.layers[0].named_parameters())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_power_iterations_belong_to_training_and_to_fp32(device: str) -> None:
    """On CUDA, autocast would compute them in bf16."""
    encoder = build(width=8, spectral_norm=True).to(device)
    buffers = {k: v.clone() for k, v in encoder.named_buffers()}
    assert len(buffers) == 24
    pixels = torch.rand(2, 4, 84, 84, device=device)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        encoder.eval().embed(pixels)
        assert all(torch.equal(v, buffers[k]) for k, v in encoder.named_buffers())
        encoder.train().embed(pixels)
    assert not any(torch.equal(v, buffers[k]) for k, v in encoder.named_buffers())
    # what one iteration in float64 gives; bf16 is off by 1e-3
    for name in ("layers.2.convs.0", "layers.11.convs.1"):
        kept = f"{name}.parametrizations.weight"
        matrix = encoder.get_parameter(f"{kept}.original").detach().double().flatten(1)
        u = matrix @ buffers[f"{kept}.0._v"].double()
        v = matrix.T @ (u / u.norm())
        assert torch.allclose(encoder.get_buffer(f"{kept}.0._u").double(), u / u.norm(), atol=1e-5)
        assert torch.allclose(encoder.get_buffer(f"{kept}.0._v").double(), v / v.norm(), atol=1e-5)


def test_layer_norm_is_over_the_channels_of_each_pixel() -> None:
    encoder = build(width=8, layer_norm=True)
    norm = encoder.layers[2].norms[0]
    x = torch.randn(2, 8, 5, 3) * 4 + 1
    y = norm(x)
    for b in range(2):
        for i in range(5):
            for j in range(3):
                pixel = x[b, :, i, j]
                expected = (pixel - pixel.mean()) / (pixel.var(unbiased=False) + 1e-5).sqrt()
                assert torch.allclose(y[b, :, i, j], expected, atol=1e-5)


def test_published_sizes() -> None:
    """Beyond The Rainbow: 2.9 million parameters. Impoola: 83.76 % of them in one linear layer."""
    btr = build(width=32, pool="max6", spectral_norm=True)
    assert (btr.feature_dim, count_parameters(btr)) == (2304, 389_024)
    head = ValueHead(btr.feature_dim, 9, HeadConfig(hidden_size=512, noisy=True, num_cosines=64))
    means = sum(p.numel() for name, p in head.named_parameters() if "sigma" not in name)
    # the public network, executed: 2,904,234 without the scales of the noise
    assert count_parameters(btr) + means == 2_904_234
    macs = count_macs(lambda: btr.eval().embed(torch.zeros(1, 4, 84, 84)))
    assert macs == 204_797_952
    procgen = build(obs_shape=(3, 64, 64))
    linear = (procgen.feature_dim + 1) * 256
    both_heads = 257 * 15 + 257  # 15 actions, one value
    share = linear / (count_parameters(procgen) + linear + both_heads)
    assert share == pytest.approx(0.8376, abs=5e-5)
