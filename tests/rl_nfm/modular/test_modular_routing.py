import pytest
import torch

from rl_nfm.modular import straight_through_one_hot, straight_through_top_k
from rl_nfm.modular.routing import gumbel_noise, perturb


def test_top_k_selects_in_order_of_the_logits():
    logits = torch.tensor([[0.5], [2.0], [-1.0], [1.0]])
    chosen = straight_through_top_k(logits, 3)
    assert chosen[:, :, 0].argmax(1).tolist() == [1, 3, 0]


def test_large_logits_are_ranked_although_their_sigmoids_tie():
    # sigmoid(40) = sigmoid(60) = 1 in float32
    chosen = straight_through_top_k(torch.tensor([[40.0], [60.0], [50.0]]), 2)
    assert chosen[:, :, 0].argmax(1).tolist() == [1, 2]


def test_forward_is_exactly_hard():
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 4) * 10
    for chosen in (straight_through_top_k(logits, 2)[0], straight_through_one_hot(logits)):
        assert set(chosen.unique().tolist()) == {0.0, 1.0}
        assert (chosen.sum(-2) == 1).all()


def test_backward_is_that_of_the_sigmoid_by_hand():
    # L = sum over both vectors of u * chosen, u = (1, 2, 3): dL/dl = 2 u s (1 - s)
    logits = torch.tensor([[0.0], [1.0], [-2.0]], requires_grad=True)
    upstream = torch.tensor([[1.0], [2.0], [3.0]])
    (straight_through_top_k(logits, 2) * upstream).sum().backward()
    s = logits.detach().sigmoid()
    torch.testing.assert_close(logits.grad, 2 * upstream * s * (1 - s))


def test_backward_of_the_one_hot_is_that_of_the_softmax():
    torch.manual_seed(1)
    logits = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 4, 3, dtype=torch.float64)
    (straight_through_one_hot(logits) * upstream).sum().backward()
    soft = logits.detach().clone().requires_grad_()
    (soft.softmax(-2) * upstream).sum().backward()
    torch.testing.assert_close(logits.grad, soft.grad)


def test_temperature_divides_logits_and_noise():
    logits, noise = torch.tensor([1.0, 3.0]), torch.tensor([0.5, -1.0])
    assert perturb(logits, noise, 0.5).tolist() == [3.0, 4.0]
    assert perturb(logits, None, 2.0).tolist() == [0.5, 1.5]


def test_gumbel_noise_chooses_in_proportion_to_exp():
    # argmax(logits + Gumbel) is a sample of softmax(logits): P = (1, 2, 5) / 8
    logits = torch.tensor([1.0, 2.0, 5.0]).log()
    noise = gumbel_noise((200_000, 3), torch.Generator().manual_seed(0))
    share = torch.bincount((logits + noise).argmax(1), minlength=3) / 200_000
    assert share.tolist() == pytest.approx([0.125, 0.25, 0.625], abs=0.005)
    # the mean of Gumbel(0, 1) is Euler's constant
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
