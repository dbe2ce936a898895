"""Everything that needs a GPU, in calls of at most four minutes each.

    python scripts/gpu_session.py a        # ceilings, correctness, and every preset's speed
    python scripts/gpu_session.py b        # NFM and RIM ratios, memory, profiles, compiling
    python scripts/gpu_session.py c        # learning: Ms. Pacman, stopped and resumed
    python scripts/gpu_session.py nfm rims # single stages by name
    python scripts/gpu_session.py --rehearse a b c    # tiny sizes on a CPU, Triton interpreted,
                                           # as many stages at once as there are cores

Each stage runs in a process of its own with a limit in seconds, so that one that hangs or crashes
does not affect the others. A call runs its stages in order until its time is up (all of `a` may
take three calls), and says at the end which it did not reach. Results are JSON lines in
OUT/STAGE.jsonl, flushed as they are measured; the table at the end compares them with the goals.
"""

import argparse
import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

CASES = (
    "nfm_paper", "resnet_paper", "rim", "r2d2", "btr_like", "rainbow_iqn", "dopamine_iqn",
    "atari_100k",
)  # fmt: skip
# The last two compile their update, once for its time and again, from the cache, for the run.
SPEED_SECONDS = {"nfm_paper": 60, "btr_like": 180, "rainbow_iqn": 90}
CALLS: dict[str, dict[str, int]] = {
    "a": {
        "ceilings": 15, "kernels": 30, "tests": 150, "encoders": 25, "graph": 40, "syncs": 25,
        "resume": 30,
        **{f"speed:{case}": SPEED_SECONDS.get(case, 45) for case in CASES},
    },
    "b": {"nfm": 90, "rims": 45, "profile": 60, "compiling": 120},
    "c": {"learning": 200},
}  # fmt: skip
"""The stages of each call, in order of importance, with their limits in seconds."""
CALL_SECONDS = 235
GOALS: dict[str, tuple[str, float]] = {
    "speed:nfm_paper run_steps_s": (">=", 3_500),
    "speed:resnet_paper run_steps_s": (">=", 7_500),
    "speed:rim run_steps_s": (">=", 10_000),
    "speed:r2d2 run_steps_s": (">=", 13_000),
    "speed:btr_like run_steps_s": (">=", 7_000),
    "speed:rainbow_iqn run_steps_s": (">=", 3_000),
    **{f"speed:{case} run_over_parts": (">=", 0.9) for case in CASES},
    "nfm:256 nfm_over_backbone": ("<=", 1.25),
    "nfm:256 memory_over_backbone": ("<=", 1.5),
    "rims:RIM_LSTM float32 over_lstm": ("<=", 2.0),
}
"""The goals that the table at the end compares results with."""


def stage_function(name: str, out: Path) -> Callable[[], Iterator[dict[str, Any]]]:
    """The function of a stage; imported only in the stage's own process."""
    from gpu_stages import basics, learning, ratios, speed

    if name.startswith("speed:"):
        return partial(speed.case, name.removeprefix("speed:"))
    if name == "learning":
        return partial(learning.pacman, out)
    for module in (basics, ratios):
        if hasattr(module, name):
            return getattr(module, name)
    raise ValueError(f"stage: {name!r} is unknown (allowed: {', '.join(all_stages())})")


def stage_of(goal: str) -> str:
    """The stage that measures a goal."""
    name = goal.partition(" ")[0]
    return name if name.startswith("speed:") else name.partition(":")[0]


def all_stages() -> dict[str, int]:
    """Every stage with its limit."""
    return {name: limit for stages in CALLS.values() for name, limit in stages.items()}


def stage_file(out: Path, name: str, suffix: str) -> Path:
    """The file of a stage's results (jsonl) or of its output (log)."""
    return out / f"{name.replace(':', '_')}.{suffix}"


def run_stage(name: str, out: Path) -> None:
    """Run one stage in this process and write each result as soon as it is measured."""
    if limit := float(os.environ.get("RL_NFM_STAGE_SECONDS", 0)):
        faulthandler.dump_traceback_later(max(1.0, limit - 2.0))  # show where the stage hangs
    with stage_file(out, name, "jsonl").open("w") as file:
        for result in stage_function(name, out)():
            rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}
            line = json.dumps({"stage": name, **rounded}, default=str)
            file.write(line + "\n")
            file.flush()


