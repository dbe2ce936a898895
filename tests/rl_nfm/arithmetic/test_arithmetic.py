import math

import pytest
import torch
from torch import nn

from rl_nfm.arithmetic import (
    NAC,
    NALU,
    ImprovedNeuralArithmeticLogicUnit,
    MultiplicativeAccumulatorCell,
    NeuralAccumulatorCell,
    NeuralAdditionUnit,
    NeuralArithmeticLogicUnit,
    NeuralMultiplicationUnit,
    accumulator_weight,
    log_space_product,
    multiplication_unit,
    product_sign,
    project_,
    sparsity_error,
)
from rl_nfm.arithmetic.functional import accumulator_init_bound

LAYERS = (
    NeuralAccumulatorCell,
    MultiplicativeAccumulatorCell,
    NeuralArithmeticLogicUnit,
    ImprovedNeuralArithmeticLogicUnit,
    NeuralAdditionUnit,
    NeuralMultiplicationUnit,
)


def saturate(cell: NeuralAccumulatorCell) -> None:
    """W = 1 up to rounding."""
    nn.init.constant_(cell.w_hat, 50.0)
    nn.init.constant_(cell.m_hat, 50.0)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_accumulator_weight_by_hand():
    # tanh(1) = 0.761594, sigmoid(1) = 0.731059; their product is 0.556770
    weight = accumulator_weight(torch.tensor(1.0), torch.tensor(1.0))
    assert weight.item() == pytest.approx(0.556770, abs=1e-6)


def test_saturated_nac_is_an_exact_sum():
    cell = NeuralAccumulatorCell(3, 1)
    saturate(cell)
    assert cell(torch.tensor([[2.0, -7.5, 100.0]])).item() == 94.5


@pytest.mark.parametrize("shared", [False, True])
def test_nalu_mixes_sum_and_product_half_and_half_by_hand(shared: bool):
    # W = 1, gate sigmoid(0) = 1/2, x = (2, 3): (2 + 3) / 2 + (2 * 3) / 2 = 5.5
    unit = NeuralArithmeticLogicUnit(2, 1, share_weights=shared)
    saturate(unit.add)
    if unit.mul is not None:
        saturate(unit.mul)
    nn.init.zeros_(unit.gate)
    assert unit(torch.tensor([2.0, 3.0])).item() == pytest.approx(5.5, rel=1e-6)


def test_nalu_with_two_matrices_adds_by_one_and_multiplies_by_the_other():
    # sum path W = (1, 1): 5; product path W = (1, -1): 2 / 3; half of each: 2.8333
    unit = NeuralArithmeticLogicUnit(2, 1)
    assert unit.mul is not None
    saturate(unit.add)
    saturate(unit.mul)
    with torch.no_grad():
        unit.mul.w_hat[0, 1] = -50.0
    nn.init.zeros_(unit.gate)
    assert unit(torch.tensor([2.0, 3.0])).item() == pytest.approx(2.5 + 1 / 3, rel=1e-6)


@pytest.mark.parametrize(
    ("weight", "inputs", "product"),
    [
        ((1.0, 1.0), (2.0, 3.0), 6.0),
        ((1.0, 0.0), (2.0, 3.0), 2.0),
        ((0.5, 0.5), (2.0, 3.0), 3.0),  # (1 + 1/2) (3/2 + 1/2) = 1.5 * 2
        ((1.0, 1.0), (-2.0, 3.0), -6.0),
        ((1.0, 1.0), (-2.0, -3.0), 6.0),
        ((1.0, 1.0), (0.0, 3.0), 0.0),
    ],
)
def test_multiplication_unit_by_hand(weight, inputs, product):
    out = multiplication_unit(torch.tensor(inputs), torch.tensor([weight]))
    assert out.item() == pytest.approx(product)


def test_inalu_restores_the_sign_by_hand():
    # gate sigmoid(-50) = 0: product only. |-2| ** 1 * |3| ** 1 = 6 with sign (-1)(1) = -1
    unit = ImprovedNeuralArithmeticLogicUnit(2, 1)
    nn.init.constant_(unit.w_hat, 50.0)
    nn.init.constant_(unit.m_hat, 50.0)
    nn.init.constant_(unit.gate, -50.0)
    assert unit(torch.tensor([-2.0, 3.0])).item() == pytest.approx(-6.0, rel=1e-5)
    # an input whose weight is 0 has no say in the sign: -2 alone is left out
    with torch.no_grad():
        unit.w_hat[1, 0, 0] = 0.0
    assert unit(torch.tensor([-2.0, 3.0])).item() == pytest.approx(3.0, rel=1e-5)


def test_inalu_gate_does_not_see_the_input():
    unit = ImprovedNeuralArithmeticLogicUnit(3, 2)
    assert unit.gate.shape == (2,)
    nn.init.constant_(unit.gate, 50.0)  # sum only: linear in x
    x, y = torch.randn(2, 5, 3)
    torch.testing.assert_close(unit(x + y), unit(x) + unit(y))


