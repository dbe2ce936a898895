"""A restored optimiser goes on as if nothing had been saved, whatever the memory formats."""

import pytest
import torch
from torch import nn

from rl_nfm.support.optimizer import load_optimizer_state, optimizer_state
from rl_nfm.support.storage import load_tensors, write_tensors


def network():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 2), nn.Flatten(), nn.Linear(4, 2))
    return layers.to(memory_format=torch.channels_last)


def step(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    model(torch.randn(7, 3, 4, 4, generator=generator)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.Adam, {"fused": True}),
        (torch.optim.Adam, {"foreach": True, "amsgrad": True}),
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_one_update_after_a_restore_is_that_without_it(tmp_path, kind, options):
    whole = network()
    optimizer = kind(whole.parameters(), lr=0.01, **options)
    for seed in range(3):
        step(whole, optimizer, seed)
    write_tensors(tmp_path / "moments", optimizer_state(optimizer))
    restored = network()
    restored.load_state_dict(whole.state_dict())
    other = kind(restored.parameters(), lr=0.01, **options)
    load_optimizer_state(other, load_tensors(tmp_path / "moments"))
    step(whole, optimizer, 3)
    step(restored, other, 3)
    for a, b in zip(whole.parameters(), restored.parameters(), strict=True):
        assert torch.equal(a, b)
        for name, value in other.state[b].items():
            assert torch.equal(value, optimizer.state[a][name]), name
            if value.dim() == 4:
                assert value.stride() == b.stride(), name


def test_the_rate_that_a_schedule_writes_to_is_kept():
    model, rate = network(), torch.tensor(0.01)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    step(model, optimizer, 0)
    load_optimizer_state(optimizer, optimizer_state(optimizer))
    assert optimizer.param_groups[0]["lr"] is rate


def test_what_does_not_fit_is_named():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match=r"'0\.exp_avg' has shape \(3, 2\), must be \(2, 3\)"):
        load_optimizer_state(optimizer, {"0.exp_avg": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match=r"'9\.exp_avg' belongs to no parameter"):
        load_optimizer_state(optimizer, {"9.exp_avg": torch.zeros(3, 2)})
