"""Predicted and measured processor time per agent step: one run, two ranks, two runs, two nodes.

Processor time is used because wall time means nothing on a machine that others use as well. The
prediction comes from parts that are timed separately in this process: a round of acting, emulating
and adding to the replay; an update with the rank's share of the batch; and an all-reduce between
two processes. The measurement is of whole runs, started as a user would, once they learn.
"""

import dataclasses
import itertools
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from agents.config import Config, make_config, to_plain
from agents.presets import read_preset
from agents.saving.run_folder import read_metrics
from agents.sweeping.runs import PlannedRun, RunStop, execute
from agents.training.parts import share_of
from agents.training.trainer import Trainer
from rl_nfm.support.memory import keep_freed_memory
from rl_nfm.support.ranks import Ranks

FLAGS: dict[str, Any] = {
    "encoder": "nature",
    "device": "cpu",
    "env": {"num_envs": 8, "num_threads": 1},
    "replay": {"capacity_steps": 8_000, "min_steps": 200},
    "run": {"eval_episodes": 0, "checkpoint_every_steps": 10**9, "log_every_steps": 200},
}
WARM_UP, REPEATS = 60, 110
FIRST, LAST = 400, 1000
"""Agent steps between which a run is measured; learning begins at 200."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Seconds of processor time."""

    round: float
    """Acting, emulating and adding to the replay, once for every environment."""
    update: float


class Sample(NamedTuple):
    """One timing of the parts."""

    one: Parts
    """Times of a process with all environments and the whole batch."""
    half: Parts
    """Times of one of two ranks."""
    reduce: float


def main(checks: list[str], repeats: int) -> None:
    torch.set_num_threads(1)  # as the runs: a second thread that waits also takes processor time
    keep_freed_memory(torch.device("cpu"))
    config = check_config()
    share = share_of(config, Ranks(rank=1, size=2))
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    ways: dict[str, Callable[[], list[float]]] = {
        "one run": lambda: measured_runs(config, [[]]),
        "two ranks": lambda: measured_runs(config, [launch]),
        "two runs at once": lambda: measured_runs(config, [[], []]),
        "two runs, two Ray nodes": lambda: measured_ray(config),
    }
    asked = {"two ranks": "ranks", "two runs at once": "runs", "two runs, two Ray nodes": "ray"}
    measured: dict[str, list[float]] = {}
    found: list[Sample] = []
    for _ in range(repeats):  # in turn, since the load of the machine changes
        found.append(Sample(parts(config), parts(share), all_reduce_seconds(config)))
        for name, measure in ways.items():
            if asked.get(name, checks[0]) in checks:
                measured.setdefault(name, []).extend(measure())
                tell(config, found, measured)


def tell(config: Config, found: list[Sample], measured: dict[str, list[float]]) -> None:
    """Medians of the timings so far."""
    one = middle_of([sample.one for sample in found])
    half = middle_of([sample.half for sample in found])
    reduce = statistics.median(sample.reduce for sample in found)
    print(
        f"parts, ms: round {1e3 * one.round:.2f} of 8 environments, {1e3 * half.round:.2f} of 4; "
        f"update {1e3 * one.update:.2f} of 32, {1e3 * half.update:.2f} of 16; "
        f"all-reduce {1e3 * reduce:.2f}"
    )
    alone = per_step(config, one, 1, 0.0)
    for name, values in measured.items():
        predicted = per_step(config, half, 2, reduce) if name == "two ranks" else alone
        middle = statistics.median(values)
        spread = ", ".join(f"{1e3 * value:.2f}" for value in sorted(values))
        print(
            f"{name:24s} predicted {1e3 * predicted:6.2f} ms of processor time per agent step, "
            f"measured {1e3 * middle:6.2f} ({spread}): {predicted / middle - 1:+.0%}",
            flush=True,
        )


def middle_of(timed: list[Parts]) -> Parts:
    """Medians."""
    return Parts(
        round=statistics.median(part.round for part in timed),
        update=statistics.median(part.update for part in timed),
    )


def check_config() -> Config:
    values = to_plain(read_preset("quickstart"))
    values["nature"] = {"width": 16}
    del values["nfm"]
    for key, value in FLAGS.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    return make_config(values)


def parts(config: Config) -> Parts:
    """Time the parts of a process with these environments and this batch.

    They take turns as in a run, where each finds little of its own data in the caches and the
    emulators work while the update does.
    """
    trainer = Trainer(config, torch.device("cpu"))
    trainer.turns.begin(seed=1, epsilon=trainer.rank_epsilon())
    trainer.step.set_schedule(0.5)
    timed: list[Parts] = []
    for turn in range(WARM_UP + REPEATS):
        times = [time.process_time()]
        trainer.turns.send()
        times.append(time.process_time())
        if turn >= WARM_UP:
            trainer.step()
        times.append(time.process_time())
        trainer.turns.receive(epsilon=trainer.rank_epsilon(), ahead=False)
        times.append(time.process_time())
        act, update, receive = (b - a for a, b in itertools.pairwise(times))
        timed.append(Parts(round=act + receive, update=update))
    trainer.turns.close()
    return middle_of(timed[WARM_UP + 10 :])