def test_functions_equal_naive_loops():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(7, 5, generator=generator).double()
    weight = torch.rand(3, 5, generator=generator).double() * 2 - 1
    fraction = weight.abs()
    for b in range(7):
        for o in range(3):
            power, sign, unit = 1.0, 1.0, 1.0
            for i in range(5):
                value, w = x[b, i].item(), weight[o, i].item()
                power *= (abs(value) + 1e-10) ** w
                sign *= math.copysign(1, value) * abs(w) + 1 - abs(w)
                unit *= fraction[o, i].item() * value + 1 - fraction[o, i].item()
            assert log_space_product(x, weight)[b, o].item() == pytest.approx(power)
            assert product_sign(x, weight)[b, o].item() == pytest.approx(sign)
            assert multiplication_unit(x, fraction)[b, o].item() == pytest.approx(unit)


def test_log_space_is_guarded_at_zero_and_against_overflow():
    weight = torch.ones(1, 4, requires_grad=True)
    x = torch.tensor([[0.0] * 4, [1e30] * 4], requires_grad=True)
    out = log_space_product(x, weight)
    out.sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    assert weight.grad.isfinite().all()
    torch.testing.assert_close(out[1, 0], torch.tensor(math.exp(80.0)))


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_match_finite_differences(layer):
    torch.manual_seed(1)
    unit = layer(3, 2).double()
    # away from zero and from the bounds, where |x| and clamp have kinks
    x = (torch.rand(4, 3).double() + 0.5) * torch.tensor([1.0, -1.0, 1.0]).double()
    x.requires_grad_()
    names = [name for name, _ in unit.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(unit, dict(zip(names, values, strict=True)), (x,))

    inputs = (x, *(p.detach().clone().requires_grad_() for p in unit.parameters()))
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("layer", LAYERS)
def test_gradient_reaches_every_parameter(layer):
    torch.manual_seed(2)
    unit = layer(3, 2)
    (unit(torch.rand(8, 3) + 0.5) ** 2).sum().backward()
    for name, parameter in unit.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).all(), name


@pytest.mark.parametrize("layer", LAYERS)
def test_weights_stay_in_range_whatever_the_parameters(layer):
    unit = layer(5, 3)
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.copy_(torch.randn_like(parameter) * 100)
    for weight in unit.effective_weights():
        assert weight.shape == (3, 5)
        assert (weight.abs() <= 1).all()
    if layer is NeuralMultiplicationUnit:
        assert (unit.effective_weights()[0] >= 0).all()


def test_weights_are_formed_in_forward_from_what_is_saved():
    cell = NeuralAccumulatorCell(3, 2)
    assert set(cell.state_dict()) == {"w_hat", "m_hat"}
    before = cell(torch.ones(3))
    nn.init.constant_(cell.w_hat, 0.0)
    assert not torch.equal(before, cell(torch.ones(3)))
    assert torch.equal(cell(torch.ones(3)), torch.zeros(2))


def test_parameter_counts():
    # weights of 3 x 4 and 4 x 2: 20; w_hat and m_hat each, and the gate
    assert count(NAC(3, 4, 2)) == 2 * 20
    assert count(NALU(3, 4, 2, share_weights=True)) == 2 * 20 + 20
    assert count(NALU(3, 4, 2)) == 4 * 20 + 20
    assert count(ImprovedNeuralArithmeticLogicUnit(3, 4)) == 4 * 12 + 4


