"""Cost of NFM: the `nfm` encoder over its own two-pass backbone without attention.

Forward and backward on 84x84x4 frames. The two are timed in turn, because a busy machine slows
both; the result is the ratio of medians. Beside it stand two lower bounds (floors): the ratio if
only the attention's multiply-accumulates took time, at the backbone's speed, and the ratio if only
the bytes that it must move did, at the speed of a copy measured here. `over floor` divides the
measured excess over 1 by the sum of the two floors' excesses.

On CUDA both run as captured graphs, as the learner runs them, unless `--modes` says otherwise, and
their peaks of memory are compared as well. `--profile` prints the kernels of both with their times.

`--written` instead times one reader of this many written layers of equal size (16x16, 64 channels).
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._kernel_times import print_kernels
from benchmarks._options import positive
from rl_nfm.encoders import make_encoder
from rl_nfm.encoders.nfm import NFMEncoder
from rl_nfm.nfm import NeuralFunctionModule, NFMConfig
from rl_nfm.nfm.places import Place
from rl_nfm.support.memory import keep_freed_memory

FRAMES = (4, 84, 84)
STAGE_SIZES = (21, 11, 6, 3)


class Attentive(nn.Module):
    """The encoder without the scaling of pixels, which the backbone does not do either."""

    def __init__(self, encoder: NFMEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [N, D]."""
        return self.encoder.embed(pixels)


class Backbone(nn.Module):
    """The passes of the same encoder without memory; all contribute to the output."""

    def __init__(self, encoder: NFMEncoder):
        super().__init__()
        self.passes, self.tail = encoder.network.passes, encoder.tail

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [N, D]."""
        results = []
        for layers in self.passes:
            assert isinstance(layers, nn.ModuleList)
            h = pixels
            for layer in layers:
                h = layer(h)
            results.append(h)
        return self.tail(torch.stack(results).sum(dim=0)).flatten(1)


def make_encoder_pair(args: argparse.Namespace, width: int, kernel: int) -> list[nn.Module]:
    torch.manual_seed(0)
    nfm = {"out_kernel": kernel, "rescale": args.rescale}
    encoder = make_encoder("nfm", obs_shape=FRAMES, width=width, norm=args.norm, nfm=nfm)
    assert isinstance(encoder, NFMEncoder)
    encoder.to(device=args.device, memory_format=torch.channels_last)  # pyright: ignore
    for place in places(encoder):
        place.use_kernels &= not args.plain
        if hasattr(place, "gamma"):
            nn.init.constant_(place.gamma, 0.5)
    return [Attentive(encoder), Backbone(encoder)]


def places(net: nn.Module) -> list[Place]:
    return [module for module in net.modules() if isinstance(module, Place)]


def make_step(
    net: nn.Module, pixels: Tensor, args: argparse.Namespace, mode: str
) -> Callable[[], None]:
    """One forward and backward, as a function without arguments."""
    run = torch.compile(net, fullgraph=True) if mode == "compiled" else net
    parameters = list(net.parameters())

    def step() -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bf16"):
            loss = run(pixels).float().square().mean()
        torch.autograd.grad(loss, parameters)

    return step


def seconds(step: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def count_macs(net: nn.Module) -> float:
    """MACs of a forward pass of one frame: matrix products and convolutions."""
    kept = {place: place.use_kernels for place in places(net)}
    for place in kept:
        place.use_kernels = False  # the counter cannot see inside the kernels
    pixels = torch.zeros(1, *FRAMES, device=next(net.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(pixels)
    for place, used in kept.items():
        place.use_kernels = used
    return counter.get_total_flops() / 2


def count_bytes(width: int, size: int) -> float:
    """The least bytes that attention moves for one frame; each use moves a tensor once.

    Forward: states read, queries, keys and values written; each reader reads its query and all rows
    of memory, writes what it read, its output block's layers and the sum. Backward: twice that.
    """
    pixels = [s * s for s in STAGE_SIZES]
    channels = [width * 2**stage for stage in range(len(pixels))]
    numbers = 0
    for stage, (positions, c) in enumerate(zip(pixels, channels, strict=True)):
        written = sum(pixels) + sum(pixels[: stage + 1])
        numbers += positions * (c + 256) + positions * (c + 384)  # both passes' projections
        numbers += positions * 128 + written * 256 + positions * (2 * 128 + 5 * c)
    return 3.0 * numbers * size


def copy_speed(device: str) -> float:
    """Bytes per second of copying a tensor larger than the caches."""
    source = torch.zeros(2**26, device=device)
    target = torch.empty_like(source)
    best = min(seconds(lambda: target.copy_(source), device) for _ in range(5))
    return 2 * source.nbytes / best


def peak_memory(step: Callable[[], None]) -> int:
    """Peak bytes of a step, beyond what was allocated before."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def capture(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph; it must have run before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure(args: argparse.Namespace, width: int, kernel: int, batch: int, mode: str) -> None:
    pair = make_encoder_pair(args, width, kernel)
    macs = [count_macs(net) for net in pair]
    pixels = torch.rand(batch, *FRAMES, device=args.device)
    pixels = pixels.to(memory_format=torch.channels_last)
    steps = [make_step(net, pixels, args, mode) for net in pair]
    for step in steps * 2:  # the first compiles, the second warms the allocator
        step()
    memory = ""
    if args.device == "cuda":
        memory = f" | memory {peak_memory(steps[0]) / peak_memory(steps[1]):.2f}x"
    if mode == "captured":
        steps = [capture(step) for step in steps]
    before, start = os.times(), time.perf_counter()
    times = [[seconds(step, args.device) for step in steps] for _ in range(args.repeats)]
    wall, after = time.perf_counter() - start, os.times()
    cores = (after.user + after.system - before.user - before.system) / wall
    ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    best = [min(column) for column in zip(*times, strict=True)]
    size = 2 if args.dtype == "bf16" else 4
    by_macs = macs[0] / macs[1] - 1
    by_bytes = batch * count_bytes(width, size) / copy_speed(args.device) / theirs
    over = (ours / theirs - 1) / (by_macs + by_bytes)
    print(
        f"width {width:3} out {kernel}x{kernel} batch {batch:3} {args.dtype} {mode:8} | "
        f"{ours / theirs:.2f}x of {theirs * 1e3:.2f} ms (best {best[0] / best[1]:.2f}x) | "
        f"floors: MACs {1 + by_macs:.2f}x ({(macs[0] - macs[1]) / 1e6:.0f}M a frame), bytes "
        f"{1 + by_bytes:.2f}x, over floor {over:.1f} | {cores:.1f} cores{memory}",
        flush=True,
    )
    if args.profile:
        for name, step in zip(("NFM", "backbone"), steps, strict=True):
            print_kernels(name, lambda step=step: seconds(step, args.device), args.device)


