"""`rl-nfm sweep`: many runs from one command, which goes on where it was stopped."""

import dataclasses
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from annotated_types import Ge, Gt

from agents.config import chosen_encoders, config_class, read_preset
from agents.reporting.kept import check_same, is_kept
from agents.reporting.sizes import describe
from agents.sweeping.board import Board
from agents.sweeping.executors import Executor, LocalExecutor, cores
from agents.sweeping.folder import check_space, held
from agents.sweeping.plan import Plan, parse_seeds, parse_vary, read_request
from agents.sweeping.runs import PlannedRun
from agents.sweeping.search import Search, SearchRequest, check_ends, import_optuna
from agents.sweeping.space import parse_space, same_space
from agents.sweeping.supervised import PREFIX, SupervisedPlan
from agents.sweeping.sweep import FixedWork, Outcome, run_all
from rl_nfm.encoders import encoder_names
from rl_nfm.support.flags import parse_flags

DESCRIPTION = """Train every game with every encoder, setting and seed: a folder of ordinary runs,
OUT/GAME/ENCODER/seed-N, each by `rl-nfm train` in a process of its own. The same command again goes
on with what is unfinished and repeats nothing; with more games, encoders or seeds it adds runs.
`rl-nfm report OUT` tells the results at any moment. Other options are those of `rl-nfm train
PRESET`, and hold for all runs.

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
    """Options with several values, all combined: learner.learning_rate=1e-4,2e-4."""

    known: Path | None = None
    """Results kept by `rl-nfm report OUT --keep DIR`: runs in them count as done."""

    at_once: Annotated[int, Gt(0)] | None = None
    """Runs side by side; none: one per processor core. Not with --ray."""

    retries: Annotated[int, Ge(0)] = 2
    """How often a run that fails goes on from its checkpoint before it is given up."""

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

    metric: str = "return_last_100"
    """What a search makes large: a number in the runs' metrics.jsonl. Over several games it is
    human-normalised first."""

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


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    own, others = split_flags(argv, [field.name for field in dataclasses.fields(Options)])
    options = parse_flags(Options, own, prog="rl-nfm sweep PRESET", description=DESCRIPTION)
    if options.ray is not None:
        options = dataclasses.replace(options, out=options.out.resolve())
    if options.preset.startswith(PREFIX):
        return _supervised(options, others)
    plan = _plan(options, others)
    with held(options.out):
        executor = _executor(options)
        if options.search:
            outcome = _search(options, plan, executor)
        else:
            outcome = _compare(options, plan, executor)
    return _end(outcome, options.out)


def _compare(options: Options, plan: Plan, executor: Executor) -> Outcome:
    runs = plan.runs(options.out, executor.threads)
    known = _known(options.known, plan, runs)
    board = Board(runs, known=known, at_once=executor.at_once)
    open_runs = [run for run in runs if not board.is_done(run)]
    check_space(options.out, open_runs, plan.configs())
    plan.save(options.out)
    _print_sizes(plan)
    print(f"{len(runs)} runs, {len(runs) - len(open_runs)} done before; {_room(executor)}")
    return run_all(FixedWork(open_runs, board), executor, board, options.retries)


def _search(options: Options, plan: Plan, executor: Executor) -> Outcome:
    if len(plan.encoders) != 1 or plan.vary or options.known:
        raise ValueError("search: takes one encoder, and neither --vary nor --known")
    space = parse_space(options.search, plan.base)
    before = read_request(options.out)
    if before:
        same_space(space, before.get("search", {}))
    import_optuna()
    check_ends(plan, space)
    plan.save(options.out, {"search": {d.option: d.text for d in space}})
    request = SearchRequest(space=space, trials=options.trials, metric=options.metric)
    board = Board([], at_once=executor.at_once)
    work = Search(plan, request, out=options.out, executor=executor, board=board)
    print(f"{options.trials} trials in all; {_room(executor)}")
    return run_all(work, executor, board, options.retries)


def _supervised(options: Options, others: Sequence[str]) -> int:
    plan = SupervisedPlan(
        task=options.preset.removeprefix(PREFIX),
        models=options.models,
        seeds=parse_seeds(options.seeds) or (0,),
        vary=parse_vary(options.vary),
        flags=tuple(others),
    )
    with held(options.out):
        executor = _executor(options)
        runs = plan.runs(options.out)
        board = Board(runs, at_once=executor.at_once)
        open_runs = [run for run in runs if not board.is_done(run)]
        plan.save(options.out)
        print(f"{len(runs)} runs, {len(runs) - len(open_runs)} done before; {_room(executor)}")
        outcome = run_all(FixedWork(open_runs, board), executor, board, options.retries)
    return _end(outcome, options.out)


def _executor(options: Options) -> Executor:
    if options.ray is None:
        return LocalExecutor(options.at_once)
    from agents.sweeping.cluster import RayExecutor

    return RayExecutor(options.ray, cpus=options.cpus_per_run, gpus=options.gpus_per_run)


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
    for name in ("game", "encoder", "seed"):
        if any(word.split("=")[0] == f"--{name}" for word in others):
            raise ValueError(f"{name}: not an option of a sweep, use --{name}s")
    prog = f"rl-nfm train {options.preset}"
    default: Any = read_preset(options.preset)
    base = parse_flags(config_class(), others, default=default, prog=prog)
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


def _print_sizes(plan: Plan) -> None:
    print(f"{'encoder':24} {'parameters':>11} {'MACs':>13} {'with head':>11}")
    for method, config in plan.configs().items():
        size = describe(config)
        print(
            f"{method:24} {size['parameters']:>11,} {size['macs']:>13,} "
            f"{size['network_parameters']:>11,}"
        )


def _room(executor: Executor) -> str:
    here = f" ({cores()} cores here)" if isinstance(executor, LocalExecutor) else " on the cluster"
    return f"{executor.at_once} at once with {executor.threads} thread(s) each{here}"


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
