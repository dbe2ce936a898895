"""Check that two checkouts compute the same, for changes that must not affect any result.

    python scripts/same_metrics.py OTHER_CHECKOUT [--only NAME ...]

Runs presets and supervised tasks from the same seed in both, on the CPU, and compares every number
they write except measurements of time. Prints the first difference and exits with 1 if there is
one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
TRAIN = ["-m", "agents.cli", "train"]
SUPERVISED = ["-m", "agents.cli", "supervised"]
CASES: dict[str, list[str]] = {
    "debug": [*TRAIN, "debug", "--run.eval-episodes", "2"],
    "debug_rim": [*TRAIN, "debug", "--encoder", "rim", "--replay.sequence-steps", "5"],
    "quickstart": [*TRAIN, "quickstart", "--steps", "1600", "--run.eval-every-steps", "800"],
    "memory_cue": [*TRAIN, "memory_cue", "--steps", "6000"],
    "adding": [*SUPERVISED, "adding", "--epochs", "2", "--updates-per-epoch", "20"],
    "arithmetic": [*SUPERVISED, "arithmetic", "--updates", "2000", "--trials", "2"],
}
"""Commands by name; `--out DIR` is appended."""
TIMES = ("_per_second", "seconds", "time/")
"""Numbers whose names contain one of these differ from run to run."""


def run(checkout: Path, command: list[str], out: Path) -> None:
    """Run one command with the code of `checkout` and one thread."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    device = ["--device", "cpu"]
    subprocess.run(
        [sys.executable, *command, *device, "--out", str(out)],
        cwd=checkout,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def untimed(value: Any) -> Any:
    """The value without measurements of time, at any depth."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if not any(t in k for t in TIMES)}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def results(out: Path) -> dict[str, list[Any]]:
    """Every line of every metrics file, by file and number."""
    files = sorted(p for p in out.rglob("*.jsonl"))
    return {
        str(p.relative_to(out)): [untimed(json.loads(x)) for x in p.read_text().splitlines()]
        for p in files
    }


def difference(a: dict[str, list[Any]], b: dict[str, list[Any]]) -> str | None:
    """A description of the first difference; None if there is none."""
    if not a or a.keys() != b.keys():
        return f"files: {sorted(a)} and {sorted(b)}"
    for name in a:
        if len(a[name]) != len(b[name]):
            return f"{name}: {len(a[name])} and {len(b[name])} lines"
        for number, (x, y) in enumerate(zip(a[name], b[name], strict=True), 1):
            if x != y:
                keys = [k for k in {**x, **y} if x.get(k) != y.get(k)]
                return f"{name}, line {number}: {[(k, x.get(k), y.get(k)) for k in keys]}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="the checkout to compare with")
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    options = parser.parse_args()
    failed = False
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            found = []
            for number, checkout in enumerate((HERE, options.other.resolve())):
                out = Path(folder) / str(number)
                run(checkout, CASES[name], out)
                found.append(results(out))
        first_difference = difference(*found)
        failed |= first_difference is not None
        lines = sum(len(x) for x in found[0].values())
        print(f"{name}: {first_difference or f'the same ({lines} lines)'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
