"""NFM over its backbone and RIMs over cuDNN's LSTM, all captured; profiles; compiling."""

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks import nfm as nfm_benchmark
from gpu_stages.common import (
    DEVICE,
    REHEARSAL,
    burst_ms,
    case_config,
    filled_trainer,
    median_ms,
    replaced,
)
from rl_nfm.rims import RIM_GRU, RIM_LSTM, triton_loop

PROFILED = ("nfm_paper", "btr_like", "rim", "r2d2")
COMPILED = ("rainbow_iqn", "btr_like", "resnet_paper", "r2d2")


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Run the step once and return it as a CUDA graph; on a CPU, return it unchanged."""
    step()
    return nfm_benchmark.capture(step) if DEVICE.type == "cuda" else step


def nfm() -> Iterator[dict[str, Any]]:
    """Forward and backward of the `nfm` encoder over its own two-pass backbone, bf16."""
    options = "--widths 8 --dtype bf16" if REHEARSAL else "--widths 64 --dtype bf16"
    args = nfm_benchmark.parse_args([*options.split(), "--device", DEVICE.type])
    for batch in (2,) if REHEARSAL else (32, 256, 640):
        pair = nfm_benchmark.make_encoder_pair(args, args.widths[0], 1)
        pixels = torch.rand(batch, *nfm_benchmark.FRAMES, device=DEVICE)
        pixels = pixels.to(memory_format=torch.channels_last)
        row: dict[str, Any] = {"batch": batch}
        times, peaks = [], []
        for net in pair:
            step = nfm_benchmark.make_step(net, pixels, args, "eager")
            for _ in range(2):
                step()
            peaks.append(nfm_benchmark.peak_memory(step) if DEVICE.type == "cuda" else 1)
            times.append(median_ms(captured(step), 0.8))
        row.update(nfm_ms=times[0], backbone_ms=times[1], nfm_over_backbone=times[0] / times[1])
        row.update(memory_over_backbone=peaks[0] / peaks[1], nfm_peak_gb=peaks[0] / 1e9)
        yield row


def rims() -> Iterator[dict[str, Any]]:
    """20 steps, batch 64, 600 -> 600, forward and backward, float32 and bf16 autocast.

    All multiply in TF32, which is cuDNN's default and what the learner sets. `triton_launches` are
    those of one step: 0 means that RIMs took the plain path.
    """
    torch.set_float32_matmul_precision("high")
    size, batch = (24, 4) if REHEARSAL else (600, 64)
    models: dict[str, Callable[[], nn.Module]] = {
        "nn.LSTM": lambda: nn.LSTM(size, size),
        "RIM_LSTM": lambda: RIM_LSTM(size, size, 6, 4),
        "RIM_GRU": lambda: RIM_GRU(size, size, 6, 4),
        "RIM_LSTM compiled": lambda: RIM_LSTM(size, size, 6, 4, compiled=True),
    }
    bases: dict[torch.dtype, float] = {}
    cases = [(name, torch.float32) for name in models]
    if REHEARSAL:
        cases.pop()  # compiling takes a minute
    else:
        cases[3:3] = [(name, torch.bfloat16) for name in list(models)[:3]]
    for name, dtype in cases:
        torch.manual_seed(0)
        net = models[name]().to(DEVICE)
        x = torch.randn(20, batch, size, device=DEVICE, requires_grad=True)
        step = _forward_backward(net, x, dtype)
        step()  # checks the kernels
        launches = _count_launches(step)
        ms = median_ms(captured(step), 0.5)
        base = bases.setdefault(dtype, ms)
        yield {
            "model": name,
            "dtype": str(dtype)[6:],
            "ms": ms,
            "over_lstm": ms / base,
            "triton_launches": launches,
        }


def _count_launches(step: Callable[[], None]) -> int:
    """Triton launches of a RIM layer in one step.

    Nothing of a call is kept, as a mock would: whatever holds on to a step's graph of gradients
    ties those of a later capture to the stream on which the step ran.
    """
    count, launch = 0, triton_loop.launch

    def counted(*args: Any, **constants: Any) -> None:
        nonlocal count
        count += 1
        launch(*args, **constants)

    with mock.patch.object(triton_loop, "launch", counted):
        step()
    return count


def _forward_backward(net: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    leaves = [x, *net.parameters()]

    def step() -> None:
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            output = net(x)[0]
        torch.autograd.grad(output.float().square().mean(), leaves)

    return step


def profile() -> Iterator[dict[str, Any]]:
    """The kernels that take most of the time of an eager update on the device."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if DEVICE.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for name in PROFILED[:1] if REHEARSAL else PROFILED:
        config = replaced(case_config(name), "learner", cuda_graph=False)
        with filled_trainer(config) as trainer:
            for _ in range(2):
                trainer.step()
            with torch.profiler.profile(activities=activities) as seen:
                trainer.step()
                if DEVICE.type == "cuda":
                    torch.cuda.synchronize()
        totals: dict[str, list[float]] = {}
        for event in seen.events() or ():
            if str(event.device_type).endswith("CUDA") or REHEARSAL:
                total = totals.setdefault(event.name, [0.0, 0])
                total[0] += event.self_device_time_total or event.self_cpu_time_total
                total[1] += 1
        rows = sorted(totals.items(), key=lambda item: -item[1][0])[:25]
        yield {
            "case": name,
            "device_ms": round(sum(t for t, _ in totals.values()) / 1e3, 3),
            "kernels": int(sum(n for _, n in totals.values())),
            "largest": {key[:70]: [round(t / 1e3, 3), int(n)] for key, (t, n) in rows},
        }


def compiling() -> Iterator[dict[str, Any]]:
    """The effect of `learner.compile`: ms of a captured update, and the time of compiling."""
    for name in COMPILED[:1] if REHEARSAL else COMPILED:
        for on in (False, True):
            config = case_config(name)
            changes: dict[str, Any] = {"compile": on and not REHEARSAL}
            config = replaced(config, "learner", **changes)
            row: dict[str, Any] = {"case": name, "compile": on}
            with filled_trainer(config) as trainer, contextlib.redirect_stdout(io.StringIO()):
                begin = time.perf_counter()
                for _ in range(6):
                    trainer.step()
                row["first_updates_s"] = time.perf_counter() - begin
                ms = median_ms(trainer.step, 0.8)
                row["update_ms"] = ms
                row["burst_ms"] = burst_ms(trainer.step, max(5, int(500 / ms)))
            yield row
            torch.compiler.reset()
