"""Predicted and measured processor time per agent step: one run, two ranks, two runs, two nodes.

Processor time, because a machine that others use gives no honest wall time. What is predicted comes
from parts timed one by one in this process: an act, a step of the emulators, a row of replay, an
update of the rank's share of the batch, and an all-reduce between two processes. What is measured
are whole runs as a user begins them: of two lengths, whose difference leaves out how long they take
to begin.
"""

import dataclasses
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.config import Config, make_config, read_preset, to_plain
from agents.sweeping.runs import PlannedRun, StopRequest, execute
from agents.training.parts import share_of
from agents.training.trainer import Trainer
from rl_nfm.support.ranks import Ranks

FLAGS = {
    "encoder": "nature",
    "device": "cpu",
    "env": {"num_envs": 8, "num_threads": 1},
    "replay": {"capacity_steps": 8_000, "min_steps": 200},
    "run": {"eval_episodes": 0, "checkpoint_every_steps": 10**9, "log_every_steps": 400},
}
REPEATS = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Seconds of processor time."""

    round: float
    """Acting, emulating and adding to the replay, once for every environment."""
    update: float


def main(checks: list[str], steps: int) -> None:
    config = check_config()
    one, half = parts(config), parts(share_of(config, Ranks(rank=1, size=2)))
    reduce = all_reduce_seconds(config)
    alone = per_step(config, one, 1, 0.0)
    print(f"parts, ms: round {1e3 * one.round:.2f} of 8 environments, {1e3 * half.round:.2f} of 4; "
          f"update {1e3 * one.update:.2f} of 32, {1e3 * half.update:.2f} of 16; "
          f"all-reduce {1e3 * reduce:.2f}")  # fmt: skip
    tell("one run", alone, measured_runs(config, steps, [[]]))
    if "ranks" in checks:
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
        tell("two ranks", per_step(config, half, 2, reduce), measured_runs(config, steps, [launch]))
    if "runs" in checks:
        tell("two runs at once", alone, measured_runs(config, steps, [[], []]))
    if "ray" in checks:
        tell("two runs on two Ray nodes", alone, measured_ray(config, steps))


def check_config() -> Config:
    values = to_plain(read_preset("quickstart"))
    values["nature"] = {"width": 16}
    del values["nfm"]
    for key, value in FLAGS.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    return make_config(values)


def parts(config: Config) -> Parts:
    """Of a process with these environments and this batch."""
    trainer = Trainer(config, torch.device("cpu"))
    obs, info = trainer.env.reset(seed=1)
    trainer.collector.begin(obs, info, epsilon=trainer._epsilon())
    trainer.step.set_schedule(0.5)

    def one_round() -> None:
        trainer.env.send(trainer.collector.act())
        obs, reward, terminated, _, info = trainer.env.recv()
        trainer.collector.receive(obs, reward, terminated, info, epsilon=trainer._epsilon())

    for _ in range(60):
        one_round()
    found = Parts(round=processor_seconds(one_round), update=processor_seconds(trainer.step))
    trainer.env.close()
    return found


def processor_seconds(work: Callable[[], object]) -> float:
    """The median of several stretches, per call."""
    work()
    stretches = []
    for _ in range(6):
        begun = time.process_time()
        for _ in range(REPEATS // 6):
            work()
        stretches.append((time.process_time() - begun) / (REPEATS // 6))
    return statistics.median(stretches)


def all_reduce_seconds(config: Config) -> float:
    """Of averaging the gradients of this network, in each of two processes."""
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
        told = subprocess.run(
            [sys.executable, *command],
            env=environment(),
            check=True,
            capture_output=True,
            text=True,
        )
    return float(told.stdout.split()[-1])


def per_step(config: Config, part: Parts, ranks: int, reduce: float) -> float:
    """Predicted seconds of processor time per agent step, of all ranks together."""
    updates = config.env.num_envs / config.learner.steps_per_update
    return ranks * (part.round + updates * (part.update + reduce)) / config.env.num_envs


def environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}


def measured_runs(config: Config, steps: int, launches: list[list[str]]) -> list[float]:
    """Seconds of processor time per agent step of each of two pairs of lengths."""
    return [_difference(lambda n: _processor_time(config, n, launches), steps) for _ in range(2)]


def _difference(spent: Callable[[int], float], steps: int) -> float:
    short = steps // 4
    return (spent(steps) - spent(short)) / (steps - short)


def _processor_time(config: Config, steps: int, launches: list[list[str]]) -> float:
    """Mean over the runs that are begun at once."""
    with tempfile.TemporaryDirectory() as folder:
        before = _of_children()
        begun = [
            subprocess.Popen(
                [sys.executable, *launch, *arguments(config, steps, Path(folder) / str(number))],
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for number, launch in enumerate(launches)
        ]
        assert [process.wait() for process in begun] == [0] * len(begun)
        return (_of_children() - before) / len(begun)


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def arguments(config: Config, steps: int, out: Path) -> list[str]:
    """Of Python: the command that a user types."""
    preset = out.with_suffix(".yaml")
    import yaml

    preset.write_text(yaml.safe_dump({**to_plain(config), "steps": steps}))
    return ["-m", "agents.cli", "train", str(preset), "--out", str(out)]


def measured_ray(config: Config, steps: int) -> list[float]:
    """Two runs at once as the sweep places them: one on each of two nodes of a local cluster."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR,
             runtime_env={"env_vars": environment()})  # fmt: skip

    def spent(steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            runs = [planned(config, steps, Path(folder) / str(number)) for number in range(2)]
            task: Any = ray.remote(num_cpus=1)(_execute)
            found = ray.get([task.remote(run) for run in runs])
        assert all(code == 0 for code, _, _ in found), found
        assert len({node for _, _, node in found}) == 2, "both runs were on one node"
        return float(np.mean([seconds for _, seconds, _ in found]))

    try:
        return [_difference(spent, steps) for _ in range(2)]
    finally:
        ray.shutdown()
        nodes.shutdown()


def planned(config: Config, steps: int, out: Path) -> PlannedRun:
    begin = tuple(arguments(config, steps, out)[2:])
    return PlannedRun(
        kind="train", game="check", method="nature", seed=int(out.name), folder=out,
        begin=begin, resume=("train", "--resume", str(out)), steps=steps,
    )  # fmt: skip


def _execute(run: PlannedRun) -> tuple[int, float, str]:
    import ray

    before = _of_children()
    code = execute(run, 1, StopRequest())
    return code, _of_children() - before, ray.get_runtime_context().get_node_id()


def tell(name: str, predicted: float, measured: list[float]) -> None:
    middle = statistics.median(measured)
    spread = ", ".join(f"{1e3 * value:.2f}" for value in sorted(measured))
    print(
        f"{name:28s} predicted {1e3 * predicted:6.2f} ms of processor time per agent step, "
        f"measured {1e3 * middle:6.2f} ({spread}): {predicted / middle - 1:+.0%}",
        flush=True,
    )
