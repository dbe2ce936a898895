"""`rl-nfm report`: learning curves and scores over seeds and games."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from agents.reporting.kept import keep
from agents.reporting.report import write_report
from agents.reporting.served import serve
from agents.reporting.swept import SWEEP_FILE
from rl_nfm.supervised.loop.options import CONFIG_FILE
from rl_nfm.supervised.report.command import main as report_supervised
from rl_nfm.support.flags import parse_flags
from rl_nfm.support.yaml_file import read_yaml

DESCRIPTION = """Learning curves (PNG) and tables of scores (Markdown, CSV, JSON) over seeds and
games, and all of it in one page, index.html. A run adds its training curve and its scores.json,
where it has one. Runs of one encoder are seeds of one method, unless their settings differ. Scores
of different protocols are refused. Runs and sweeps of supervised tasks get the table of
`rl-nfm supervised report`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to report."""

    path: tyro.conf.Positional[tuple[Path, ...]]
    """Runs' folders, sweeps' folders, and files written by `rl-nfm evaluate --json`."""

    out: Path = Path("report")
    """Folder to write to; an earlier report in it is replaced."""

    keep: Path | None = None
    """Also keep what tables and curves need of every finished run of a sweep here, as small text
    files that can be committed; `rl-nfm sweep --known` counts those of agents as done."""

    against: str | None = None
    """Compare every encoder with this one (probability of improvement; none: all pairs). Of
    supervised tasks: see `rl-nfm supervised report --help`."""

    no_references: tyro.conf.UseCounterAction[
        Annotated[int, tyro.conf.arg(help_behavior_hint="(default: off)")]
    ] = 0
    """Leave out the public scores that are drawn beside runs under their protocol: Dopamine's
    training (IQN and compact Rainbow, Nature and IMPALA), and for `atari100k` the evaluations of
    DER, DrQ and SPR."""

    open: tyro.conf.UseCounterAction[
        Annotated[int, tyro.conf.arg(help_behavior_hint="(default: off)")]
    ] = 0
    """Show index.html in a browser, served on this machine alone until Ctrl-C."""

    force: tyro.conf.UseCounterAction[
        Annotated[int, tyro.conf.arg(help_behavior_hint="(default: off)")]
    ] = 0
    """Write into a folder that holds other things than a report."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse_flags(Options, argv, prog="rl-nfm report", description=DESCRIPTION)
    if not options.path:
        raise ValueError("path: at least one run is needed, as in: rl-nfm report runs/* --out DIR")
    if any(map(_is_supervised, options.path)):
        return _supervised(options)
    files = write_report(
        options.path,
        options.out,
        force=bool(options.force),
        against=options.against,
        references=not options.no_references,
    )
    if options.keep is not None:
        kept = [run for sweep in options.path for run in keep(sweep, options.keep)]
        print(f"kept in {options.keep}: {len(kept)} more runs")
    print(files[0].read_text(encoding="utf-8"))
    print("written: " + ", ".join(str(file) for file in files))
    if options.open:
        serve(options.out, options.path)
    return 0


def _is_supervised(path: Path) -> bool:
    """Whether a folder is a sweep, or a run, of a supervised task."""
    file = path / SWEEP_FILE
    return (file.is_file() and "supervised" in read_yaml(file)) or (path / CONFIG_FILE).is_file()


def _supervised(options: Options) -> int:
    for path in options.path:
        if not _is_supervised(path):
            raise ValueError(f"path: {path} holds agents; report them apart from supervised tasks")
    for name in ("no_references", "open", "force"):
        if getattr(options, name):
            raise ValueError(f"{name}: has no effect on supervised tasks")
    words = [*map(str, options.path), "--out", str(options.out)]
    for name in ("keep", "against"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name}", str(value)]
    return report_supervised(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
