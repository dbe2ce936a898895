import itertools

import pytest
import torch
from torch import Tensor

from agents.replay.priorities import Priorities

CPU = torch.device("cpu")
SIZES = (1, 2, 3, 5, 7, 10, 17, 63, 101)


def naive_draw(weights: list[float], point: float) -> int:
    """The item at `point` of the number line on which the items lie side by side."""
    passed = 0.0
    for index, weight in enumerate(weights):
        passed += weight
        if point < passed:
            return index
    raise AssertionError("the point lies past the last item")


@pytest.fixture
def uniform(monkeypatch: pytest.MonkeyPatch):
    """Makes `torch.rand` return what the test says."""

    def use(value: float | Tensor) -> None:
        def rand(count: int, **kwargs: object) -> Tensor:
            return torch.as_tensor(value, dtype=torch.float64).expand(count).clone()

        monkeypatch.setattr(torch, "rand", rand)

    return use


@pytest.mark.parametrize("size", SIZES)
def test_writes_loads_and_draws_equal_a_naive_list(size: int, uniform) -> None:
    generator = torch.Generator().manual_seed(size)
    priorities, naive = Priorities(size, CPU), [0.0] * size
    for round_ in range(30):
        count = int(torch.randint(1, size + 1, (), generator=generator))
        index = torch.randperm(size, generator=generator)[:count]
        # whole numbers: their float64 sums are exact, so the draws must agree exactly
        values = torch.randint(0, 5, (count,), generator=generator)
        if round_ % 10 == 9:
            values = torch.randint(0, 5, (size,), generator=generator)
            priorities.load(values)
            naive = [float(v) for v in values]
        else:
            priorities.write(index, values)
            for i, value in zip(index.tolist(), values.tolist(), strict=True):
                naive[i] = float(value)
        assert priorities.weights.tolist() == naive
        assert float(priorities.total) == sum(naive)
        if sum(naive) == 0:
            continue
        # sixteenths, and a power of two of strata: the points are exact too
        draws = torch.randint(0, 16, (64,), generator=generator) / 16
        uniform(draws)
        drawn, probability = priorities.sample(64)
        points = [(i + float(u)) / 64 * sum(naive) for i, u in enumerate(draws)]
        assert drawn.tolist() == [naive_draw(naive, point) for point in points]
        expected = [naive[i] / sum(naive) for i in drawn.tolist()]
        assert probability.tolist() == pytest.approx(expected, rel=1e-15)


def test_of_equal_indices_one_wins_and_the_sums_stay_right() -> None:
    priorities = Priorities(7, CPU)
    priorities.write(torch.tensor([4, 4, 4, 1]), torch.tensor([1.0, 2.0, 3.0, 10.0]))
    assert float(priorities.weights[4]) in (1.0, 2.0, 3.0)
    assert float(priorities.total) == 10.0 + float(priorities.weights[4])


def test_exact_shares_from_the_middle_of_each_stratum(uniform) -> None:
    # total 10, 10 strata of length 1, each point in the middle of one: item i is met weight_i times
    weights = [3, 0, 1, 4, 0, 0, 2]
    priorities = Priorities(7, CPU)
    priorities.load(torch.tensor(weights))
    uniform(0.5)
    drawn, probability = priorities.sample(10)
    assert drawn.tolist() == [0, 0, 0, 2, 3, 3, 3, 3, 6, 6]
    assert probability.tolist() == pytest.approx([0.3] * 3 + [0.1] + [0.4] * 4 + [0.2] * 2)


@pytest.mark.parametrize("size", [5, 12, 37])
def test_stratified_counts_are_within_two_of_proportional(size: int) -> None:
    torch.manual_seed(size)
    priorities = Priorities(size, CPU)
    priorities.load(torch.rand(size, dtype=torch.float64) ** 3)
    share = priorities.weights / priorities.total
    count = 5000
    for _ in range(5):
        drawn, _ = priorities.sample(count)
        counts = torch.bincount(drawn, minlength=size).double()
        # an item covers whole strata, met once each, and at most two it shares with neighbours
        assert float((counts - count * share).abs().max()) < 2


def test_single_draws_follow_the_weights_by_chi_square() -> None:
    torch.manual_seed(3)
    weights = torch.tensor([1.0, 2.0, 0.0, 3.0, 4.0], dtype=torch.float64)
    priorities = Priorities(5, CPU)
    priorities.load(weights)
    count = 500
    drawn = torch.cat([priorities.sample(1)[0] for _ in range(count)])
    counts = torch.bincount(drawn, minlength=5).double()
    assert counts[2] == 0
    expected = (weights / weights.sum() * count)[[0, 1, 3, 4]]
    statistic = float(((counts[[0, 1, 3, 4]] - expected) ** 2 / expected).sum())
    assert statistic < 16.27  # 3 degrees of freedom, 0.999 quantile


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_shares_do_not_depend_on_the_scale(scale: float) -> None:
    torch.manual_seed(0)
    priorities = Priorities(11, CPU)
    weights = torch.arange(11, dtype=torch.float64)
    priorities.load(weights * scale)
    drawn, probability = priorities.sample(5500)
    counts = torch.bincount(drawn, minlength=11).double()
    assert float((counts - 100 * weights).abs().max()) < 2  # 5500 / 55 = 100 per unit of weight
    assert torch.allclose(probability, weights[drawn] / 55, rtol=1e-12)


