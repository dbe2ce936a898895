"""Kernels, bytes and FLOPs of each preset's update, act and row of replay, without a GPU.

They are counted on fake CUDA tensors under bf16 autocast, as PyTorch would launch them eagerly,
with the Triton kernels. The exit code is 1 if an operation waits for the device, or if an update
has more kernels than `MOST_KERNELS` allows; with --compiled, which is for the presets that compile,
if what is compiled does not stay whole: each break makes it smaller graphs, which take longer and
fuse less.
"""

import argparse
import sys

from benchmarks import _fake_cuda

MOST_KERNELS = {
    "rainbow_iqn": 590,
    "dopamine_iqn": 400,
    "atari_100k": 880,
    "btr": 1350,
    "nfm_paper": 2400,
    "resnet_paper": 1750,
    "rim": 1000,
    "r2d2": 1320,
}
"""Largest number of kernels in one update."""


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("presets", nargs="*", default=list(MOST_KERNELS))
    parser.add_argument("--top", type=int, default=0, help="also the so many largest operations")
    parser.add_argument("--compiled", action="store_true", help="breaks of the graphs instead")
    options = parser.parse_args(argv)
    try:
        _fake_cuda.enable()
    except RuntimeError as error:
        parser.error(str(error))
    from agents.presets import read_preset
    from benchmarks._presets import broken_graphs, count

    try:
        configs = {name: read_preset(name) for name in options.presets}
    except ValueError as error:
        parser.error(str(error))
    if options.compiled:
        compiled = {name: c for name, c in configs.items() if c.learner.compile in (True, "auto")}
        reasons = {name: broken_graphs(config) for name, config in compiled.items()}
        for name, found in reasons.items():
            print(f"{name}: {len(found)} breaks", *found, sep="\n    ")
        sys.exit(any(reasons.values()))
    failed = False
    print(f"{'preset':16s} {'':8s} {'kernels':>8s} {'most':>6s} {'GB':>9s} {'GFLOP':>9s}")
    for case, config in configs.items():
        for part, counter in count(config).items():
            total, most = counter.total, MOST_KERNELS.get(case) if part == "update" else None
            print(
                f"{case:16s} {part:8s} {total.kernels:8d} {most or '':>6} "
                f"{total.bytes / 1e9:9.3f} {total.flops / 1e9:9.1f}"
            )
            largest = sorted(counter.by_name.items(), key=lambda item: -item[1].kernels)
            for name, one in largest[: options.top]:
                print(
                    f"    {name:40s} {one.kernels:6d} {one.bytes / 1e9:8.3f} {one.flops / 1e9:9.1f}"
                )
            for name, times in counter.synchronising.items():
                print(f"    waits for the device: {name}, {times} times")
            failed |= bool(counter.synchronising) or (most or total.kernels) < total.kernels
    if failed:
        sys.exit(1)
