import pytest
from torch import nn

from rl_nfm.backbones.matching import count_parameters, same_params_as
from rl_nfm.encoders import make_encoder


def build(width: int) -> nn.Module:
    return nn.Linear(width, 1, bias=False)


@pytest.mark.parametrize("wanted", [1, 2, 3, 7, 64, 1000])
def test_width_is_found_exactly_where_it_exists(wanted):
    assert same_params_as(wanted, build) == wanted


def test_the_nearer_width_wins():
    # squares: 25 at width 5, 36 at 6; 30 is nearer to 25, 31 to 36
    def square(width: int) -> nn.Module:
        return nn.Linear(width, width, bias=False)

    assert same_params_as(30, square) == 5
    assert same_params_as(31, square) == 6
    assert same_params_as(square(9), square) == 9


def test_only_trainable_numbers_count():
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 6


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(ValueError, match="0 parameters"):
        same_params_as(0, build)
    with pytest.raises(ValueError, match="11 at width 1"):
        same_params_as(5, lambda width: nn.Linear(10, width))


@pytest.mark.parametrize("options", [{"width": 64}, {"width": 12, "depth": 10, "norm": "none"}])
def test_resnet_matches_nfm(options):
    nfm = count_parameters(make_encoder("nfm", **options))
    plain = make_encoder("resnet", **options)
    matched = make_encoder("resnet", same_params_as="nfm", **options)
    assert count_parameters(plain) < 0.6 * nfm
    assert count_parameters(matched) == pytest.approx(nfm, rel=0.06)
    # 3 x 3 positions of 8 times the width
    assert matched.feature_dim == 72 * matched.width
