"""`rl-nfm sweep`: many runs from one command, which goes on where it was stopped."""

import dataclasses
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.commands.sweep_options import DESCRIPTION, Options, split_flags
from agents.config import chosen_encoders, config_class, flags_of_encoder
from agents.presets import read_preset
from agents.reporting.kept import check_same, is_kept
from agents.reporting.sizes import describe
from agents.sweeping.executors import Executor, LocalExecutor, cores
from agents.sweeping.folder import check_space, held
from agents.sweeping.plan import Plan, parse_seeds, parse_vary, read_request
from agents.sweeping.progress_table import Board
from agents.sweeping.runs import PlannedRun
from agents.sweeping.search import Search, SearchRequest, check_ends, import_optuna
from agents.sweeping.space import parse_space, same_space
from agents.sweeping.supervised import PREFIX, SupervisedPlan
from agents.sweeping.sweep import FixedWork, Outcome, drop_replays, run_all
from rl_nfm.encoders import encoder_names
from rl_nfm.support.flags import parse_flags


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    names = [field.name for field in dataclasses.fields(Options) if field.name != "preset"]
    sweep_flags, others = split_flags(argv, names)  # --preset is an option of supervised tasks
    options = parse_flags(Options, sweep_flags, prog="rl-nfm sweep PRESET", description=DESCRIPTION)
    if options.ray is not None:
        options = dataclasses.replace(options, out=options.out.resolve())
    if options.preset.startswith(PREFIX):
        return _supervised(options, others)
    plan = _plan(options, others)
    with held(options.out):
        executor = _executor(options)
        if options.search:
            return _search(options, plan, executor)
        outcome = _compare(options, plan, executor)
    return _end(outcome, options.out, *([] if options.known is None else [options.known]))


def _compare(options: Options, plan: Plan, executor: Executor) -> Outcome:
    if "search" in read_request(options.out):
        raise ValueError(f"out: {options.out} holds a search; --search goes on with it")
    runs = plan.runs(options.out, executor.threads)
    known = _known(options.known, plan, runs)
    board = Board(runs, known=known, at_once=executor.at_once)
    done = [run for run in runs if board.is_done(run)]
    open_runs = [run for run in runs if run not in done]
    at_once = None if options.keep_replay else executor.at_once
    check_space(options.out, open_runs, plan.configs(), at_once=at_once)
    plan.save(options.out)
    if not options.keep_replay:
        drop_replays(done, board)  # a sweep that was killed may not have come to it
    _print_sizes(plan)
    print(f"{len(runs)} runs, {len(runs) - len(open_runs)} done before; {_room(executor)}")
    work = FixedWork(open_runs, board)
    return run_all(work, executor, board, options.retries, keep_replay=bool(options.keep_replay))


def _search(options: Options, plan: Plan, executor: Executor) -> int:
    if "?" in str(options.out.resolve()):
        raise ValueError(f"out: {options.out} is not allowed in a search: SQLite takes no '?'")
    if options.metric.startswith("eval_") and not plan.base.run.eval_episodes:
        raise ValueError(f"metric: {options.metric} needs run.eval_episodes above 0")
    if len(plan.encoders) != 1 or plan.vary or options.known:
        raise ValueError("search: takes one encoder, and neither --vary nor --known")
    space = parse_space(options.search, plan.base)
    before = read_request(options.out)
    if before:
        same_space(space, before.get("search", {}))
        _same_trials(plan, options.metric, before)
    import_optuna()
    check_ends(plan, space)
    plan.save(options.out, {"search": {d.option: d.text for d in space}, "metric": options.metric})
    request = SearchRequest(space=space, trials=options.trials, metric=options.metric)
    board = Board([], at_once=executor.at_once)
    work = Search(plan, request, out=options.out, executor=executor, board=board)
    print(f"{options.trials} trials in all, {work.ended} over before; {_room(executor)}")
    keep = bool(options.keep_replay)
    outcome = run_all(work, executor, board, options.retries, keep_replay=keep)
    print(work.best())
    code = _end(outcome, options.out, again="--trials N draws others, up to N in all")
    return code if work.complete else max(1, code)


def _same_trials(plan: Plan, metric: str, before: Mapping[str, Any]) -> None:
    """Refuse trials that could not be compared with those that the search has.

    Raises:
        ValueError: naming what differs.
    """
    now = {"metric": metric, **{k: list(getattr(plan, k)) for k in ("games", "encoders", "seeds")}}
    for name, value in now.items():
        if (former := before.get(name, value)) != value:
            raise ValueError(
                f"{name}: {value} differs from what this search began with ({former}); choose "
                "another --out"
            )


def _supervised(options: Options, others: Sequence[str]) -> int:
    if options.keep_replay:
        raise ValueError("keep_replay: has no effect on supervised tasks")
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


def _plan(options: Options, others: Sequence[str]) -> Plan:
    """The plan that the options ask for, checked.

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
        for flag in flags_of_encoder(name, others):
            raise ValueError(
                f"{flag}: encoder {name!r} is not among --encoders ({', '.join(plan.encoders)})"
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
    kept = []
    for run in runs:
        place = folder.joinpath(*run.folder.parts[-3:])
        if is_kept(place):
            config = dataclasses.replace(configs[run.method], game=run.game, seed=run.seed)
            check_same(config, place)
            kept.append(run.name)
    if not kept:
        print(f"known: no run of this sweep is kept in {folder} (as GAME/METHOD/seed-N)")
    return kept


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


def _end(
    outcome: Outcome, *results: Path, again: str = "the same command again goes on with them"
) -> int:
    for name, reason in outcome.failed.items():
        print(f"rl-nfm: {name}: {reason}", file=sys.stderr)
    if outcome.signal is not None:
        name = signal.Signals(outcome.signal).name
        print(f"stopped by {name}; go on: the same command again")
        return 128 + outcome.signal
    if outcome.failed:
        print(f"{len(outcome.failed)} runs were given up; {again}")
    print(f"next: rl-nfm report {' '.join(map(str, results))}")
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
