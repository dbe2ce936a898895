"""The output block with a factor in its last layer's weights, as a GPU runs it."""

import pytest
import torch

from rl_nfm.nfm import NFMConfig
from rl_nfm.nfm.output import OutBlock


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("out_layers", [1, 2])
@pytest.mark.parametrize(("out_kernel", "sizes"), [(1, (3, 2)), (3, (3, 2)), (3, (5,))])
def test_the_factor_multiplies_the_result(out_kernel, sizes, out_layers, hooked):
    torch.manual_seed(0)
    config = NFMConfig(
        heads=2, value_size=3, out_kernel=out_kernel, out_layers=out_layers, out_norm="group"
    )
    block = OutBlock(config, channels=4, rank=len(sizes)).double()
    calls = []
    if hooked:
        block[-1].register_forward_hook(lambda *_: calls.append(1))
    rows = torch.randn(2, torch.Size(sizes).numel(), 6, dtype=torch.float64, requires_grad=True)
    factor = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    inputs = [rows, factor, *block.parameters()]
    ours, plain = (
        [out, *torch.autograd.grad(out.square().sum(), inputs)]
        for out in (block(rows, sizes, factor), factor * block(rows, sizes))
    )
    torch.testing.assert_close(ours, plain)
    assert len(calls) == 2 * hooked