def test_nac_cannot_scale():
    # The best |w| <= 1 for 3.7 a - 2.2 b is (1, -1): a residual of 2.7 a - 1.2 b, whose mean
    # square over independent standard normal a, b is 2.7^2 + 1.2^2 = 8.73.
    torch.manual_seed(0)
    cell = NeuralAccumulatorCell(2, 1)
    x = torch.randn(4096, 2)
    target = 3.7 * x[:, :1] - 2.2 * x[:, 1:]
    optimizer = torch.optim.Adam(cell.parameters(), lr=0.1)
    loss = torch.zeros(())
    for _ in range(400):
        loss = (cell(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 8.0 < loss.item() < 9.5


def test_nac_learns_a_difference_that_extrapolates():
    torch.manual_seed(0)
    cell = NeuralAccumulatorCell(3, 1)
    optimizer = torch.optim.Adam(cell.parameters(), lr=0.3)
    for _ in range(800):
        x = torch.rand(64, 3)
        loss = (cell(x).squeeze(1) - (x[:, 0] - x[:, 2])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert cell(torch.tensor([1000.0, 500.0, 400.0])).item() == pytest.approx(600, rel=0.01)


def test_sparsity_error_by_hand():
    # distances from the nearest of -1, 0, 1: 0.1, 0.4, 0, 0.3
    assert sparsity_error(torch.tensor([0.9, -0.4, 1.0, -0.7])).item() == pytest.approx(0.4)


def test_regularizers_by_hand():
    nau = NeuralAdditionUnit(3, 1)
    with torch.no_grad():
        nau.raw_weight.copy_(torch.tensor([[0.25, -0.75, 1.5]]))  # 1.5 is clamped to 1
    assert nau.regularizer().item() == pytest.approx((0.25 + 0.25 + 0) / 3)
    inalu = ImprovedNeuralArithmeticLogicUnit(2, 3)
    for parameter in inalu.parameters():
        nn.init.constant_(parameter, -5.0)
    assert inalu.regularizer().item() == pytest.approx(5 * (20 - 5) / 20)  # 2 + 2 + 1 terms
    nn.init.constant_(inalu.gate, 21.0)
    assert inalu.regularizer().item() == pytest.approx(4 * (20 - 5) / 20)
    assert NeuralAccumulatorCell(2, 2).regularizer().item() == 0


def test_project_puts_weights_back_and_restores_their_gradient():
    model = nn.Sequential(NeuralAdditionUnit(2, 3), NeuralMultiplicationUnit(3, 1))
    for parameter in model.parameters():
        nn.init.constant_(parameter, -3.0)
    stacked = {name: p.detach().clone()[None] for name, p in model.named_parameters()}
    project_(model)
    project_(model, stacked)
    assert (model[0].raw_weight == -1).all()
    assert (model[1].raw_weight == 0).all()
    assert (stacked["0.raw_weight"] == -1).all()
    assert (stacked["1.raw_weight"] == 0).all()
    model(torch.rand(4, 2) + 1).sum().backward()
    assert (model[1].raw_weight.grad != 0).all()


def test_starts_have_the_published_distributions():
    torch.manual_seed(5)
    nau, nmu = NeuralAdditionUnit(4, 2), NeuralMultiplicationUnit(300, 300)
    # sqrt(3) sqrt(2 / 6) = 1, cut at 1/2
    assert nau.raw_weight.abs().max() <= 0.5
    assert nmu.raw_weight.min() >= 0.25
    assert nmu.raw_weight.max() <= 0.75
    wide = NeuralAdditionUnit(500, 100)
    assert wide.raw_weight.abs().max().item() == pytest.approx(0.1, rel=0.01)  # sqrt(6 / 600)
    nac = NeuralAccumulatorCell(300, 100)
    assert nac.weight.var().item() == pytest.approx(2 / 400, rel=0.05)
    inalu = ImprovedNeuralArithmeticLogicUnit(200, 200)
    assert inalu.w_hat.mean().item() == pytest.approx(0.88, abs=0.01)
    assert inalu.m_hat.mean().item() == pytest.approx(0.5, abs=0.01)
    assert inalu.m_hat.std().item() == pytest.approx(0.2, abs=0.01)


def test_init_bound_reaches_the_largest_variance_it_is_asked_for():
    samples = torch.rand(400_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    others = torch.rand(400_000, generator=torch.Generator().manual_seed(1)) * 2 - 1
    bound = accumulator_init_bound(1, 2)  # taken as 5 units: variance 2 / 5
    variance = accumulator_weight(samples * bound, others * bound).var().item()
    assert variance == pytest.approx(0.4, rel=0.02)


@pytest.mark.parametrize("stack", [NAC, NALU])
@pytest.mark.parametrize("dims", [(), (3,), (3, 0), (3, -1, 2), (2.0, 3)])
def test_bad_sizes_are_refused(stack, dims):
    with pytest.raises(ValueError, match=r"at least two positive integers"):
        stack(*dims)


def test_stacks_take_any_leading_shape():
    for stack in (NAC(3, 4, 2), NALU(3, 4, 2)):
        x = torch.rand(5, 7, 3)
        torch.testing.assert_close(stack(x)[2, 3], stack(x[2, 3]))


def test_a_product_in_log_space_is_exact_under_autocast():
    """An exponent in bf16 would be off by 2 ** -9 of itself: here 6 % of the product."""
    x = torch.rand(100, 2) * 900 + 100
    with torch.autocast("cpu", torch.bfloat16):
        found = log_space_product(x, torch.ones(1, 2))
    torch.testing.assert_close(found[:, 0].float(), x.prod(1), rtol=1e-5, atol=0)


def test_a_product_in_log_space_is_finite_in_half_precision():
    x = torch.tensor([[0.0, 300.0], [300.0, 300.0]], dtype=torch.float16, requires_grad=True)
    found = log_space_product(x, torch.ones(1, 2, dtype=torch.float16))
    found.sum().backward()
    assert found.dtype == torch.float16
    assert found.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("product", [multiplication_unit, product_sign])
def test_a_product_does_not_stretch_its_inputs(product):
    with pytest.raises(ValueError, match="x: 1 inputs, but the weight has 3"):
        product(torch.randn(4, 1), torch.rand(2, 3))