@dataclass(frozen=True)
class Running:
    """A stage at work, in a process group of its own."""

    name: str
    process: subprocess.Popen[bytes]
    begin: float
    limit: float

    def verdict(self) -> str | None:
        """How the stage ended; None while it runs."""
        if (code := self.process.poll()) is not None:
            return f"exit {code} ({self._seconds():.1f} s)"
        return f"stopped after {self.limit:.0f} s" if self._seconds() > self.limit else None

    def kill(self) -> None:
        """End the stage with everything that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _seconds(self) -> float:
        return time.monotonic() - self.begin


def start(name: str, limit: float, out: Path, env: dict[str, str]) -> Running:
    """Start a stage; its output goes to a file."""
    stage_file(out, name, "jsonl").unlink(missing_ok=True)
    env = {**env, "RL_NFM_STAGE_SECONDS": str(limit)}
    command = [sys.executable, str(Path(__file__).resolve()), "--in-process", name, "--out"]
    with stage_file(out, name, "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, str(out)], stdout=log, stderr=log, env=env, start_new_session=True
        )
    return Running(name, process, time.monotonic(), limit)


def interruption() -> Callable[[], bool]:
    """Whether SIGINT or SIGTERM has come since; no error, which could lose a stage just begun."""
    noted: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: noted.append(number))
    return lambda: bool(noted)


def supervise(
    limits: dict[str, float],
    seconds: float,
    out: Path,
    env: dict[str, str],
    jobs: int = 1,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[str, str]]:
    """Run stages, `jobs` at a time; yields the name of each that ended and how it ended.

    Args:
        limits: seconds of each stage.
        seconds: of all together; a stage for which less than ten are left is not run.
        out: where results and output go.
        env: the environment of every stage.
        jobs: the number of stages at work at once.
        interrupted: asked often; what is at work then ends with everything else.

    Raises:
        KeyboardInterrupt: `interrupted` said so.
    """
    end, waiting, running = time.monotonic() + seconds, list(limits.items()), list[Running]()
    try:
        while waiting or running:
            if interrupted():
                raise KeyboardInterrupt
            while waiting and len(running) < jobs:
                name, limit = waiting.pop(0)
                if (left := end - time.monotonic()) < 10:
                    yield name, "not run: out of time"
                    continue
                try:
                    running.append(start(name, min(limit, left), out, env))
                except OSError as error:
                    yield name, f"not run: {error}"
            for stage in list(running):
                if verdict := stage.verdict():
                    stage.kill()
                    running.remove(stage)
                    yield stage.name, verdict
            time.sleep(0.05)
    finally:
        for stage in running:
            stage.kill()


def read_results(name: str, out: Path) -> list[dict[str, Any]]:
    """The results that a stage has written, however it ended."""
    path = stage_file(out, name, "jsonl")
    if not path.is_file():
        return []
    lines = path.read_text(errors="replace").splitlines()
    results = []
    for line in lines:
        with contextlib.suppress(ValueError):
            results.append(json.loads(line))
    return results


def figures(results: list[dict[str, Any]]) -> dict[str, float]:
    """The measured numbers under the names in GOALS."""
    found: dict[str, float] = {}
    parts: dict[str, float] = {}
    for row in results:
        stage = row["stage"]
        if stage == "nfm":
            stage = f"nfm:{row['batch']}"
        if stage == "rims":
            stage = f"rims:{row['model']} {row['dtype']}"
        for key, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[f"{stage} {key}"] = value
        if "smaller_of_parts_steps_s" in row:
            parts[stage] = row["smaller_of_parts_steps_s"]
    for stage, alone in parts.items():
        if run := found.get(f"{stage} run_steps_s"):
            found[f"{stage} run_over_parts"] = run / alone
    return found


def print_table(results: list[dict[str, Any]], stages: Iterable[str]) -> None:
    """The table of measurements and the goals of these stages, and every check that failed."""
    found, stages = figures(results), set(stages)
    print(f"\n{'goal':42s} {'wanted':>10s} {'measured':>10s}")
    for name, (sign, goal) in GOALS.items():
        if name in found:
            value = found[name]
            met = value >= goal if sign == ">=" else value <= goal
            print(f"{name:42s} {sign} {goal:7g} {value:10.2f}  {'yes' if met else 'NO'}")
        elif stage_of(name) in stages:
            print(f"{name:42s} {sign} {goal:7g} {'not measured':>10s}")
    failed = [row for row in results if row.get("passed") is False]
    for row in failed:
        print(f"FAILED {json.dumps(row)}")


def main() -> int:
    limits = all_stages()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", default=["a"], help="a, b, c or: " + ", ".join(limits))
    parser.add_argument("--out", type=Path, default=Path("gpu_session"), help="folder for results")
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny sizes, on a CPU, one stage per core at a time"
    )
    parser.add_argument("--seconds", type=int, default=CALL_SECONDS, help="limit of all together")
    parser.add_argument("--in-process", metavar="STAGE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in options.stages:
        if name not in CALLS and name not in limits:
            parser.error(f"stage: {name!r} is unknown (allowed: {', '.join([*CALLS, *limits])})")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.in_process:
        run_stage(options.in_process, options.out)
        return 0
    interrupted = interruption()
    import torch

    if not torch.cuda.is_available() and not options.rehearse:
        print("gpu_session: no CUDA device on this machine; nothing was run (see --rehearse)")
        return 0
    env, jobs = dict(os.environ), 1
    wanted: dict[str, float] = {}
    for name in options.stages:
        wanted.update(CALLS.get(name) or {name: limits[name]})
    if options.rehearse:
        env.update(RL_NFM_REHEARSAL="1", TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
        jobs = min(8, len(os.sched_getaffinity(0)))  # a container's quota may be less than that
        options.seconds *= 4
        wanted = {name: 4 * limit for name, limit in wanted.items()}
    verdicts, results = {}, []
    for name, verdict in supervise(wanted, options.seconds, options.out, env, jobs, interrupted):
        verdicts[name] = verdict
        print(f"== {name}: {verdict}", flush=True)
        if verdict.startswith("not run"):
            continue
        rows = read_results(name, options.out)
        results += rows
        for row in rows:
            print(json.dumps(row), flush=True)
        if not verdict.startswith("exit 0"):
            log = stage_file(options.out, name, "log").read_bytes()
            print(log.decode(errors="replace")[-2500:], flush=True)
    print_table(results, wanted)
    left = [name for name, verdict in verdicts.items() if verdict.startswith("not run")]
    if left:
        print(f"not reached, for a further call: {' '.join(left)}")
    failed = any(row.get("passed") is False for row in results)
    return int(failed or any(not v.startswith("exit 0") for v in verdicts.values()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("gpu_session: interrupted")
