import math

import pytest
import torch
from torch import Tensor, nn

from rl_nfm.values.heads import HeadConfig, NoisyLinear, PlainLinear, ValueHead


def make_head(*, features: int = 5, actions: int = 3, **options: object) -> ValueHead:
    torch.manual_seed(0)
    return ValueHead(features, actions, HeadConfig(hidden_size=7, num_cosines=4, **options))  # pyright: ignore


def test_noisy_layer_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = NoisyLinear(2, 1, 0.5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.bias.copy_(torch.tensor([3.0]))
        layer.weight_sigma.copy_(torch.tensor([[0.5, 0.25]]))
        layer.bias_sigma.copy_(torch.tensor([0.1]))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: torch.tensor([4.0, -9.0, -1.0]))
    # f(4) = 2, f(-9) = -3 for the inputs, f(-1) = -1 for the output
    # weights 1 + 0.5 * -2 = 0 and 2 + 0.25 * 3 = 2.75, bias 3 + 0.1 * -1 = 2.9
    x = torch.tensor([[10.0, 1.0]])
    assert layer(x, "batch").tolist() == [[pytest.approx(5.65)]]
    assert layer(x, "off").tolist() == [[15.0]]  # 10 + 2 + 3


def test_noisy_layer_starts_as_published() -> None:
    # uniform within 1 / sqrt(400) = 0.05; sigma 0.5 / sqrt(400) = 0.025
    torch.manual_seed(0)
    layer = NoisyLinear(400, 300, 0.5)
    for mean in (layer.weight, layer.bias):
        assert 0.045 < float(mean.detach().abs().max()) <= 0.05
        assert abs(float(mean.detach().mean())) < 0.005
    for sigma in (layer.weight_sigma, layer.bias_sigma):
        assert torch.allclose(sigma, torch.full_like(sigma, 0.025))