def test_extreme_ranges_draw_no_item_of_weight_zero() -> None:
    torch.manual_seed(1)
    size = 1009
    exponent = torch.randint(-30, 31, (size,)).double()
    weights = torch.where(torch.rand(size) < 0.5, 0.0, 10.0**exponent)
    priorities = Priorities(size, CPU)
    priorities.load(weights)
    for _ in range(50):
        drawn, probability = priorities.sample(257)
        assert bool((weights[drawn] > 0).all())
        assert torch.allclose(probability, weights[drawn] / weights.sum(), rtol=1e-12)


def test_a_removed_giant_leaves_no_trace() -> None:
    # sums updated by differences would keep a rounding error of 1e30 * 2^-53 ~ 1e14 here
    priorities = Priorities(10, CPU)
    priorities.load(torch.full((10,), 1e-30))
    priorities.write(torch.tensor([4]), torch.tensor([1e30], dtype=torch.float64))
    assert priorities.sample(100)[0].tolist() == [4] * 100
    priorities.write(torch.tensor([4]), torch.tensor([0.0]))
    counts = torch.bincount(priorities.sample(900)[0], minlength=10)
    assert counts[4] == 0
    assert int(counts[[0, 1, 2, 3, 5, 6, 7, 8, 9]].min()) >= 99


def test_many_small_weights_among_zeros() -> None:
    # float32 running sums are off by more than many of the weights here
    torch.manual_seed(2)
    size = 2**19 - 3
    weights = torch.where(torch.arange(size) % 3 == 0, torch.rand(size).double(), 0.0)
    priorities = Priorities(size, CPU)
    priorities.load(weights)
    drawn, probability = priorities.sample(1024)
    assert bool((weights[drawn] > 0).all())
    assert bool((drawn.diff() >= 0).all())  # strata in order
    running = weights.cumsum(0) / weights.sum()
    stratum = torch.arange(1024, dtype=torch.float64) / 1024
    assert bool((running[drawn] > stratum - 1e-12).all())
    assert bool((running[drawn] - probability < stratum + 1 / 1024 + 1e-12).all())


@pytest.mark.parametrize("size", SIZES[2:])
@pytest.mark.parametrize("value", [0.0, 1 - 2**-53])
def test_the_ends_of_the_line(size: int, value: float, uniform) -> None:
    uniform(value)
    middle = size // 2
    for only in itertools.chain(range(3), (middle, size - 1)):
        priorities = Priorities(size, CPU)
        priorities.write(torch.tensor([only]), torch.tensor([0.1]))
        drawn, probability = priorities.sample(3)
        assert drawn.tolist() == [only] * 3
        assert probability.tolist() == [1.0] * 3


def test_of_equal_indices_the_last_one_wins_on_any_device() -> None:
    """Each of them brings the same weight, so that the order of writing does not matter."""
    priorities = Priorities(10, CPU)
    written: list[tuple[list[int], list[float]]] = []
    flat = priorities._weights.view(-1)
    real = torch.Tensor.index_copy_

    def watch(self: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
        if self.data_ptr() == flat.data_ptr():
            written.append((index.tolist(), source.tolist()))
        return real(self, dim, index, source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "index_copy_", watch)
        priorities.write(torch.tensor([3, 7, 3, 1, 3]), torch.tensor([1.0, 2.0, 5.0, 4.0, 0.5]))
    assert written == [([3, 7, 3, 1, 3], [0.5, 2.0, 0.5, 4.0, 0.5])]
    assert priorities.weights.tolist() == [0, 4.0, 0, 0.5, 0, 0, 0, 2.0, 0, 0]
    assert float(priorities.total) == 6.5


@pytest.mark.parametrize("off", [1e-16, -1e-16])
def test_running_sums_of_a_parallel_scan_draw_no_item_of_weight_zero(
    off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan that is off by a rounding error at every other place, upwards or downwards."""
    real = torch.Tensor.cumsum

    def scan(self: Tensor, dim: int) -> Tensor:
        sums = real(self, dim)
        sums[..., 1::2] *= 1 + 2 * off
        return sums

    monkeypatch.setattr(torch.Tensor, "cumsum", scan)
    priorities = Priorities(400, CPU)
    eligible = torch.zeros(400, dtype=torch.bool)
    eligible[[0, 3, 20, 21, 219, 399]] = True
    priorities.load(torch.where(eligible, torch.rand(400) + 0.1, 0.0))
    for _ in range(300):
        index, probability = priorities.sample(32)
        assert bool(eligible[index].all())
        assert bool((probability > 0).all())


def test_weights_that_are_no_numbers_give_an_index_inside() -> None:
    """Training that diverged is told when it is logged, not by a lost GPU before that."""
    priorities = Priorities(50, CPU)
    priorities.load(torch.full((50,), float("nan")))
    index, _ = priorities.sample(16)
    assert bool(((index >= 0) & (index < 56)).all())


@pytest.mark.parametrize("size", [7, 64, 65])
def test_without_any_weight_an_index_inside_with_probability_zero_is_drawn(size: int) -> None:
    """The last block is padded; a priority written there was drawn ever after."""
    index, probability = Priorities(size, CPU).sample(3)
    assert (index < size).all()
    assert (probability == 0).all()
