import pytest
import torch
from torch import nn

from rl_nfm.arithmetic import BuildHead, NeuralAccumulatorCell, NeuralArithmeticLogicUnit


def backbone() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU())


@pytest.mark.parametrize(
    ("head_type", "layer"),
    [("NAC", NeuralAccumulatorCell), ("NALU", NeuralArithmeticLogicUnit), ("linear", nn.Linear)],
)
def test_head_is_made_of_its_cells(head_type, layer):
    model = BuildHead(backbone(), 5, [6, 4], num_outputs=7, head_type=head_type)
    assert [m.out_features for m in model.modules() if isinstance(m, layer)] == [4, 7]


def test_classification_gives_log_probabilities_of_two_classes_by_default():
    out = BuildHead(backbone(), 5, (6,))(torch.rand(2, 3, 9, 11))
    assert out.shape == (2, 2)
    torch.testing.assert_close(out.exp().sum(1), torch.ones(2))


def test_regression_averages_over_positions_and_adds():
    # identity backbone of 2 channels, 1x1 convolution set to the identity, a saturated NAC:
    # means of (1, 2, 3, 4) and (10, 10, 10, 50) are 2.5 and 20; their sum is 22.5
    model = BuildHead(nn.Identity(), 2, [2], task="regression", head_type="NAC")
    conv = model.pool[0]
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    with torch.no_grad():
        conv.weight.copy_(torch.eye(2)[:, :, None, None])
        conv.bias.zero_()
    for parameter in model.head.parameters():
        nn.init.constant_(parameter, 50.0)
    image = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[10.0, 10.0], [10.0, 50.0]]])[None]
    out = model(image)
    assert out.shape == (1, 1)
    assert out.item() == pytest.approx(22.5)


def test_several_values_can_be_regressed_and_gradients_reach_the_backbone():
    torch.manual_seed(0)
    net = backbone()
    out = BuildHead(net, 5, (6, 4), task="regression", num_outputs=10)(torch.rand(3, 3, 8, 8))
    assert out.shape == (3, 10)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "ranking"}, "task: 'ranking' is not one of classification, regression"),
        ({"head_type": "nalu"}, "head_type: 'nalu' is not one of NAC, NALU, linear"),
        ({"num_outputs": 0}, "at least two positive integers"),
        ({"hidden_dims": []}, "hidden_dims: at least one size"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        BuildHead(**{"conv_model": nn.Identity(), "op_channels": 5, "hidden_dims": [4], **options})
    assert "\n" not in str(error.value)
