"""LSTM blocks in PyTorch's own CUDA kernel: what it is given, what is kept, and on a GPU itself.

Without a GPU a stand-in written after its documented contract takes its place on the CPU.
"""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rl_nfm.encoders import make_encoder
from rl_nfm.rims import RIM_LSTM, unroll

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
pytestmark = [pytest.mark.gpu] if CUDA else []


def cell_forward(
    input_gates: Tensor, hidden_gates: Tensor, cell: Tensor, _a: object = None, _b: object = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gates i, f, g, o before their nonlinearity; the third result is after it."""
    assert input_gates.dim() == hidden_gates.dim() == cell.dim() == 2
    i, f, g, o = (input_gates + hidden_gates).chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    new_cell = f * cell + i * g
    return o * new_cell.tanh(), new_cell, torch.cat((i, f, g, o), 1)


def cell_backward(
    grad_hidden: Tensor, grad_cell: Tensor, cell: Tensor, new_cell: Tensor, acts: Tensor, bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    i, f, g, o = acts.chunk(4, 1)
    squashed = new_cell.tanh()
    into = grad_cell + grad_hidden * o * (1 - squashed**2)
    of_gates = (
        into * g * i * (1 - i), into * cell * f * (1 - f), into * i * (1 - g**2),
        grad_hidden * squashed * o * (1 - o),
    )  # fmt: skip
    assert not bias
    return torch.cat(of_gates, 1), into * f, into.new_empty(0)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch) -> Iterator[None]:
    """The kernel where there is no GPU; counts in `launches` how often it runs."""
    if CUDA:
        yield
        return
    library = torch.library.Library("aten", "IMPL")
    library.impl("_thnn_fused_lstm_cell", cell_forward, "CPU")
    library.impl("_thnn_fused_lstm_cell_backward_impl", cell_backward, "CPU")
    plain = unroll._PLAIN
    monkeypatch.setattr(unroll, "_choose", lambda spec, compiled, tensors: plain)
    monkeypatch.setattr(unroll, "_has_fused_lstm", lambda spec, tensors: spec.cell == "lstm")
    yield
    library._destroy()


def results(module: torch.nn.Module, *args: Tensor) -> list[Tensor]:
    """What a module gives and gradients of its parameters and first argument."""
    first = args[0].detach().requires_grad_()
    output, state = module(first, *args[1:])
    outputs = [output, *state]
    loss = sum(((k + 1) * x.square().sum() for k, x in enumerate(outputs)), torch.zeros(()))
    leaves = (first, *module.parameters())
    return [*outputs, *torch.autograd.grad(loss, leaves, materialize_grads=True)]


def assert_equal_to_plain(module: torch.nn.Module, *args: Tensor) -> None:
    calls: list[str] = []
    ours = results(module, *args)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unroll, "_has_fused_lstm", lambda *_: calls.append("plain"))
        plain = results(copy.deepcopy(module), *args)
    assert calls
    for a, b in zip(ours, plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.detach().abs().max()))


@pytest.mark.parametrize(("rims", "active"), [(1, 1), (3, 2), (4, 4)])
@pytest.mark.parametrize("steps", [1, 5])
def test_rims_equal_the_plain_path(rims, active, steps):
    torch.manual_seed(0)
    net = RIM_LSTM(7, 12, rims, active, rim_dropout=0.0).to(DEVICE)
    assert_equal_to_plain(net, torch.randn(steps, 3, 7, device=DEVICE))


class Core(torch.nn.Module):
    """The `lstm` encoder from its core on."""

    def __init__(self, batch: int):
        super().__init__()
        torch.manual_seed(0)
        options = {"hidden_size": 6, "last_action": False, "last_reward": False}
        self.encoder = make_encoder("lstm", obs_shape=(1, 36, 36), episode_step=False, **options)
        self.encoder.trunk = None
        self.reset = torch.zeros(4, batch, dtype=torch.bool, device=DEVICE)
        self.reset[2, 1] = True

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """From states that are not zero, one of which is reset."""
        states = [torch.full((x.shape[1], 6), 0.3, device=x.device) for _ in range(2)]
        return self.encoder.unroll(x, tuple(states), self.reset)


def test_lstm_encoder_equals_the_plain_path():
    core = Core(batch=3).to(DEVICE)
    assert_equal_to_plain(core, torch.randn(4, 3, core.encoder.input_size, device=DEVICE))


def test_without_gradients_too():
    net = RIM_LSTM(7, 12, 3, 2).to(DEVICE).eval()
    x = torch.randn(5, 2, 7, device=DEVICE)
    expected = net(x)[0].detach()
    with torch.no_grad():
        assert torch.allclose(net(x)[0], expected, atol=1e-6)


@pytest.mark.skipif(CUDA, reason="about the CPU")
def test_the_cpu_does_not_have_it(monkeypatch):
    monkeypatch.undo()
    assert not unroll._has_fused_lstm(unroll.StepSpec(cell="lstm", num_active=1), (torch.ones(1),))
