"""One table and one plot of modular runs: test accuracy over the number of training rows."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_nfm.supervised.report.finished import distinguish, settings_of

Result = Mapping[str, Any]


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


def labels(results: Sequence[Result], notes: list[str]) -> list[str]:
    """A label for each run; runs with different settings have different labels.

    Args:
        results: the results of the runs.
        notes: see `distinguish`.
    """
    settings = [_settings(result) for result in results]
    return distinguish([label(result) for result in results], settings, notes)


def _settings(result: Result) -> dict[str, Any]:
    """What sets runs apart; not the shares, each of which has a row and a point of a curve."""
    settings = settings_of(result["config"])
    settings.pop("dataset_split", None)
    first = result["splits"][0]
    # Step sizes of a run that was resumed with more epochs, and the images that were read, whose
    # folder says nothing then.
    settings |= {name: first[name] for name in ("learning_rates", "data_digest") if name in first}
    if "data_digest" in first:
        settings.pop("data_folder", None)
    return settings


def means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over seeds of all metrics that are numbers."""
    names = [n for n, value in rows[0].items() if isinstance(value, float)]
    return {name: sum(row[name] for row in rows) / len(rows) for name in names}


def pooled(results: Sequence[Result]) -> list[Result]:
    """Runs of equal settings as one, with the seeds of all for each share of the rows.

    Raises:
        ValueError: a seed occurs twice with a share.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(json.dumps(_settings(result), sort_keys=True), []).append(result)
    joined: list[Result] = []
    for group in groups.values():
        shares: dict[float, list[dict[str, Any]]] = {}
        for split in (split for result in group for split in result["splits"]):
            shares.setdefault(split["dataset_split"], []).append(split)
        splits = [_joined(shares[share]) for share in sorted(shares)]
        joined.append({**group[0], "splits": splits})
    return joined


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one share of the rows, from runs with other seeds."""
    if len(parts) == 1:
        return parts[0]
    trials = sorted((t for part in parts for t in part["trials"]), key=lambda trial: trial["seed"])
    for one, two in itertools.pairwise(trials):
        if one["seed"] == two["seed"]:
            raise ValueError(f"seed: {one['seed']} twice with equal settings")
    baseline = sum(part["baseline"] for part in parts) / len(parts)
    return {**parts[0], "trials": trials, "mean": means(trials), "baseline": baseline}


def write_report(folder: Path, results: Sequence[Result]) -> str:
    """Write table.md and accuracy.png into `folder`; returns the table.

    Raises:
        ValueError: see `pooled`.
    """
    results = pooled(results)
    table = format_table(results)
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    plot(results, folder / "accuracy.png")
    return table


def format_table(results: Sequence[Result]) -> str:
    """A table in Markdown: one row per model and training-set size, accuracies in %."""
    outputs = [n for n in results[0]["splits"][0]["mean"] if n.startswith("test_output_")]
    head = ["model", "parameters", "train rows", "seeds", "train", "test", "min to max"]
    head += [f"output {i + 1}" for i in range(len(outputs))]
    head += ["rows right", "all 0", "perfect seeds", "right modules"]
    lines = [head, ["---"] * len(head)]
    notes: list[str] = []
    for result, name in zip(results, labels(results, notes), strict=True):
        for split in result["splits"]:
            mean, trials = split["mean"], split["trials"]
            tests = [trial["test_accuracy"] for trial in trials]
            cells = [name, result["parameters"], split["train_rows"], len(trials)]
            cells += [_percent(mean["train_accuracy"]), _percent(mean["test_accuracy"])]
            cells += [f"{_percent(min(tests))} to {_percent(max(tests))}"]
            cells += [_percent(mean[name]) for name in outputs]
            cells += [_percent(mean["test_rows"]), _percent(split["baseline"])]
            cells += [f"{sum(trial['all_rows'] == 1 for trial in trials)}/{len(trials)}"]
            wired = [trial["right_modules"] for trial in trials if "right_modules" in trial]
            cells += [f"{sum(share == 1 for share in wired)}/{len(wired)}" if wired else "-"]
            lines.append([str(cell) for cell in cells])
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*rows, *(f"\n* {note}" for note in notes)])


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def plot(results: Sequence[Result], path: Path) -> None:
    """Mean test accuracy with the range over seeds, over training rows, as PNG.

    Results with one label form one curve, so sizes may come from several runs.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axes = figure.add_subplot()
    lines: dict[str, list[dict[str, Any]]] = {}
    for result, name in zip(results, labels(results, []), strict=True):
        lines.setdefault(name, []).extend(result["splits"])
    for index, (name, splits) in enumerate(lines.items()):
        splits.sort(key=lambda split: split["train_rows"])
        # side by side, so that equal values stay visible
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
    axes.ticklabel_format(axis="y", useOffset=False)  # of equal values
    axes.set_ylabel("accuracy on test rows, % (mean and range over seeds)")
    figure.legend(fontsize="small", loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)
