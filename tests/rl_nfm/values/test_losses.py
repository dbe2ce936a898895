import math
import random

import pytest
import torch
from torch import Tensor

from rl_nfm.values import losses


def f64(*values: object) -> Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


def test_huber_by_hand() -> None:
    # kappa 2: 1^2 / 2; at the knee 2^2 / 2 = 2 (5 - 1) for 5: 2 (|x| - 1)
    x = f64(-5.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
    assert losses.huber(x, 2.0).tolist() == [8.0, 2.0, 0.5, 0.0, 0.5, 2.0, 4.0]


@pytest.mark.parametrize("kappa", [0.3, 1.0, 2.0])
def test_huber_equals_pytorch(kappa: float) -> None:
    x = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    expected = torch.nn.functional.huber_loss(x, torch.zeros_like(x), delta=kappa, reduction="none")
    assert torch.allclose(losses.huber(x, kappa), expected, rtol=1e-14)


def test_huber_gradient_at_zero_and_at_the_knee() -> None:
    x = f64(0.0, 1.0, -1.0, 0.5, 4.0).requires_grad_()
    losses.huber(x, 1.0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, -1.0, 0.5, 1.0]


# Two items with the same values and other fractions. Numbers of rlax's test of this loss.
QUANTILES = f64([[-1.0, 3.0], [-1.0, 3.0]])
FRACTIONS = f64([[0.2, 0.7], [0.0, 0.4]])
TARGETS = f64([[-3.0, 4.0, 2.0], [-3.0, 4.0, 2.0]])
# td = [[-2, 5, 3], [-6, 1, -1]], Huber with kappa 2: [[2, 8, 4], [10, 0.5, 0.5]]
# |tau - 1(td < 0)| = [[0.8, 0.2, 0.2], [0.3, 0.7, 0.3]] and [[1, 0, 0], [0.6, 0.4, 0.6]]


def test_quantile_loss_by_hand_without_huber() -> None:
    loss, td_error = losses.quantile_huber_loss(QUANTILES, FRACTIONS, TARGETS, 0.0)
    # (1.6 + 1 + 0.6 + 1.8 + 0.7 + 0.3) / 3 = 6 / 3; (2 + 0 + 0 + 3.6 + 0.4 + 0.6) / 3 = 6.6 / 3
    assert loss.tolist() == pytest.approx([2.0, 2.2], rel=1e-14)
    # (2 + 5 + 3 + 6 + 1 + 1) / 6 = 3
    assert td_error.tolist() == pytest.approx([3.0, 3.0])


def test_quantile_huber_loss_by_hand() -> None:
    loss, td_error = losses.quantile_huber_loss(QUANTILES, FRACTIONS, TARGETS, 2.0)
    # Without the division by kappa, as rlax has it: (1.6 + 1.6 + 0.8 + 3 + 0.35 + 0.15) / 3 = 2.5
    # and (2 + 0 + 0 + 6 + 0.2 + 0.3) / 3 = 8.5 / 3. IQN's eq. 3 divides by kappa.
    assert (2.0 * loss).tolist() == pytest.approx([2.5, 8.5 / 3], rel=1e-14)
    assert td_error.tolist() == pytest.approx([3.0, 3.0])


def naive_quantile_loss(z: list[float], tau: list[float], y: list[float], kappa: float) -> float:
    """Sum over online, mean over target quantiles, one pair at a time."""
    total = 0.0
    for value, fraction in zip(z, tau, strict=True):
        for target in y:
            td = target - value
            weight = abs(fraction - (1.0 if td < 0 else 0.0))
            if kappa == 0:
                error = abs(td)
            elif abs(td) <= kappa:
                error = td * td / 2 / kappa
            else:
                error = abs(td) - kappa / 2
            total += weight * error / len(y)
    return total


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
def test_quantile_loss_equals_a_loop(kappa: float) -> None:
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64)  # [T, B, N]
    tau = torch.rand(3, 2, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 2, 7, generator=generator, dtype=torch.float64)
    loss, td_error = losses.quantile_huber_loss(z, tau, y, kappa)
    for t in range(3):
        for b in range(2):
            item = (z[t, b].tolist(), tau[t, b].tolist(), y[t, b].tolist())
            assert float(loss[t, b]) == pytest.approx(naive_quantile_loss(*item, kappa), rel=1e-12)
            pairs = [abs(target - value) for value in item[0] for target in item[2]]
            assert float(td_error[t, b]) == pytest.approx(sum(pairs) / 35, rel=1e-12)


