"""The options of `rl-nfm sweep`, and which flags are passed on to its runs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from annotated_types import Ge, Gt

from agents.sweeping.supervised import PREFIX

DESCRIPTION = """Train every game with every encoder, setting and seed: a folder of ordinary runs,
OUT/GAME/ENCODER/seed-N, each by `rl-nfm train` in a process of its own. The same command again goes
on with what is unfinished and repeats nothing; with more games, encoders or seeds it adds runs.
`rl-nfm report OUT` tells the results at any moment. Other options are those of `rl-nfm train
PRESET`, and hold for all runs; but where these have sequences, encoders without a state are given
as many single steps a batch as its sequences have beyond their overlap (see a run's config.yaml).

Games may also be suites: mission, atari5, atari26, atari57 (`rl-nfm games`). Encoders may also be
baselines as large as another encoder of the preset: resnet_matched (as many parameters as nfm),
resnet_macs (multiply-accumulates), lstm_matched (rim).

`rl-nfm sweep supervised:TASK --models A B --seeds 0..2 --out DIR` does the same for a supervised
task; other options are then those of `rl-nfm supervised TASK`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to run."""

    preset: tyro.conf.Positional[str]
    """Name of a preset, path of a YAML file, or supervised:TASK."""

    out: Path
    """Folder of the sweep: a new one, or one to go on with."""

    games: tuple[str, ...] = ()
    """Games and suites; none: the preset's game."""

    encoders: tuple[str, ...] = ()
    """Encoders and matched baselines; none: the preset's encoder."""

    models: tuple[str, ...] = ()
    """Models of a supervised task; none: its default."""

    seeds: tuple[str, ...] = ()
    """Numbers and ranges, as in: 0 1 2, or 0..4; none: the preset's seed."""

    vary: tuple[str, ...] = ()
    """Options with several values, all combined: learner.learning_rate=1e-4,2e-4.
    Values that are lists stand in brackets: train_counts=[1,3],[1,5]."""

    known: Path | None = None
    """Results kept by `rl-nfm report OUT --keep DIR`: runs in them count as done."""

    at_once: Annotated[int, Gt(0)] | None = None
    """Runs side by side; none: one per processor core. Not with --ray."""

    retries: Annotated[int, Ge(0)] = 2
    """How often a run that fails goes on from its checkpoint before it is given up."""

    keep_replay: tyro.conf.UseCounterAction[
        Annotated[int, tyro.conf.arg(help_behavior_hint="(default: off)")]
    ] = 0
    """Leave the replay in the last checkpoint of runs that are done, so that `rl-nfm train --resume
    RUN --steps N` goes on with it; without, they keep what evaluation needs, and a run that goes on
    first fills a new one."""

    ray: str | None = None
    """Run on a Ray cluster: auto, HOST:PORT or ray://HOST:PORT; OUT must be on storage that all its
    machines share. Needs rl-nfm[ray]."""

    cpus_per_run: Annotated[int, Gt(0)] = 1
    """Cores of one run, with --ray."""

    gpus_per_run: Annotated[float, Ge(0)] = 0.0
    """GPUs of one run, or a share of one, with --ray."""

    search: tuple[str, ...] = ()
    """Options to search by Optuna instead of trying all values, as in
    learner.learning_rate=1e-5..1e-3:log replay.priority_exponent=0..1 head.dueling=True,False.
    One encoder; a trial is every game and seed. The best config is written to OUT/best.yaml, a
    preset. Needs rl-nfm[search]."""

    trials: Annotated[int, Gt(0)] = 20
    """Trials of a search in all; trials that fall behind the median are ended early."""

    metric: Literal[
        "return_last_100",
        "return_mean",
        "length_mean",
        "eval_return_mean",
        "eval_return_median",
        "steps_per_second",
        "updates_per_second",
    ] = "return_last_100"
    """What a search makes large: a number in the runs' metrics.jsonl. Over several games returns
    are human-normalised first."""

    def __post_init__(self) -> None:
        for name, default in (("cpus_per_run", 1), ("gpus_per_run", 0.0)):
            if self.ray is None and getattr(self, name) != default:
                raise ValueError(f"{name}: has no effect without --ray")
        if self.ray is not None and self.at_once is not None:
            raise ValueError("at_once: not allowed with --ray, which fills the cluster")
        for name, default in (("trials", 20), ("metric", "return_last_100")):
            if not self.search and getattr(self, name) != default:
                raise ValueError(f"{name}: has no effect without --search")
        supervised = self.preset.startswith(PREFIX)
        for name in ("games", "encoders", "search", "known") if supervised else ("models",):
            if getattr(self, name):
                where = "with a supervised task" if supervised else "with agents"
                raise ValueError(f"{name}: not allowed {where}")


def split_flags(argv: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments: the flags of these names and what stands before any flag, and the others."""
    listed: list[str] = []
    others: list[str] = []
    current = listed
    for word in argv:
        if word.startswith("--") or word == "-h":
            name = word.removeprefix("--").split("=")[0].replace("-", "_")
            current = listed if name in (*names, "help") or word == "-h" else others
        current.append(word)
    return listed, others
