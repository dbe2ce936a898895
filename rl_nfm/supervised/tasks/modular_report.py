"""One table and one plot of modular runs: test accuracy over the number of training rows."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Len

from rl_nfm.supervised.registry import register_task
from rl_nfm.support.flags import parse_flags

NAME = "modular_report"
Result = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Options of the report."""

    results: Annotated[tuple[Path, ...], Len(1)]
    """result.json of modular runs."""
    out: Path
    """Folder for table.md and accuracy.png."""


@register_task(NAME, "one table and plot of several modular runs")
def main(argv: Sequence[str]) -> int:
    """Write the table and plot of finished runs."""
    config = parse_flags(
        ReportConfig, argv, prog=f"rl-nfm supervised {NAME}", description=__doc__ or ""
    )
    results = read_results(config.results)
    config.out.mkdir(parents=True, exist_ok=True)
    print(write_report(config.out, results))
    return 0


def read_results(paths: Sequence[Path]) -> list[Result]:
    """Results of modular runs.

    Raises:
        ValueError: a file is none.
    """
    results = []
    for path in paths:
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            if result["task"] != "modular":
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(f"results: {path} is no result of a modular run") from None
        results.append(result)
    return results


def label(result: Result) -> str:
    """Model and routing of a run in a few words."""
    config = result["config"]
    if config["model"] == "mlp":
        pruned = config["pruning_ratio"]
        return f"MLP, {pruned:g} % pruned" if pruned else "MLP"
    shared = config["model"].endswith("shared_modules")
    words = ["shared modules" if shared else "modules"]
    known = [config["known_module_input"]] + [config["known_module_locations"]] * shared
    kinds = {0: "learned", len(known): "known"}
    words.append(f"{kinds.get(sum(known), 'partly known')} routing")
    if config["use_gumbel"]:
        words.append("Gumbel")
    if config["routing_candidates"] > 1:
        words.append(f"search of {config['routing_candidates']}")
    return ", ".join(words)


def write_report(folder: Path, results: Sequence[Result]) -> str:
    """Write table.md and accuracy.png into `folder`; returns the table."""
    table = format_table(results)
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    plot(results, folder / "accuracy.png")
    return table


def format_table(results: Sequence[Result]) -> str:
    """Markdown: one row a model and training-set size; accuracies in %."""
    outputs = [n for n in results[0]["splits"][0]["mean"] if n.startswith("test_output_")]
    head = ["model", "parameters", "train rows", "seeds", "train", "test", "min to max"]
    head += [f"output {i + 1}" for i in range(len(outputs))]
    head += ["rows right", "all 0", "perfect seeds", "right modules"]
    lines = [head, ["---"] * len(head)]
    for result in results:
        for split in result["splits"]:
            mean, trials = split["mean"], split["trials"]
            tests = [trial["test_accuracy"] for trial in trials]
            cells = [label(result), result["parameters"], split["train_rows"], len(trials)]
            cells += [_percent(mean["train_accuracy"]), _percent(mean["test_accuracy"])]
            cells += [f"{_percent(min(tests))} to {_percent(max(tests))}"]
            cells += [_percent(mean[name]) for name in outputs]
            cells += [_percent(mean["test_rows"]), _percent(split["baseline"])]
            cells += [f"{sum(trial['all_rows'] == 1 for trial in trials)}/{len(trials)}"]
            wired = [trial["right_modules"] for trial in trials if "right_modules" in trial]
            cells += [f"{sum(share == 1 for share in wired)}/{len(wired)}" if wired else "-"]
            lines.append([str(cell) for cell in cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def plot(results: Sequence[Result], path: Path) -> None:
    """Mean test accuracy with the range over seeds, over training rows, as PNG.

    Results of one label are one line, so sizes may come from several runs.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axes = figure.add_subplot()
    lines: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        lines.setdefault(label(result), []).extend(result["splits"])
    for index, (name, splits) in enumerate(lines.items()):
        splits.sort(key=lambda split: split["train_rows"])
        # beside each other, so that equal values stay visible
        rows = [split["train_rows"] + 0.5 * (index - (len(lines) - 1) / 2) for split in splits]
        means = [100 * split["mean"]["test_accuracy"] for split in splits]
        tests = [[100 * trial["test_accuracy"] for trial in split["trials"]] for split in splits]
        spread = (
            [max(mean - min(test), 0) for mean, test in zip(means, tests, strict=True)],
            [max(max(test) - mean, 0) for mean, test in zip(means, tests, strict=True)],
        )
        axes.errorbar(rows, means, spread, marker="o", capsize=3, label=name)
    zeros = {split["train_rows"]: 100 * split["baseline"] for s in lines.values() for split in s}
    axes.plot(sorted(zeros), [zeros[rows] for rows in sorted(zeros)], "--_k", label="always 0")
    axes.set_xlabel("training rows")
    axes.set_ylabel("accuracy on test rows, % (mean and range over seeds)")
    figure.legend(fontsize="small", loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)