def measure_written(args: argparse.Namespace, counts: list[int], batch: int) -> None:
    """Time of one reader over the layers that it reads; the layers themselves do nothing."""
    steps = []
    for count in counts:
        config = NFMConfig(passes=1, read_places=(count - 1,), rescale=args.rescale)
        net = NeuralFunctionModule(
            [nn.Identity() for _ in range(count)], channels=[64] * count, config=config
        ).to(args.device)
        nn.init.ones_(net.places.places[-1].gamma)  # pyright: ignore
        for place in places(net):
            place.use_kernels &= not args.plain
        steps.append(
            make_step(net, torch.rand(batch, 64, 16, 16, device=args.device), args, "eager")
        )
    for step in steps * 2:
        step()
    times = [[seconds(step, args.device) for step in steps] for _ in range(args.repeats)]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    for count, median in zip(counts, medians, strict=True):
        more = ""
        if count > counts[0]:
            slope = (median - medians[0]) / (count - counts[0])
            more = f", {slope * 1e3:.2f} ms for each layer beyond {counts[0]}"
        print(f"written {count:3} batch {batch:3} {args.dtype} | {median * 1e3:.2f} ms{more}")


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 32])
    parser.add_argument(
        "--kernels", type=int, nargs="+", default=[1, 3], help="of the output block"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 256])
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=["eager", "compiled", "captured"],
        help="default: captured on CUDA, eager and compiled elsewhere",
    )
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--norm", choices=["group", "none", "batch"], default="group")
    parser.add_argument(
        "--rescale", choices=["space_to_depth", "nearest"], default="space_to_depth"
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default)
    parser.add_argument("--repeats", type=positive, default=7)
    parser.add_argument("--written", type=int, nargs="+", help="written layers, rising")
    parser.add_argument("--plain", action="store_true", help="without the fused kernels")
    parser.add_argument("--profile", action="store_true", help="print each kernel's time")
    args = parser.parse_args(argv)
    args.modes = args.modes or (["captured"] if args.device == "cuda" else ["eager", "compiled"])
    return args


def main(argv: list[str]) -> None:
    keep_freed_memory(torch.device("cpu"))
    args = parse_args(argv)
    if args.written:
        for batch in args.batches:
            measure_written(args, args.written, batch)
        return
    for width in args.widths:
        for kernel in args.kernels:
            for batch in args.batches:
                for mode in args.modes:
                    measure(args, width, kernel, batch, mode)
                    torch.compiler.reset()
