"""RIM_LSTM against nn.LSTM of the same sizes: forward and backward of a whole sequence.

All models are timed in turn, so that a busy machine slows them alike; the result is the ratio of
medians to nn.LSTM. Beside it stands a lower bound (floor), the ratio of multiply-accumulates
(MACs). On a GPU the models are also timed with compiled steps, and with forward and backward
captured as CUDA graphs.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._options import positive
from rl_nfm.rims import RIM_GRU, RIM_LSTM

Core = Callable[..., Any]


def rim_macs(net: nn.Module, x: Tensor) -> float:
    """MACs of a forward pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x)
    return counter.get_total_flops() / 2


def make_cores(args: argparse.Namespace, x: Tensor) -> dict[str, tuple[Core, float]]:
    """By name, the module to time and its MACs; nn.LSTM comes first."""
    cores: dict[str, tuple[Core, float]] = {}
    gates = 4 * args.hidden
    for name, net, count in (
        ("nn.LSTM", nn.LSTM(args.inputs, args.hidden), gates * (args.inputs + args.hidden)),
        ("nn.GRU", nn.GRU(args.inputs, args.hidden), gates * 3 / 4 * (args.inputs + args.hidden)),
    ):
        cores[name] = (_First(net.to(args.device)), count * args.steps * args.batch)
    sizes = (args.inputs, args.hidden, args.rims, args.active)
    for dropout in args.dropouts:
        for kind, model in (("RIM_LSTM", RIM_LSTM), ("RIM_GRU", RIM_GRU)):
            net = model(*sizes, rim_dropout=dropout, compiled=args.compiled).to(args.device)
            name, macs = f"{kind} dropout {dropout:g}", rim_macs(net, x)
            cores[name] = (_First(net), macs)
            if args.device == "cuda":
                sample = torch.randn_like(x, requires_grad=True)
                graphed = torch.cuda.make_graphed_callables(_First(net), (sample,))
                cores[f"{name}, graph"] = (graphed, macs)
    return cores


class _First(nn.Module):
    """The output without the state, as `make_graphed_callables` requires."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[0]


def seconds(core: Core, x: Tensor) -> float:
    start = time.perf_counter()
    output = core(x)
    output.backward(torch.ones_like(output))
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=positive, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--inputs", type=int, default=600)
    parser.add_argument("--hidden", type=int, default=600)
    parser.add_argument("--rims", type=int, default=6)
    parser.add_argument("--active", type=int, default=4)
    parser.add_argument("--dropouts", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--compiled", action="store_true", help="compile a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=positive, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = torch.randn(args.steps, args.batch, args.inputs, device=args.device, requires_grad=True)
    cores = make_cores(args, x)
    for core, _ in list(cores.values()) * 3:
        seconds(core, x)
    times = [[seconds(core, x) for core, _ in cores.values()] for _ in range(args.repeats)]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    best = [min(column) for column in zip(*times, strict=True)]
    macs = [count for _, count in cores.values()]
    print(
        f"{args.steps} steps, batch {args.batch}, {args.inputs} -> {args.hidden}, "
        f"{args.active} of {args.rims} RIMs, {args.device}, {args.threads} threads"
    )
    for i, name in enumerate(cores):
        print(
            f"{name:26} {medians[i] / medians[0]:5.2f}x of nn.LSTM's {medians[0] * 1e3:.1f} ms "
            f"(best {best[i] / best[0]:.2f}x), MACs {macs[i] / macs[0]:.2f}x"
        )
