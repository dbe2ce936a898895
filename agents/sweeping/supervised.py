"""A sweep over models, settings and seeds of a supervised task."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from agents.reporting.swept import SWEEP_FILE
from agents.sweeping.plan import check_unique, method_name, read_request
from agents.sweeping.runs import PlannedRun
from rl_nfm.supervised.registry import task_entry
from rl_nfm.support.output_files import written

PREFIX = "supervised:"
_PER_RUN = ("model", "seed", "out", "resume", "json", "trials")
"""Flags that a sweep sets for each run, or that make no sense in it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedPlan:
    """Every model with every setting and seed; a run lies in TASK/MODEL/seed-N.

    Raises:
        ValueError: an unknown task, or anything given twice.
    """

    task: str
    models: tuple[str, ...]
    """None: the default of the task's preset."""
    seeds: tuple[int, ...]
    vary: Mapping[str, tuple[str, ...]]
    flags: tuple[str, ...]
    """What `rl-nfm supervised TASK` takes, as typed, for all runs."""

    def __post_init__(self) -> None:
        import rl_nfm.supervised  # noqa: F401  (the tasks register)

        presets = task_entry(self.task).presets.values()
        if self.models and not all(hasattr(preset, "model") for preset in presets):
            raise ValueError(f"models: not an option of task {self.task!r}, which has one model")
        check_unique("seeds", self.seeds)
        if self.models:
            check_unique("models", self.models)
        for option, values in self.vary.items():
            check_unique(f"vary: {option}", values)
        typed = [word.removeprefix("--").split("=")[0] for word in self.flags]
        for name in _PER_RUN:
            if name in typed or name in self.vary:
                raise ValueError(f"{name}: not an option of a sweep of a supervised task")

    def _methods(self) -> dict[str, tuple[list[str], int]]:
        """Name of each method to its flags, which the task has read, and epochs (or updates).

        An option that is varied and that a model does not read is left out for that model.

        Raises:
            ValueError: an option that none of them reads; what the task says of the first that is
                not allowed.
        """
        entry = task_entry(self.task)
        models = self.models or (vars(entry.parse(self.flags)).get("model", ""),)
        methods = {}
        used_by = {option: entry.used_by.get(option.split(".")[0], models) for option in self.vary}
        for option in self.vary:
            if not set(models) & set(used_by[option]):
                raise ValueError(
                    f"vary: {option}: no model of this sweep reads it ({', '.join(models)})"
                )
        values = [*itertools.product(*self.vary.values())]
        for model, chosen in itertools.product(models, values):
            setting = {
                option: value
                for option, value in zip(self.vary, chosen, strict=True)
                if model in used_by[option]
            }
            options = {**setting, **({"model": model} if model else {})}
            flags = [w for name, text in options.items() for w in (f"--{name}", *_words(text))]
            config = vars(entry.parse([*self.flags, *flags]))
            steps = config.get("epochs", config.get("updates", 1))
            methods[method_name(model or "default", setting)] = (flags, max(1, steps))
        return methods

    def runs(self, out: Path) -> list[PlannedRun]:
        """All runs, those of the first seed first.

        Raises:
            ValueError: an unknown model or option, or a value that is not allowed.
        """
        methods, runs = self._methods(), []
        for seed, (method, (chosen, steps)) in itertools.product(self.seeds, methods.items()):
            folder = out / self.task / method / f"seed-{seed}"
            flags = [*chosen, "--seed", str(seed), "--trials", "1", "--out", str(folder)]
            runs.append(
                PlannedRun(
                    kind="supervised",
                    game=self.task,
                    method=method,
                    seed=seed,
                    folder=folder,
                    begin=("supervised", self.task, *self.flags, *flags),
                    resume=("supervised", self.task, "--resume", str(folder)),
                    steps=steps,
                )
            )
        return runs

    def save(self, out: Path) -> None:
        """Write sweep.yaml; models, seeds and values join those asked for before.

        Raises:
            ValueError: `out` is no sweep and not empty, or one of another task or other flags.
            OSError: it cannot be written.
        """
        before = read_request(out)
        fixed: dict[str, Any] = {"supervised": self.task, "flags": list(self.flags)}
        for name, value in fixed.items():
            if before and before.get(name) != value:
                ours, theirs = (
                    (" ".join(v) or "none") if isinstance(v, list) else v
                    for v in (value, before.get(name))
                )
                raise ValueError(f"{name}: {ours} cannot change within a sweep; {out} has {theirs}")
        asked = {
            name: list(dict.fromkeys([*before.get(name, []), *getattr(self, name)]))
            for name in ("models", "seeds")
        }
        vary = {name: list(values) for name, values in before.get("vary", {}).items()}
        for option, values in self.vary.items():
            vary[option] = list(dict.fromkeys([*vary.get(option, []), *values]))
        with written(out / SWEEP_FILE) as partial:
            content = {**fixed, **asked, "vary": vary}
            partial.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _words(text: str) -> list[str]:
    """A value that is varied as a flag takes it: a list as several words."""
    return text[1:-1].split(",") if text.startswith("[") else [text]