@pytest.mark.parametrize("kappa", [0.0, 0.7, 1.0])
def test_gradients_equal_finite_differences(kappa: float) -> None:
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    tau = torch.rand(4, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: losses.quantile_huber_loss(x, tau, y, kappa)[0], (z,), eps=1e-7
    )
    q = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randn(6, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: losses.td_loss(x, target, kappa)[0], (q,), eps=1e-7)


def test_no_gradient_reaches_targets_and_errors() -> None:
    z = torch.randn(2, 3, requires_grad=True)
    y = torch.randn(2, 4, requires_grad=True)
    loss, td_error = losses.quantile_huber_loss(z, torch.rand(2, 3), y)
    assert not td_error.requires_grad
    loss.sum().backward()
    assert y.grad is None
    q, target = torch.randn(5, requires_grad=True), torch.randn(5, requires_grad=True)
    loss, td_error = losses.td_loss(q, target)
    assert not td_error.requires_grad
    loss.sum().backward()
    assert target.grad is None


def test_one_median_is_half_the_huber_loss_of_the_td_error() -> None:
    """One quantile at 0.5 weighs both signs with a half."""
    generator = torch.Generator().manual_seed(6)
    q, target = torch.randn(2, 50, generator=generator, dtype=torch.float64) * 2
    half = torch.full((50, 1), 0.5, dtype=torch.float64)
    for kappa in (0.0, 1.0):
        loss, td_error = losses.quantile_huber_loss(q[:, None], half, target[:, None], kappa)
        plain, error = losses.td_loss(q, target, kappa)
        expected = 0.5 * error if kappa == 0 else 0.5 * plain / kappa
        assert torch.allclose(loss, expected, rtol=1e-14)
        assert torch.equal(td_error, error)


def test_td_loss_by_hand() -> None:
    q, target = f64(1.0, 2.0, -1.0), f64(4.0, 2.5, -1.0)
    # td 3, 0.5, 0: Huber 1 * (3 - 0.5), 0.125, 0; squared 4.5, 0.125, 0
    assert losses.td_loss(q, target, 1.0)[0].tolist() == [2.5, 0.125, 0.0]
    assert losses.td_loss(q, target, 0.0)[0].tolist() == [4.5, 0.125, 0.0]
    assert losses.td_loss(q, target, 0.0)[1].tolist() == [3.0, 0.5, 0.0]


def test_take_action_and_bootstrap_by_hand() -> None:
    values = torch.arange(12.0).view(2, 2, 3)  # [B, N, A]
    taken = losses.take_action(values, torch.tensor([2, 0]))
    assert taken.tolist() == [[2.0, 5.0], [6.0, 9.0]]
    # 1 + 0.5 * (2, 5) and -1 + 0 * (6, 9)
    target = losses.bootstrap_target(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.0]), taken)
    assert target.tolist() == [[2.0, 3.5], [-1.0, -1.0]]


def test_take_action_with_time() -> None:
    generator = torch.Generator().manual_seed(8)
    values = torch.randn(3, 2, 5, 4, generator=generator)
    action = torch.randint(4, (3, 2), generator=generator)
    taken = losses.take_action(values, action)
    for t in range(3):
        for b in range(2):
            assert torch.equal(taken[t, b], values[t, b, :, action[t, b]])


