"""`rl-nfm sweep`: many runs from one command, which goes on where it was stopped."""

import dataclasses
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from annotated_types import Ge, Gt

from agents.config import chosen_encoders, config_class, read_preset
from agents.reporting.kept import check_same, is_kept
from agents.reporting.sizes import describe
from agents.sweeping.board import Board
from agents.sweeping.executors import Executor, LocalExecutor, cores
from agents.sweeping.folder import check_space, held
from agents.sweeping.plan import Plan, parse_seeds, parse_vary
from agents.sweeping.runs import PlannedRun
from agents.sweeping.sweep import Outcome, run_all
from rl_nfm.encoders import encoder_names
from rl_nfm.support.flags import parse_flags

DESCRIPTION = """Train every game with every encoder, setting and seed: a folder of ordinary runs,
OUT/GAME/ENCODER/seed-N, each by `rl-nfm train` in a process of its own. The same command again goes
on with what is unfinished and repeats nothing; with more games, encoders or seeds it adds runs.
`rl-nfm report OUT` tells the results at any moment. Other options are those of `rl-nfm train
PRESET`, and hold for all runs. Games may also be suites: mission, atari5, atari26, atari57
(`rl-nfm games`). Encoders may also be baselines as large as another encoder of the preset:
resnet_matched (as many parameters as nfm), resnet_macs (multiply-accumulates), lstm_matched (rim).
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to run."""

    preset: tyro.conf.Positional[str]
    """Name of a preset, or path of a YAML file."""

    out: Path
    """Folder of the sweep: a new one, or one to go on with."""

    games: tuple[str, ...] = ()
    """Games and suites; none: the preset's game."""

    encoders: tuple[str, ...] = ()
    """Encoders and matched baselines; none: the preset's encoder."""

    seeds: tuple[str, ...] = ()
    """Numbers and ranges, as in: 0 1 2, or 0..4; none: the preset's seed."""

    vary: tuple[str, ...] = ()
    """Options with several values, all combined: learner.learning_rate=1e-4,2e-4."""

    known: Path | None = None
    """Results kept by `rl-nfm report OUT --keep DIR`: runs in them count as done."""

    at_once: Annotated[int, Gt(0)] | None = None
    """Runs side by side; none: one per processor core."""

    retries: Annotated[int, Ge(0)] = 2
    """How often a run that fails goes on from its checkpoint before it is given up."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    own, others = split_flags(argv, [field.name for field in dataclasses.fields(Options)])
    options = parse_flags(Options, own, prog="rl-nfm sweep PRESET", description=DESCRIPTION)
    plan = _plan(options, others)
    with held(options.out):
        executor = LocalExecutor(options.at_once)
        runs = plan.runs(options.out, executor.threads)
        known = _known(options.known, plan, runs)
        board = Board(runs, known=known, at_once=executor.at_once)
        open_runs = [run for run in runs if not board.is_done(run)]
        check_space(options.out, open_runs, plan.configs())
        plan.save(options.out)
        _announce(plan, executor, runs, open_runs)
        outcome = run_all(open_runs, executor, board, options.retries)
    return _end(outcome, options.out)


def split_flags(argv: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """What concerns the flags of these names (and no flag at all), and what others."""
    own: list[str] = []
    others: list[str] = []
    current = own
    for word in argv:
        if word.startswith("--") or word == "-h":
            name = word.removeprefix("--").split("=")[0].replace("-", "_")
            current = own if name in (*names, "help") or word == "-h" else others
        current.append(word)
    return own, others


def _plan(options: Options, others: Sequence[str]) -> Plan:
    """What is asked, checked.

    Raises:
        ValueError: naming what is wrong with it.
    """
    base = parse_flags(
        config_class(),
        others,
        default=read_preset(options.preset),
        prog=f"rl-nfm train {options.preset}",
    )
    for name in ("game", "encoder", "seed"):
        if any(word.split("=")[0] == f"--{name}" for word in others):
            raise ValueError(f"{name}: not an option of a sweep, use --{name}s")
    plan = Plan(
        base=base,
        games=options.games or (base.game,),
        encoders=options.encoders or (base.encoder,),
        seeds=parse_seeds(options.seeds) or (base.seed,),
        vary=parse_vary(options.vary),
    )
    read = {name for config in plan.configs().values() for name in chosen_encoders(config)}
    for name in set(encoder_names()) - read:
        for word in others:
            if word.startswith((f"--{name}.", f"--no-{name}.")):
                raise ValueError(
                    f"{word.split('=')[0]}: encoder {name!r} is not among --encoders "
                    f"({', '.join(plan.encoders)})"
                )
    return plan


def _known(folder: Path | None, plan: Plan, runs: Sequence[PlannedRun]) -> list[str]:
    """Names of the runs that are kept in the folder.

    Raises:
        ValueError: no such folder, or one of them was made with other settings.
    """
    if folder is None:
        return []
    if not folder.is_dir():
        raise ValueError(f"known: {folder} is no folder")
    configs = plan.configs()
    kept = [run for run in runs if is_kept(folder / run.name)]
    for run in kept:
        config = dataclasses.replace(configs[run.method], game=run.game, seed=run.seed)
        check_same(config, folder / run.name)
    return [run.name for run in kept]


def _announce(
    plan: Plan, executor: Executor, runs: Sequence[PlannedRun], open_runs: Sequence[PlannedRun]
) -> None:
    print(f"{'encoder':24} {'parameters':>11} {'MACs':>13} {'with head':>11}")
    for method, config in plan.configs().items():
        size = describe(config)
        print(
            f"{method:24} {size['parameters']:>11,} {size['macs']:>13,} "
            f"{size['network_parameters']:>11,}"
        )
    print(
        f"{len(runs)} runs, {len(runs) - len(open_runs)} done before; {executor.at_once} at once "
        f"with {executor.threads} thread(s) each ({cores()} cores here)",
        flush=True,
    )


def _end(outcome: Outcome, out: Path) -> int:
    for name, reason in outcome.failed.items():
        print(f"rl-nfm: {name}: {reason}", file=sys.stderr)
    if outcome.signal is not None:
        name = signal.Signals(outcome.signal).name
        print(f"stopped by {name}; go on: the same command again")
        return 128 + outcome.signal
    print(f"next: rl-nfm report {out}")
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
