"""How fast one run is on W GPUs, and many runs on many hosts: the model of docs/scaling.md.

    python scripts/benchmark.py scaling                          # the tables
    python scripts/benchmark.py scaling --check ranks runs ray   # predicted and measured, here

The parts were measured on one H200 (docs/results.md, section 6); numbers of kernels are from
`count`.
"""

import argparse
import dataclasses
import math

from benchmarks._options import positive

GPUS_PER_HOST = 8
KERNEL_SECONDS = 1.5e-6
"""Shortest time of a kernel in a captured graph, however little it computes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """The connection between ranks, which determines the time of an all-reduce."""

    name: str
    bytes_per_second: float
    """Bytes per second that one rank sends."""
    hop_seconds: float
    """Latency of one of the log2(W) hops of a small message."""

    def all_reduce(self, size: float, ranks: int) -> float:
        """Seconds for `size` bytes: a ring moves 2 (W - 1) / W of them."""
        if ranks == 1:
            return 0.0
        moved = 2 * (ranks - 1) / ranks * size / self.bytes_per_second
        return moved + math.ceil(math.log2(ranks)) * self.hop_seconds


NVLINK = Link(name="NVLink", bytes_per_second=300e9, hop_seconds=8e-6)
NETWORK = Link(name="400 Gb/s network per GPU", bytes_per_second=40e9, hop_seconds=15e-6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A preset with its measured parts on one H200 and 16 cores."""

    num_envs: int
    steps_per_update: float
    update_seconds: float
    """Time of a captured update with the whole batch."""
    kernels: int
    """Kernels of one update, from `benchmark.py count`."""
    parameters: int
    env_steps_per_second: float
    """Rate of the environments alone, on all cores."""
    measured: float
    """Agent steps/s of a whole run."""
    cores: int = 16
    prioritised: bool = True


CASES = {
    "nfm_paper": Case(
        num_envs=32, steps_per_update=160, update_seconds=41.9e-3, kernels=3348,
        parameters=36_024_466, env_steps_per_second=16_030, measured=3_189,
    ),
    "resnet_paper": Case(
        num_envs=32, steps_per_update=160, update_seconds=14.6e-3, kernels=1723,
        parameters=22_244_682, env_steps_per_second=14_407, measured=7_773,
    ),
    "rim": Case(
        num_envs=32, steps_per_update=160, update_seconds=10.0e-3, kernels=3126,
        parameters=2_917_462, env_steps_per_second=15_518, measured=8_682,
    ),
    "r2d2": Case(
        num_envs=64, steps_per_update=640, update_seconds=22.4e-3, kernels=4920,
        parameters=8_104_106, env_steps_per_second=21_839, measured=13_259,
    ),
    "btr_like": Case(
        num_envs=64, steps_per_update=64, update_seconds=13.2e-3, kernels=1300,
        parameters=5_269_684, env_steps_per_second=19_626, measured=4_440,
    ),
}  # fmt: skip


def update_seconds(case: Case, ranks: int) -> float:
    """Of one update with its all-reduces: what does not shrink with the batch, and what does."""
    fixed = case.kernels * KERNEL_SECONDS
    link = NVLINK if ranks <= GPUS_PER_HOST else NETWORK
    # gradients, and for priorities the largest weight and the largest priority
    reduced = link.all_reduce(4 * case.parameters, ranks)
    scalars = 2 * link.all_reduce(8, ranks) if case.prioritised else 0.0
    return fixed + (case.update_seconds - fixed) / ranks + reduced + scalars


def emulate_seconds(case: Case, ranks: int, cores_per_gpu: int) -> float:
    """Time of one step of every environment; a core steps at least one environment."""
    per_step = case.cores / case.env_steps_per_second  # on one core
    return per_step * math.ceil(case.num_envs / (ranks * cores_per_gpu))


def round_seconds(case: Case, ranks: int, *, cores_per_gpu: int, overlap: float) -> float:
    """One step of every environment, with the updates that it pays for.

    Learning overlaps with acting and emulation, but not entirely. With overlap 1 their times add
    up; with a large overlap only the longer one counts.
    """
    learn = case.num_envs / case.steps_per_update * update_seconds(case, ranks)
    emulate = emulate_seconds(case, ranks, cores_per_gpu)
    return (learn**overlap + emulate**overlap) ** (1 / overlap)


def steps_per_second(
    case: Case, ranks: int, *, cores_per_gpu: int = 16, overlap: float | None = None
) -> float:
    """Agent steps of one run."""
    power = fitted_overlap() if overlap is None else overlap
    return case.num_envs / round_seconds(case, ranks, cores_per_gpu=cores_per_gpu, overlap=power)