def test_noise_has_the_moments_of_factorised_noise() -> None:
    # f(e) has mean 0 and E f^2 = E|e| = sqrt(2 / pi); a weight's noise is f(a) f(b), so 2 / pi
    torch.manual_seed(1)
    layer = NoisyLinear(1, 2000, 1.0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.weight_sigma.fill_(1.0)
        draws = torch.stack([layer(torch.ones(1, 1), "batch")[0] for _ in range(400)])
    assert abs(float(draws.mean())) < 0.05
    assert float(draws.var()) == pytest.approx(2 / math.pi, rel=0.12)


def test_one_noise_sample_for_the_whole_batch() -> None:
    layer = NoisyLinear(3, 4, 0.5)
    outputs = layer(torch.ones(5, 3), "batch")
    assert bool((outputs == outputs[0]).all())
    assert not torch.equal(layer(torch.ones(5, 3), "batch"), outputs)


@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 3)])
def test_noise_of_each_row_is_that_of_a_layer_of_its_own(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row b gives what noisy weights from its own draw give, for all of its quantiles."""
    layer, x = NoisyLinear(3, 4, 0.5), torch.randn(shape)
    drawn: list[Tensor] = []
    real = torch.randn
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *a, **k: drawn.append(real(*a, **k)) or drawn[-1])
        rows = layer(x, "rows")
    assert drawn[0].shape == (6, *[1] * (len(shape) - 2), 7)
    for b in range(6):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn", lambda *_, b=b, **__: drawn[0][b].flatten())
            assert torch.allclose(rows[b], layer(x[b : b + 1], "batch")[0], atol=1e-5)
    outputs = layer(torch.ones(5, 3), "rows").detach()[:, 0]
    assert len(set(outputs.tolist())) == 5


def test_plain_layer_ignores_noise() -> None:
    layer = PlainLinear(3, 2)
    x = torch.randn(4, 3)
    assert torch.equal(layer(x, "batch"), nn.functional.linear(x, layer.weight, layer.bias))
    assert torch.equal(layer(x, "off"), layer(x, "batch"))


def naive_values(head: ValueHead, features: Tensor, tau: Tensor | None) -> Tensor:
    """The head's formulas one item and one fraction at a time, in float64 without noise."""
    w = {name: value.double() for name, value in head.state_dict().items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    def stream(name: str, x: Tensor) -> Tensor:
        return linear(f"{name}.out", linear(f"{name}.hidden", x).clamp(min=0))

    rows = []
    for b, item in enumerate(features.double()):
        x = item
        if head.torso is not None:
            x = linear("torso", x).clamp(min=0)
        fractions = [None] if tau is None else tau[b].tolist()
        values = []
        for fraction in fractions:
            y = x
            if fraction is not None:
                cosines = [math.cos(math.pi * i * fraction) for i in range(1, 5)]
                y = x * linear("embedding", torch.tensor(cosines).double()).clamp(min=0)
            advantage = stream("advantage", y)
            if head.value is not None:
                advantage = stream("value", y) + advantage - advantage.mean()
            values.append(advantage)
        rows.append(torch.stack(values))
    return torch.stack(rows)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("quantile_layer", ["features", "hidden"])
@pytest.mark.parametrize("distribution", ["iqn", "none"])
def test_values_equal_the_formulas(
    noisy: bool, dueling: bool, quantile_layer: str, distribution: str
) -> None:
    head = make_head(
        noisy=noisy, dueling=dueling, quantile_layer=quantile_layer, distribution=distribution
    )
    features = torch.randn(6, 5)
    tau = torch.rand(6, 2) if distribution == "iqn" else None
    values = head(features, tau)
    assert values.shape == (6, 2 if distribution == "iqn" else 1, 3)
    assert torch.allclose(values.double(), naive_values(head, features, tau), atol=1e-5)


def test_dueling_mean_over_actions_is_the_state_value() -> None:
    head = make_head(distribution="none", noisy=False)
    features = torch.randn(6, 5)
    assert head.value is not None
    value = head.value(features, "off")
    assert torch.allclose(head(features, None).mean(-1), value, atol=1e-6)


def test_switched_off_parts_have_no_parameters() -> None:
    # encoder features straight into two layers: DQN's head
    plain = make_head(distribution="none", dueling=False, noisy=False)
    names = [name for name, _ in plain.named_parameters()]
    assert names == [
        f"advantage.{n}" for n in ("hidden.weight", "hidden.bias", "out.weight", "out.bias")
    ]
    assert all("sigma" not in name for name, _ in make_head(noisy=False).named_parameters())
    assert all("value" not in name for name, _ in make_head(dueling=False).named_parameters())


def test_every_noisy_layer_is_noisy_and_only_on_demand() -> None:
    head = make_head()
    layers = [m for m in head.modules() if isinstance(m, NoisyLinear)]
    assert len(layers) == 4
    features, tau = torch.randn(2, 5), torch.rand(2, 3)
    assert torch.equal(head(features, tau), head(features, tau))
    assert torch.equal(head(features, tau, "off"), head(features, tau))
    for layer in layers:  # noise in one layer alone already changes the values
        for other in layers:
            scale = 0.5 if other is layer else 0.0
            nn.init.constant_(other.weight_sigma, scale)
            nn.init.constant_(other.bias_sigma, scale)
        assert not torch.equal(head(features, tau, "batch"), head(features, tau))


def test_values_are_fp32_under_autocast() -> None:
    head = make_head()
    with torch.autocast("cpu", torch.bfloat16):
        assert head(torch.randn(2, 5), torch.rand(2, 3), "batch").dtype == torch.float32


def test_every_parameter_gets_gradient() -> None:
    for quantile_layer in ("features", "hidden"):
        head = make_head(quantile_layer=quantile_layer)
        head(torch.randn(9, 5), torch.rand(9, 8), "batch").square().sum().backward()
        for name, parameter in head.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.any()), name


def test_fractions_are_not_saved_as_weights() -> None:
    head = make_head()
    assert "frequencies" not in head.state_dict()
    assert head.frequencies.tolist() == pytest.approx([math.pi * i for i in (1, 2, 3, 4)])  # pyright: ignore


def test_a_head_of_doubles_has_the_gradient_of_finite_differences():
    torch.manual_seed(0)
    head = ValueHead(6, 3, HeadConfig(hidden_size=5, num_cosines=4, noisy=False)).double()
    features = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    tau = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(head, (features, tau))


def test_fractions_and_noise_must_fit_the_head():
    iqn, dqn = ValueHead(6, 3, HeadConfig()), ValueHead(6, 3, HeadConfig(distribution="none"))
    features = torch.zeros(2, 6)
    with pytest.raises(ValueError, match="tau: distribution 'iqn' takes tau"):
        iqn(features, None)
    with pytest.raises(ValueError, match="tau: distribution 'none' takes no tau"):
        dqn(features, torch.rand(2, 4))
    with pytest.raises(ValueError, match="noise: False is not allowed: one of off, batch, rows"):
        dqn(features, None, False)
