"""The highest speeds of the device, and whether its results are correct."""

import contextlib
import copy
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from agents.saving.run_folder import read_metrics
from agents.training.trainer import Trainer
from gpu_stages.common import (
    DEVICE,
    REHEARSAL,
    burst_ms,
    case_config,
    filled_trainer,
    median_ms,
    replaced,
)
from rl_nfm.encoders import encoder_names, make_encoder

Result = dict[str, Any]
ROOT = Path(__file__).parent.parent.parent
SYNC_CASES = ("rainbow_iqn", "nfm_paper", "rim", "r2d2")


def ceilings() -> Iterator[Result]:
    """Speed of a copy, a matrix product and a launch, which no implementation can exceed."""
    name = "cpu" if REHEARSAL else torch.cuda.get_device_name()
    yield {"device": name, "torch": torch.__version__, "cores": os.cpu_count()}
    size, side = (2**16, 64) if REHEARSAL else (2**29, 8192)
    source = torch.randn(size, device=DEVICE)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes
    ms = median_ms(partial(target.copy_, source), 0.3)
    yield {"copy_tb_s": round(copied / ms / 1e9, 3)}
    del source, target
    m = torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16)
    ms = median_ms(lambda: m @ m, 0.3)
    yield {"bf16_product_tflop_s": round(2 * side**3 / ms / 1e9, 1)}
    x = torch.randn(1024, device=DEVICE)
    yield {"launch_us": round(burst_ms(lambda: x.add_(1), 5000) * 1e3, 2)}


def gpu_test_files() -> list[str]:
    """Paths of the tests for a GPU: marked as such, or by the fixture `device`, which is."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path) for path in files if re.search(r"mark\.gpu|\(device\b", path.read_text())]


def tests() -> Iterator[Result]:
    """The tests that need a GPU, run by pytest."""
    marker = "not gpu" if REHEARSAL else "gpu"
    targets = gpu_test_files()
    if REHEARSAL:
        targets = ["tests/rl_nfm/support/test_triton_guard.py"]
    command = [sys.executable, "-m", "pytest", "-v", "-m", marker, "--tb=short", "--maxfail=8"]
    env = _environment()
    env.pop("RL_NFM_REHEARSAL", None)
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*command, "-p", "no:cacheprovider", *targets],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace",
    )  # fmt: skip
    assert process.stdout is not None
    last = ""
    for line in process.stdout:  # shown at once: a stage that runs out of time tells how far it got
        print(line, end="", flush=True)
        last = line.strip() or last
    failed = process.wait() != 0
    yield {"passed": not failed, "seconds": round(time.perf_counter() - begin, 1)}
    yield {"last_line": last}


def kernels() -> Iterator[Result]:
    """Run the check that every Triton kernel undergoes at first use, and time it."""
    from rl_nfm.backbones.norms import guard as norm_guard
    from rl_nfm.nfm.linear import guard as linear_guard
    from rl_nfm.nfm.triton_attention import guard as attention_guard
    from rl_nfm.rims import RIMLSTMCell, triton_check

    if REHEARSAL:  # in a rehearsal, the interpreter would be too slow for the others
        os.environ["RL_NFM_KERNELS"] = "triton"
    types = (torch.bfloat16,) if REHEARSAL else (torch.float32, torch.bfloat16, torch.float16)
    checked = (norm_guard, ()), (linear_guard, ()), (attention_guard, (4, 32, 32, 4, True))
    for dtype in types:
        for guard, case in checked:
            begin = time.perf_counter()
            agrees = guard.ready(DEVICE, dtype, *case)
            yield {
                "kernel": guard.name, "dtype": str(dtype)[6:], "passed": agrees,
                "seconds": round(time.perf_counter() - begin, 2),
            }  # fmt: skip
    size = 24 if REHEARSAL else 600
    cell = RIMLSTMCell(size, size, 6, 4).to(DEVICE)
    weights, sequence = cell._prepare(torch.randn(2, 3, size, device=DEVICE))
    begin = time.perf_counter()
    agrees = triton_check.supports(cell._spec(), weights, sequence, [])
    seconds = round(time.perf_counter() - begin, 2)
    yield {"kernel": "RIMs", "dtype": "float32", "passed": agrees, "seconds": seconds}


def encoders() -> Iterator[Result]:
    """Each encoder's features and gradients in float32 against the CPU's."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name in encoder_names():
        torch.manual_seed(0)
        plain = make_encoder(name, obs_shape=(4, 84, 84)).train()
        obs = torch.randint(0, 256, (3, 5, 4, 84, 84), dtype=torch.uint8)
        results = []
        for device in (torch.device("cpu"), DEVICE):
            net = copy.deepcopy(plain).to(device)
            state = tuple(s.to(device) for s in net.initial_state(5))
            reset = torch.zeros(3, 5, dtype=torch.bool, device=device)
            reset[1, 2] = True
            zeros = torch.zeros(3, 5, dtype=torch.int64, device=device)
            extras = {"last_action": zeros, "last_reward": zeros.float(), "episode_step": zeros}
            features, _ = net(obs.to(device), state, reset, extras)
            features.square().mean().backward()
            grads = [p.grad.flatten().cpu() for p in net.parameters() if p.grad is not None]
            results.append((features.detach().cpu(), torch.cat(grads)))
        (a, b), (x, y) = results
        error = float((x - a).norm() / a.norm()), float((y - b).norm() / b.norm())
        yield {
            "encoder": name,
            "features": f"{error[0]:.1e}",
            "gradients": f"{error[1]:.1e}",
            "passed": error[0] < 1e-4 and error[1] < 1e-2,
        }


