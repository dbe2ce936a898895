"""Everything that waits for a GPU, in under ten minutes: tests, then each measured ratio.

    python scripts/gpu_check.py [--out DIR]

Self-contained; the table comes last. Says so where there is no GPU.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
BENCHMARK = [sys.executable, str(ROOT / "scripts" / "benchmark.py")]
JOBS: dict[str, tuple[list[str], int]] = {
    "gpu tests": ([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:xdist"], 180),
    "update, batch 32": ([*BENCHMARK, "update", "--seconds", "1", "--rounds", "3"], 120),
    "update, batch 256, impala": (
        [*BENCHMARK, "update", "--encoder", "impala", "--batch", "256", "--seconds", "1"],
        120,
    ),
    "env": ([*BENCHMARK, "env"], 120),
    "nfm": ([*BENCHMARK, "nfm", "--device", "cuda", "--dtype", "bf16"], 180),
    "nfm, written layers": (
        [*BENCHMARK, "nfm", "--device", "cuda", "--dtype", "bf16", "--written", "1", "2", "4", "8"],
        60,
    ),
    "rims": ([*BENCHMARK, "rims", "--device", "cuda"], 120),
}
"""Name, command and limit in seconds, in order of importance."""
BUDGET_SECONDS = 560


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for the full logs")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_check: no CUDA device on this machine; nothing was run")
        return 0
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    began, rows = time.time(), []
    for name, (command, limit) in JOBS.items():
        left = BUDGET_SECONDS - (time.time() - began)
        if left < 20:
            rows.append((name, "not run: out of time", 0.0))
            continue
        start = time.time()
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=min(limit, left)
            )
            output, verdict = done.stdout + done.stderr, f"exit {done.returncode}"
        except subprocess.TimeoutExpired as error:
            output, verdict = str(error.stdout or ""), "out of time"
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / f"{name.replace(' ', '_').replace(',', '')}.log").write_text(output)
        print(f"\n== {name}\n{output[-3000:]}", flush=True)
        rows.append((name, verdict, time.time() - start))
    print(f"\n{'job':28s} {'seconds':>8s}  verdict")
    for name, verdict, seconds in rows:
        print(f"{name:28s} {seconds:8.1f}  {verdict}")
    return int(any(verdict != "exit 0" for _, verdict, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
