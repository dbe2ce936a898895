"""The table of a supervised task's sweep: mean and standard deviation, as the papers print it."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_nfm.supervised.loop.reporting import mean_and_deviation
from rl_nfm.support.output_files import write_json, written
from rl_nfm.support.yaml_file import read_yaml

SWEEP_FILE = "sweep.yaml"
Row = dict[str, Any]


def is_supervised(path: Path) -> bool:
    """Whether a folder is a sweep of a supervised task."""
    file = path / SWEEP_FILE
    return file.is_file() and "supervised" in read_yaml(file)


def write_supervised_report(sweep: Path, out: Path) -> list[Path]:
    """Read the results of finished runs, and write report.md, report.json and runs.csv.

    Raises:
        ValueError: no run is finished, or a result is damaged.
        OSError: a file cannot be written.
    """
    runs = _read_runs(sweep)
    if not runs:
        raise ValueError(f"nothing to report: no run in {sweep} is finished")
    table = [_row(runs, method) for method in dict.fromkeys(run["method"] for run in runs)]
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", {"task": runs[0]["task"], "table": table, "runs": runs})
    names = list(dict.fromkeys(name for run in runs for name in run["metrics"]))
    with written(out / "runs.csv") as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "seed", "parameters", *names])
        for run in runs:
            values = [run["metrics"].get(name) for name in names]
            writer.writerow([run["method"], run["seed"], run["parameters"], *values])
    with written(out / "report.md") as partial:
        partial.write_text(_markdown(runs[0]["task"], table, names), encoding="utf-8")
    return [out / name for name in ("report.md", "report.json", "runs.csv")]


def _read_runs(sweep: Path) -> list[Row]:
    runs = []
    for path in sorted(sweep.glob("*/*/seed-*/result.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            runs += [
                {
                    "task": content["task"],
                    "method": path.parts[-3],
                    "seed": trial["seed"],
                    "parameters": trial.get("parameters"),
                    "metrics": dict(trial["metrics"]),
                }
                for trial in content["trials"]
            ]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: damaged, or no result of a supervised task") from None
    return runs


def _row(runs: Sequence[Row], method: str) -> Row:
    own = [run for run in runs if run["method"] == method]
    mean, deviation = mean_and_deviation([run["metrics"] for run in own])
    row = {"method": method, "seeds": len(own), "parameters": own[0]["parameters"]}
    return {**row, "mean": mean, "deviation": deviation}


def _markdown(task: str, table: Sequence[Row], names: Sequence[str]) -> str:
    head = ["model", "seeds", "parameters", *names]
    lines = [f"# {task}", "", "Mean ± sample standard deviation over seeds.", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in table:
        size = "-" if row["parameters"] is None else f"{row['parameters']:,}"
        cells = [row["method"], str(row["seeds"]), size, *(_cell(row, name) for name in names)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: Row, name: str) -> str:
    if name not in row["mean"]:
        return "-"
    spread = f" ± {row['deviation'][name]:.4f}" if name in row["deviation"] else ""
    return f"{row['mean'][name]:.4f}{spread}"
