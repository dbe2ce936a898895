"""`rl-nfm report`: learning curves and scores over seeds and games."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from agents.reporting.kept import keep
from agents.reporting.report import write_report
from agents.reporting.supervised import is_supervised, write_supervised_report
from rl_nfm.support.flags import parse_flags

DESCRIPTION = """Learning curves (PNG) and tables of scores (Markdown, CSV, JSON) over seeds and
games. A run adds its training curve and its scores.json, where it has one. Runs of one encoder are
seeds of one method, unless their settings differ. Scores of different protocols are refused."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to report."""

    path: tyro.conf.Positional[tuple[Path, ...]]
    """Runs' folders, sweeps' folders, and files written by `rl-nfm evaluate --json`."""

    out: Path = Path("report")
    """Folder to write to; an earlier report in it is replaced."""

    keep: Path | None = None
    """Also keep what tables and curves need of every finished run of a sweep here, as small text
    files that can be committed; `rl-nfm sweep --known` counts those as done."""

    against: str | None = None
    """Compare every encoder with this one (probability of improvement); none: all pairs."""

    references: tyro.conf.UseCounterAction[
        Annotated[int, tyro.conf.arg(help_behavior_hint="(default: off)")]
    ] = 0
    """Draw Dopamine's public curves (IQN and Rainbow, Nature and IMPALA) beside the training of
    runs under their protocol."""

    force: tyro.conf.UseCounterAction[
        Annotated[int, tyro.conf.arg(help_behavior_hint="(default: off)")]
    ] = 0
    """Write into a folder that holds other things than a report."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse_flags(Options, argv, prog="rl-nfm report", description=DESCRIPTION)
    if not options.path:
        raise ValueError("path: at least one run is needed, as in: rl-nfm report runs/* --out DIR")
    if any(map(is_supervised, options.path)):
        first, *others = options.path
        if others:
            raise ValueError("path: a sweep of a supervised task is reported alone")
        files = write_supervised_report(first, options.out)
        print(files[0].read_text(encoding="utf-8"))
        return 0
    files = write_report(
        options.path,
        options.out,
        force=bool(options.force),
        against=options.against,
        references=bool(options.references),
    )
    if options.keep is not None:
        kept = [run for sweep in options.path for run in keep(sweep, options.keep)]
        print(f"kept in {options.keep}: {len(kept)} more runs")
    print(files[0].read_text(encoding="utf-8"))
    print("written: " + ", ".join(str(file) for file in files))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