def test_value_rescaling_by_hand() -> None:
    """h(x) = sign(x) (sqrt(|x| + 1) - 1) + eps x of R2D2, eps 1 / 1000, and its inverse."""
    x = f64(0.0, 3.0, -3.0, 8.0, 99.0, 0.5)
    # sqrt(4) - 1 + 0.003; sqrt(9) - 1 + 0.008; sqrt(100) - 1 + 0.099; sqrt(1.5) - 1 + 0.0005
    expected = [0.0, 1.003, -1.003, 2.008, 9.099, 0.225244871391589]
    assert losses.signed_hyperbolic(x).tolist() == pytest.approx(expected, rel=1e-14)
    assert losses.signed_parabolic(f64(expected)).tolist() == pytest.approx(x.tolist(), rel=1e-12)
    # without the linear term the inverse is (|x| + 1)^2 - 1
    assert losses.signed_hyperbolic(f64([8.0]), 0.0).tolist() == [2.0]
    assert losses.signed_parabolic(f64(2.0, -0.5), 0.0).tolist() == [8.0, -1.25]


# x, rlax.signed_hyperbolic(x), rlax.signed_parabolic(x): rlax 0.1.9 executed in float64
RLAX = [
    (-1000.0, -31.63858403911275, -382518.4400268373),
    (-2.0, -0.7340508075688772, -7.952349144987261),
    (-0.5, -0.22524487139158894, -1.2462627648760685),
    (-0.001, -0.0005008750624609638, -0.001997002006018045),
    (0.0, 0.0, 0.0),
    (1e-06, 5.009998750587764e-07, 1.9960089914228263e-06),
    (0.25, 0.1182839887498949, 0.5610975709032828),
    (1.0, 0.41521356237309515, 2.988056701675955),
    (7.5, 1.9229759474226504, 70.0638239325713),
    (10000.0, 109.00499987500625, 7299281.555164479),
]


def test_value_rescaling_equals_rlax() -> None:
    x, there, back = f64(RLAX).unbind(1)
    assert torch.allclose(losses.signed_hyperbolic(x), there, rtol=1e-12, atol=1e-15)
    assert torch.allclose(losses.signed_parabolic(x), back, rtol=1e-12, atol=1e-12)
    # rlax.transformed_n_step_q_learning with n = 1, SIGNED_HYPERBOLIC_PAIR and a prediction of 0
    target = losses.rescaled_bootstrap_target(
        f64(5.0, -120.0, 0.25), f64(0.997, 0.9, 0.0), f64([[-2.0], [4.0], [-7.0]]), 1e-3
    )
    assert target.flatten().tolist() == pytest.approx(
        [-0.9849708976863678, -9.079262545938239, 0.1182839887498949], rel=1e-12
    )


def test_value_rescaling_keeps_float32s_digits() -> None:
    """The printed form of the inverse is off by 1e-4 of values around 1, in float32."""
    x = torch.logspace(-6, 6, 200)
    x = torch.cat([-x, x])
    there = losses.signed_hyperbolic(x)
    assert torch.allclose(losses.signed_parabolic(there), x, rtol=2e-6, atol=0)
    printed = (((1 + 4e-3 * (there.abs() + 1.001)).sqrt() - 1) / 2e-3).square() - 1
    assert not torch.allclose(printed * x.sign(), x, rtol=2e-6, atol=0)
    assert bool((there[201:] > there[200:-1]).all()), "it keeps the order"


def test_rescaled_target_by_hand() -> None:
    """h(r + discount * h^-1(value)): the TD error is in units of h, rewards are raw."""
    # h^-1(1.003) = 3 and h^-1(-1.003) = -3; 5 + 0.5 * 6 = 8 -> 2.008; 99 + 0 -> 9.099
    value = f64([[1.003, 1.003], [-1.003, 2.0]])
    target = losses.rescaled_bootstrap_target(f64(6.5, 99.0), f64(0.5, 0.0), value, 1e-3)
    assert target.flatten().tolist() == pytest.approx([2.008, 2.008, 9.099, 9.099], rel=1e-12)


