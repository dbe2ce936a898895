"""Sparse attention weights: hand-worked numbers, exact k, a loop over positions as twin."""

import itertools
import math

import pytest
import torch

from rl_nfm.nfm import attention, kernels
from rl_nfm.nfm.attention import masked_top_k, sab_top_k, sparse_weights
from rl_nfm.nfm.rescale import Grid

# Scores 2, 1 and the null slot's 0: softmax .665241 .244728 .090031; values 3, 5 and 0.
SCORES = torch.tensor([2.0, 1.0, 0.0])
VALUES = torch.tensor([3.0, 5.0, 0.0])


@pytest.mark.parametrize(
    ("mode", "weights", "read"),
    [
        # .665241 * 3 + .244728 * 5
        ("dense", [0.665241, 0.244728, 0.090031], 3.219365),
        # softmax of 2 and 1: .731059 * 3 + .268941 * 5
        ("masked", [0.731059, 0.268941, 0.0], 3.537883),
        # less .090031: .575210 and .154697, divided by their sum .729907
        ("sab", [0.788058, 0.211942, 0.0], 3.423883),
        # as coded, k + 1 slots stay dense
        ("sab_published", [0.665241, 0.244728, 0.090031], 3.219365),
    ],
)
def test_hand_worked_slots(mode, weights, read):
    w = sparse_weights(SCORES, 2, mode)
    torch.testing.assert_close(w, torch.tensor(weights), atol=1e-6, rtol=0)
    assert (w @ VALUES).item() == pytest.approx(read, abs=1e-5)


def test_sab_is_not_a_masked_softmax():
    p = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.06, 0.04])
    # less .15: .15 .10 .05, divided by .30
    expected = torch.tensor([0.5, 1 / 3, 1 / 6, 0, 0, 0])
    torch.testing.assert_close(sab_top_k(p, 3, dense_up_to=3), expected, atol=1e-5, rtol=0)
    # .3 .25 .2 divided by .75
    expected = torch.tensor([0.4, 1 / 3, 0.8 / 3, 0, 0, 0])
    torch.testing.assert_close(masked_top_k(p.log(), 3), expected)


def test_sab_gradient_reaches_the_border_slot():
    p = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.06, 0.04], dtype=torch.float64, requires_grad=True)
    upstream = torch.arange(1.0, 7.0, dtype=torch.float64)
    (sab_top_k(p, 3, dense_up_to=3) * upstream).sum().backward()
    # w = (p - d) / s; mean m = .5 * 1 + .3333 * 2 + .1667 * 3 = 1.6667; (u - m) / s with s = .3:
    # -2.22, 1.11, 4.44, and minus their sum, -3.33, for the border d.
    expected = torch.tensor([-20 / 9, 10 / 9, 40 / 9, -30 / 9, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(p.grad, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [3, 6, 17, 64])
def test_of_ties_the_first_are_kept(length):
    scores = torch.zeros(4, length)
    scores[1, -1] = 1.0
    kept = [row.nonzero().flatten().tolist() for row in masked_top_k(scores, 2)]
    assert kept == [[0, 1], [0, length - 1], [0, 1], [0, 1]]


def test_ties_admit_k_and_never_more():
    ties = torch.zeros(3, 6)
    weights = masked_top_k(ties, 2)
    assert ((weights > 0).sum(-1) == 2).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3))
    # The published form attends to nothing there.
    assert not sparse_weights(ties, 2, "sab").any()


@pytest.mark.parametrize("mode", ["masked", "sab", "sab_published"])
@pytest.mark.parametrize("slots", [1, 3, 4, 5, 23])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_at_most_k_weights_that_sum_to_one(mode, slots, k):
    torch.manual_seed(slots * k)
    scores = 3 * torch.randn(50, slots)
    weights = sparse_weights(scores, k, mode)
    dense = mode == "sab_published" and slots == k + 1
    assert (weights >= 0).all()
    assert ((weights > 0).sum(-1) <= (slots if dense else min(k, slots))).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(50), atol=1e-4, rtol=0)
    assert (weights.argmax(-1) == scores.argmax(-1)).all()


@pytest.mark.parametrize("mode", ["masked", "sab", "dense"])
def test_minus_infinity_gets_nothing(mode):
    scores = torch.tensor([0.5, float("-inf"), -0.5, float("-inf")], requires_grad=True)
    weights = sparse_weights(scores, 3, mode)
    assert weights[1] == weights[3] == 0
    assert weights.sum().item() == pytest.approx(1, abs=1e-4)
    weights[0].backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "kernels"])
@pytest.mark.parametrize("mode", ["space_to_depth", "nearest"])
def test_attention_equals_a_loop_over_positions(fused, mode):
    if fused and not kernels.available():
        pytest.skip("no C++ compiler")
    torch.manual_seed(0)
    heads, size, k, target = 3, 4, 3, (4, 3)
    sources = [(4, 3), (2, 2), (7, 3), (5, 8)]
    query = torch.randn(2, math.prod(target), heads * size)
    keys = [torch.randn(2, math.prod(s), heads * size) for s in sources]
    values = [torch.randn(2, math.prod(s), heads * (size + 1)) for s in sources]
    grid = Grid.of(target, sources, mode)
    if fused:
        options = {"heads": heads, "scale": 0.5, "top_k": k, "null_slot": True}
        read = kernels.attend(query, keys, values, grid, **options)[0]
    else:
        scores = attention.slot_scores(query, keys, grid, heads, 0.5, True)
        read = attention.mix_values(attention.masked_top_k(scores, k), values, grid)
    for b, row, column, h in itertools.product(range(2), range(4), range(3), range(heads)):
        q = query[b, 3 * row + column].view(heads, size)[h]
        pairs = [(0.0, torch.zeros(size + 1))]
        for source, key, value in zip(sources, keys, values, strict=True):
            spans = []
            for i, s, t in zip((row, column), source, target, strict=True):
                finer = s > t and mode == "space_to_depth"
                end = math.ceil((i + 1) * s / t) if finer else i * s // t + 1
                spans.append(range(i * s // t, end))
            for y, x in itertools.product(*spans):
                at = (b, source[1] * y + x)
                score = 0.5 * q @ key[at].view(heads, size)[h]
                pairs.append((score.item(), value[at].view(heads, size + 1)[h]))
        best = sorted(pairs, key=lambda pair: -pair[0])[:k]
        weights = torch.tensor([score for score, _ in best]).softmax(0)
        expected = sum(w * value for w, (_, value) in zip(weights, best, strict=True))
        actual = read[b, 3 * row + column].view(heads, size + 1)[h]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_autocast_does_not_round_scores():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 9, 8).bfloat16()
    grid = Grid.of((3, 3), [(3, 3)], "nearest")
    exact = attention.slot_scores(query.float(), [key.float()], grid, 2, 0.5, True)
    with torch.autocast("cpu", torch.bfloat16):
        scores = attention.slot_scores(query, [key], grid, 2, 0.5, True)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["masked", "sab", "dense"])
def test_gradients_against_finite_differences(mode):
    torch.manual_seed(3)
    scores = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: sparse_weights(s, 3, mode), scores)


@pytest.mark.parametrize("mode", ["masked", "dense"])
def test_dropout_keeps_the_mean(mode):
    torch.manual_seed(0)
    weights = sparse_weights(torch.zeros(20_000, 4), 4, mode, dropout=0.25)
    torch.testing.assert_close(weights.unique(), torch.tensor([0.0, 0.25 / 0.75]))
    assert weights.mean().item() == pytest.approx(0.25, abs=0.01)