def all_reduce_seconds(config: Config) -> float:
    """Time of averaging this network's gradients, in each of two processes."""
    code = (
        "import sys, time, torch; from rl_nfm.support.ranks import Ranks; r = Ranks.of_torchrun()\n"
        "x = [torch.ones(int(sys.argv[1]))]\n"
        "with r.joined(torch.device('cpu')):\n"
        "    [r.average_(x) for _ in range(10)]; t = time.process_time()\n"
        "    [r.average_(x) for _ in range(100)]\n"
        "    print((time.process_time() - t) / 100)"
    )
    size = sum(p.numel() for p in Trainer(config, torch.device("cpu")).learner.online.parameters())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reduce.py"
        path.write_text(code)
        command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", str(path), str(size)]
        finished = subprocess.run(
            [sys.executable, *command],
            env=environment(),
            check=True,
            capture_output=True,
            text=True,
        )
    return float(finished.stdout.split()[-1])


def per_step(config: Config, part: Parts, ranks: int, reduce: float) -> float:
    """Predicted seconds of processor time per agent step, of all ranks together."""
    updates = config.env.num_envs / config.learner.steps_per_update
    return ranks * (part.round + updates * (part.update + reduce)) / config.env.num_envs


def environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}


def measured_runs(config: Config, launches: list[list[str]]) -> list[float]:
    """Seconds of processor time per agent step of each of several runs that start together."""
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / str(number) for number in range(len(launches))]
        begun = [
            subprocess.Popen(
                [sys.executable, *launch, *arguments(config, out)],
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for launch, out in zip(launches, outs, strict=True)
        ]
        try:
            return watched(outs)
        finally:
            for process in begun:
                process.terminate()
                process.wait()


def watched(outs: list[Path]) -> list[float]:
    """For each run, between its lines of metrics at `FIRST` and `LAST` steps."""
    seen: dict[tuple[Path, int], float] = {}
    deadline = time.monotonic() + 1200
    while len(seen) < 2 * len(outs):
        assert time.monotonic() < deadline, "the runs take too long"
        time.sleep(0.02)
        for out in outs:
            done = max((line["steps"] for line in read_metrics(out / "metrics.jsonl")), default=0)
            for step in (FIRST, LAST):
                if done >= step and (out, step) not in seen:
                    assert done < step + 2 * FLAGS["run"]["log_every_steps"], "looked too late"
                    seen[out, step] = of_run(out)
    return [(seen[out, LAST] - seen[out, FIRST]) / (LAST - FIRST) for out in outs]


def of_run(out: Path) -> float:
    """Seconds of processor time so far of the processes that train in this folder."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            if str(out).encode() in words and b"torch.distributed.run" not in words:
                fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
                ticks += int(fields[11]) + int(fields[12])
        except OSError:  # the process has ended meanwhile
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def arguments(config: Config, out: Path) -> list[str]:
    """Arguments for Python: the command that a user would type."""
    preset = out.with_suffix(".yaml")
    preset.write_text(yaml.safe_dump({**to_plain(config), "steps": 10**6}))
    return ["-m", "agents.cli", "train", str(preset), "--out", str(out)]


def measured_ray(config: Config) -> list[float]:
    """Two runs as the sweep places them: one on each of two nodes of a local cluster."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    variables = {"env_vars": environment()}
    ray.init(
        address=nodes.address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env=variables,
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            runs = [planned(config, Path(folder) / str(number)) for number in range(2)]
            task: Any = ray.remote(num_cpus=1)(_execute)
            tasks = [task.remote(run) for run in runs]
            found = watched([run.folder for run in runs])
            for one in tasks:
                ray.cancel(one, force=True)  # the run ends with the process that began it
            ray.wait(tasks, num_returns=2, timeout=100)
        return found
    finally:
        ray.shutdown()
        nodes.shutdown()


def planned(config: Config, out: Path) -> PlannedRun:
    """One run as a sweep hands it to Ray."""
    return PlannedRun(
        kind="train",
        game="check",
        method="nature",
        seed=int(out.name),
        folder=out,
        begin=tuple(arguments(config, out)[2:]),
        resume=("train", "--resume", str(out)),
        steps=10**6,
    )


def _execute(run: PlannedRun) -> int:
    return execute(run, 1, RunStop())