def graph() -> Iterator[Result]:
    """Captured updates against eager ones from the same state: weights after ten updates."""
    for name in ("rainbow_iqn", "nfm_paper", "rim")[: 1 if REHEARSAL else 3]:
        weights = []
        for captured in (True, False):
            config = replaced(case_config(name), "learner", cuda_graph=captured, compile=False)
            with filled_trainer(config) as trainer:
                for _ in range(10):
                    trainer.step()
                weights.append([p.detach().clone() for p in trainer.learner.online.parameters()])
        pairs = list(zip(*weights, strict=True))
        rate = config.learner.learning_rate
        worst = max(float((a - b).abs().max()) for a, b in pairs) / rate
        # ten steps of Adam move a weight by at most about ten learning rates
        yield {"case": name, "worst_in_learning_rates": round(worst, 4), "passed": worst < 2.0}


def syncs() -> Iterator[Result]:
    """Check that no operation of an update, an act or an add waits for the device."""
    for name in SYNC_CASES[: 1 if REHEARSAL else None]:
        config = replaced(case_config(name), "learner", cuda_graph=False)
        with filled_trainer(config) as trainer:
            for _ in range(3):
                _one_of_each(trainer)
            problem = ""
            if DEVICE.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                _one_of_each(trainer)
            except RuntimeError as error:
                problem = str(error).splitlines()[0]
            finally:
                if DEVICE.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
            yield {"case": name, "problem": problem, "passed": not problem}


def _one_of_each(trainer: Trainer) -> None:
    """What runs on the device: an update, an act and a report of every group, and an add."""
    trainer.step()
    for player in trainer.collector.players:
        player._act()
        player._receive()
    trainer.collector._add()


def resume() -> Iterator[Result]:
    """A run killed with SIGKILL, continued by the same command; its checkpoint used on the CPU."""
    import agents

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        run = Path(folder) / "run"
        options = ["--run.checkpoint-every-steps", "200", "--steps", "100000"]
        options += ["--device", DEVICE.type, "--run.eval-episodes", "0"]
        env = _environment()
        command = [sys.executable, "-m", "agents.cli", "train"]
        quiet: dict[str, Any] = {"cwd": ROOT, "env": env, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([*command, "debug", "--out", str(run), *options], **quiet)
        deadline = time.time() + (300 if REHEARSAL else 60)
        while time.time() < deadline and process.poll() is None:
            if any((run / "checkpoints").glob("step_*")) and len(_lines(run)) > 3:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = len(_lines(run))
        process = subprocess.Popen([*command, "--resume", str(run)], **quiet)
        while time.time() < deadline and process.poll() is None and len(_lines(run)) < before + 3:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        code = process.wait()
        lines = _lines(run)
        steps = [line["steps"] for line in lines]
        updates = [line["updates"] for line in lines]
        rising = steps == sorted(set(steps)) and updates == sorted(updates)
        loaded = agents.load(run, device="cpu").network is not None
        yield {
            "lines_before": before, "lines_after": len(lines), "exit": code,
            "passed": rising and loaded and len(lines) > before,
        }  # fmt: skip


def _environment() -> dict[str, str]:
    """Environment of a process that must find this checkout, installed or not."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _lines(run: Path) -> list[dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError):
        return read_metrics(run / "metrics.jsonl")
    return []
