"""A lower bound (floor) for the time of one update on a CPU, and how far an update is above it.

The floor is the work that no implementation avoids: every matrix product and convolution of an
update, run alone with its shapes and layouts; and, at the speed of a copy, the bytes of the
optimiser (7 numbers for each weight) and of the pixels (each read as a byte and written as a number
once). Processor time of one thread is measured; products and whole updates take turns. Products are
those of an update that is not compiled, also where the timed one is. The floor leaves out our own
kernels (the attention of NFM, the steps of RIMs), so with them it is too low.
"""

import argparse
import collections
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from agents.config import Config, make_config, to_plain
from agents.presets import read_preset
from agents.training.step import GradientStep
from benchmarks._options import positive
from benchmarks.update import OURS, config_of, ours
from rl_nfm.support import cpp

MOST = {"rainbow_8": 1.75, "rainbow_8_compiled": 1.75}
"""Wanted ratios of an update to its floor; 2.5 for all others."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """A tensor's shape and layout, kept in place of the tensor."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> Tensor:
        """A tensor like it."""
        size = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        memory = torch.zeros(max(size, 1), dtype=self.dtype)  # an expanded tensor shares elements
        if memory.is_floating_point():
            memory.normal_()
        return memory.as_strided(self.shape, self.stride)


class Products(TorchDispatchMode):
    """Records each product and convolution that runs inside, and how often."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = collections.Counter()
        self.calls: dict[str, Callable[[], Any]] = {}
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and record it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
            specs = tree_map_only(
                Tensor, lambda x: Spec(x.shape, x.stride(), x.dtype), (args, kwargs)
            )
            key = f"{func} {specs}"
            if key not in self.calls:
                made, options = tree_map_only(Spec, Spec.make, specs)
                self.calls[key] = lambda: func(*made, **options)
            self.counts[key] += 1
        return out


def products_of(step: GradientStep) -> Products:
    """The products and convolutions of one update, with our own kernels active as usual."""
    with (
        mock.patch.object(cpp, "is_in_torch_dispatch_mode", return_value=False),
        Products() as products,
    ):
        step()
    return products


def moved_bytes(config: Config, step: GradientStep) -> int:
    """Bytes that the optimiser and the pixels must read and write at least."""
    weights = sum(p.numel() for p in step.learner.online.parameters())
    batch = step.replay.sample(config.replay.batch_size)
    return 7 * 4 * weights + 5 * batch.obs.numel()


def measure(config: Config, rounds: int) -> tuple[float, float, float, int]:
    """Seconds of products, of bytes and of an update, and FLOPs."""
    eager = dataclasses.replace(config, learner=dataclasses.replace(config.learner, compile=False))
    counted, step = (ours(each, torch.device("cpu")) for each in (eager, config))
    for _ in range(3):  # the first ones allocate, measure kernels and compile
        counted()
        step()
    products = products_of(counted)
    source = torch.ones(2**24)
    into = torch.empty_like(source)
    alone: dict[str, list[float]] = {key: [] for key in products.calls}
    updates: list[float] = []
    copies: list[float] = []
    with torch.no_grad():
        for _ in range(rounds):
            with torch.enable_grad():
                updates.append(_seconds(step))
            copies.append(_seconds(lambda: into.copy_(source)))
            for key, call in products.calls.items():
                call()  # its memory is allocated and warm
                alone[key].append(_seconds(call))
    floor = sum(n * statistics.median(alone[key]) for key, n in products.counts.items())
    speed = 2 * source.nbytes / statistics.median(copies)
    moved = moved_bytes(config, step) / speed
    return floor, moved, statistics.median(updates), products.flops


def _seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def config_for(name: str, encoder: str | None, compiled: bool) -> Config:
    """Of a preset, or of a contender of `benchmark.py update`; with a replay of 10,000 steps."""
    if name in OURS:
        encoder = encoder or "nature"
        config = config_of(name, precision="auto", graph=False, encoder=encoder, batch=32)
        learner = dataclasses.replace(config.learner, compile=compiled or config.learner.compile)
        return dataclasses.replace(config, learner=learner)
    plain = to_plain(read_preset(name))
    plain["replay"] |= {"capacity_steps": 10_000, "min_steps": 1000}
    plain["learner"] |= {"compile": compiled}
    return make_config(plain | ({} if encoder is None else {"encoder": encoder}))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", help=f"presets, or of {', '.join(OURS)}")
    parser.add_argument("--encoder", help="another one than the preset's")
    parser.add_argument("--compiled", action="store_true", help="compile the timed update")
    parser.add_argument("--rounds", type=positive, default=9)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        configs = {
            name: config_for(name, options.encoder, options.compiled) for name in options.names
        }
    except ValueError as error:
        parser.error(str(error))
    print(f"torch {torch.__version__}, 1 thread, processor time, medians of {options.rounds}")
    print(f"{'':16s} {'GFLOP':>6s} {'floor ms: products':>18s} + {'bytes':>6s} {'update':>8s} over")
    for name, config in configs.items():
        products, moved, update, flops = measure(config, options.rounds)
        over = update / (products + moved)
        print(
            f"{name:16s} {flops / 1e9:6.1f} {products * 1e3:18.1f} + {moved * 1e3:6.1f} "
            f"{update * 1e3:8.1f} {over:.2f} (wanted {MOST.get(name, 2.5)})",
            flush=True,
        )