def grown(case: Case, times: int) -> Case:
    """Another run: this many times the environments and batch, and as many steps per update."""
    fixed = case.kernels * KERNEL_SECONDS
    return dataclasses.replace(
        case,
        num_envs=case.num_envs * times,
        steps_per_update=case.steps_per_update * times,
        update_seconds=fixed + (case.update_seconds - fixed) * times,
    )


def fitted_overlap() -> float:
    """The only fitted number: it is fitted to whole runs measured on one GPU."""

    def error(power: float) -> float:
        return sum(
            math.log(steps_per_second(case, 1, overlap=power) / case.measured) ** 2
            for case in CASES.values()
        )

    return min((1 + step / 100 for step in range(200)), key=error)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fleet:
    """Many independent runs, which share the storage for their checkpoints."""

    storage_bytes_per_second: float = 5e9
    step_bytes: int = 7_100
    """Bytes of one agent step in a checkpoint's replay."""
    checkpoint_every_steps: int = 500_000
    start_seconds: float = 60.0
    """Seconds from Ray's task to the first update: imports, compiling of kernels, capture."""
    steps: int = 50_000_000

    def bytes_per_step(self, case: Case) -> float:
        """Bytes of checkpoints per agent step: the new row, and weights, target and moments."""
        return self.step_bytes + 4 * 4 * case.parameters / self.checkpoint_every_steps

    def total(self, case: Case, rate: float, runs: int) -> tuple[float, str]:
        """Agent steps/s of all runs, each of `rate`, and what bounds them."""
        training = self.steps / rate
        rate_with_start = rate * training / (training + self.start_seconds)
        stored = self.storage_bytes_per_second / self.bytes_per_step(case)
        return min((runs * rate_with_start, "GPUs"), (stored, "storage"))


def print_ranks() -> None:
    """Print one run on 1 to 64 GPUs, and how close the model is to measurements on one."""
    print(f"overlap exponent, fitted to whole runs on one GPU: {fitted_overlap():.2f}")
    print(f"{'preset':14s}{'measured':>10s}{'model':>8s}{'error':>8s}  ", end="")
    counts = (1, 2, 4, 8, 16, 32, 64)
    print("agent steps/s on " + "".join(f"{count:>9d}" for count in counts) + " GPUs")
    for name, case in CASES.items():
        model = steps_per_second(case, 1)
        print(
            f"{name:14s}{case.measured:10,.0f}{model:8,.0f}{model / case.measured - 1:8.0%}", end=""
        )
        print(" " * 19, end="")
        for count in counts:
            fits = case.num_envs % count == 0
            print(f"{steps_per_second(case, count):9,.0f}" if fits else f"{'-':>9s}", end="")
        print()
    print("\nthe same with W times the environments and the batch on W GPUs, which is another run")
    for name, case in CASES.items():
        rates = [steps_per_second(grown(case, count), count) for count in counts]
        print(f"{name:14s}" + " " * 45 + "".join(f"{rate:9,.0f}" for rate in rates))
    print("\nms of one update: what shrinks with the batch, what does not, the all-reduces")
    for name, case in CASES.items():
        fixed = case.kernels * KERNEL_SECONDS
        for count in (8, 32):
            rest = update_seconds(case, count) - fixed - (case.update_seconds - fixed) / count
            shrunk = (case.update_seconds - fixed) / count
            parts = "".join(f"{1e3 * value:8.2f}" for value in (shrunk, fixed, rest))
            print(f"{name:14s}{count:4d} GPUs{parts}")


def print_hosts() -> None:
    """Print independent runs, one per GPU, on 1 to 1,000 hosts of 8."""
    print("\nagent steps/s in all and what bounds them: one run per GPU, 8 per host of 128 cores,")
    print("checkpoints every 500,000 steps on shared storage of 5 GB/s")
    counts = (1, 10, 100, 1000)
    print(f"{'preset':14s}{'saved':16s}" + "".join(f"{count:>15,d} hosts" for count in counts))
    for saved, fleet in (("with the replay", Fleet()), ("networks only", Fleet(step_bytes=0))):
        for name, case in CASES.items():
            found = [fleet.total(case, case.measured, count * GPUS_PER_HOST) for count in counts]
            cells = "".join(f"{total:13,.0f} {bound:7s}" for total, bound in found)
            print(f"{name:14s}{saved:16s}{cells}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", nargs="+", choices=("ranks", "runs", "ray"), default=[])
    parser.add_argument("--repeats", type=positive, default=3, help="of each check")
    options = parser.parse_args(argv)
    if options.check:
        from benchmarks import _scaling_check

        _scaling_check.main(options.check, options.repeats)
    else:
        print_ranks()
        print_hosts()