def naive_soft(q: list[float], temperature: float) -> tuple[list[float], list[float]]:
    """Policy and temperature * log policy, by plain exponentials."""
    powers = [math.exp(value / temperature) for value in q]
    pi = [power / sum(powers) for power in powers]
    return pi, [temperature * math.log(p) for p in pi]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_munchausen_equals_a_loop(temperature: float) -> None:
    rng = random.Random(9)
    alpha, clip = 0.9, -1.4 * temperature  # an even policy over 4 has temperature * -1.39
    quantiles = [[[rng.gauss(0, 1) for _ in range(4)] for _ in range(3)] for _ in range(6)]
    actions = [rng.randrange(4) for _ in range(6)]
    z = f64(quantiles)  # [B, M, A]
    bonus = losses.munchausen_bonus(z.mean(1), torch.tensor(actions), alpha, temperature, clip)
    value = losses.munchausen_value(z, temperature)
    clipped = 0
    for b, item in enumerate(quantiles):
        q = [sum(row[a] for row in item) / 3 for a in range(4)]
        pi, log_pi = naive_soft(q, temperature)
        expected = alpha * max(clip, min(0.0, log_pi[actions[b]]))
        clipped += log_pi[actions[b]] < clip
        assert float(bonus[b]) == pytest.approx(expected, rel=1e-12)
        for m in range(3):
            soft = sum(pi[a] * (item[m][a] - log_pi[a]) for a in range(4))
            assert float(value[b, m]) == pytest.approx(soft, rel=1e-12)
    assert 0 < clipped < 6  # both sides of the clip were met


def test_munchausen_by_hand() -> None:
    # q = (0, ln 3), temperature 1: pi = (1/4, 3/4); bonus 0.9 ln(1/4) = -1.2477 is clipped to -0.9
    q = f64([[0.0, math.log(3)]])
    kwargs = {"alpha": 0.9, "temperature": 1.0, "clip": -1.0}
    assert losses.munchausen_bonus(q, torch.tensor([0]), **kwargs).tolist() == [-0.9]
    expected = 0.9 * math.log(0.75)
    assert losses.munchausen_bonus(q, torch.tensor([1]), **kwargs).tolist() == pytest.approx(
        [expected]
    )
    # soft value = log sum exp = ln(1 + 3)
    value = losses.munchausen_value(q[:, None], 1.0)
    assert value.tolist() == [[pytest.approx(math.log(4))]]


def test_munchausen_is_stable_and_turns_greedy() -> None:
    z = torch.tensor([[[1000.0, 0.0, -1000.0]]])
    assert losses.munchausen_value(z, 1e-3).tolist() == [[1000.0]]
    bonus = losses.munchausen_bonus(z[0], torch.tensor([2]), 0.9, 1e-3, -1.0)
    assert bonus.tolist() == pytest.approx([-0.9])
    assert losses.munchausen_bonus(z[0], torch.tensor([0]), 0.9, 1e-3, -1.0).tolist() == [0.0]


def test_soft_value_of_equal_actions_adds_their_entropy() -> None:
    # pi = 1/5 each: value 2 + temperature ln 5
    z = torch.full((1, 3, 5), 2.0, dtype=torch.float64)
    value = losses.munchausen_value(z, 0.5)
    assert value.tolist() == [pytest.approx([2 + 0.5 * math.log(5)] * 3)]


def test_gradient_of_the_inverse_rescaling_is_that_of_finite_differences():
    """At 0 too, where a value of an untrained network may be: 1 / h'(0) = 1 / (1/2 + eps)."""
    x = torch.tensor([-300.0, -1.0, 0.0, 1e-3, 2.0, 500.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(losses.signed_parabolic, (x,))
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    losses.signed_parabolic(zero).backward()
    assert float(zero.grad) == pytest.approx(1 / 0.501)
