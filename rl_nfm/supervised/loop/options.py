"""The options every supervised run has, and how flags, presets and a resumed run become one config.

A task's config is a frozen dataclass derived from `RunConfig`; its presets are instances of it
(see `presets`). `--preset` chooses the instance that the flags then change, and whose values
`--help` shows. `--nfm.preset` does the same for the options of NFM, if a task has them.
"""

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt

from rl_nfm.supervised.loop.reporting import value_text
from rl_nfm.supervised.models import GROUPS, Models
from rl_nfm.support.bounds import Bounded
from rl_nfm.support.configuration import nearest, plain_values, validate
from rl_nfm.support.flags import parse_flags
from rl_nfm.support.former import with_current_names
from rl_nfm.support.output_files import made_folder, written

CONFIG_FILE = "config.json"
FREE_ON_RESUME = frozenset(
    {"json", "resume", "device", "epochs", "updates", "trials", "patience_epochs", "data_folder"}
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Bounded):
    """Options of every supervised run."""

    preset: str = "small"
    """One of the presets listed above (small: offline, minutes on two CPU cores; paper: the
    published setting), or the path of a YAML file of options."""
    json: Path | None = None
    """Write the result here too; it always lands in OUT/result.json."""
    out: Path | None = None
    """Folder of the run (default: runs/supervised/TASK-MODEL-TIME)."""
    resume: Path | None = None
    """Continue the run in this folder; only epochs, patience_epochs, updates, trials, device, json
    and where the same data lie (data_folder) may differ."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of the first trial; the next trials use the next seeds."""
    trials: Annotated[int, Gt(0)] = 1
    """Runs with different seeds; mean and standard deviation are reported."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one."""


ConfigT = TypeVar("ConfigT", bound=RunConfig)


def parse_config(
    argv: Sequence[str],
    *,
    task: str,
    presets: Mapping[str, ConfigT],
    description: str = "",
    models: Models | None = None,
) -> ConfigT:
    """The config of a run from its flags.

    Args:
        argv: flags after the task's name.
        task: its name, for `--help`.
        presets: configs by name; each config's field `preset` must be that name.
        description: first paragraph of `--help`.
        models: what the option `model` chooses from, where it is a name in this table.

    Raises:
        ValueError: unknown flag, preset or model, bad value, an option that the model does not
            read, or a change that `--resume` does not allow.
        SystemExit: 0 after `--help`.
    """
    if any(word.split("=")[0] in ("--seeds", "--models") for word in argv):
        raise ValueError(
            "seeds and models: a run has one model, and seeds from --seed on by --trials; "
            f"rl-nfm sweep supervised:{task} --models ... --seeds ... compares several"
        )
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default=next(iter(presets)))
    early.add_argument("--resume", type=Path)
    early.add_argument("--nfm.preset", dest="nfm_preset")
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            first, _ = early.parse_known_args([a for a in argv if a not in ("-h", "--help")])
    except SystemExit:  # argparse has no other way to say that a value is missing
        raise ValueError("--preset, --nfm.preset and --resume need a value") from None
    if first.preset not in presets:
        unknown = nearest("preset", first.preset, list(presets))
        raise ValueError(f"{unknown}, or the path of a YAML file")
    default = presets[first.preset]
    cls = type(default)
    if first.resume is not None:
        default = read_config(first.resume, cls, task=task, models=models)
    elif first.nfm_preset is not None and hasattr(default, "nfm"):
        default = with_nfm_preset(default, first.nfm_preset)
    if models is not None:
        description = f"{description.rstrip()}\n\n{models.describe()}"
    description = f"{description.rstrip()}\n\npresets: {', '.join(presets)}"
    config = parse_flags(
        cls, argv, default=default, prog=f"rl-nfm supervised {task}", description=description
    )
    if models is not None:
        _ = models[vars(config)["model"]]  # an unknown name is an error
        if first.resume is None:
            refuse_unused(config, presets, models.used_by)
    if first.resume is not None:
        free = sorted(FREE_ON_RESUME & {field.name for field in dataclasses.fields(cls)})
        _check_resumable(default, config, free)
    return config


def with_nfm_preset(config: ConfigT, preset: str) -> ConfigT:
    """The config of a task that uses NFM, with the options of another NFM preset.

    Raises:
        ValueError: unknown preset.
    """
    return dataclasses.replace(config, **{"nfm": vars(config)["nfm"].with_preset(preset)})


def read_saved(run: Path, *, option: str) -> tuple[Any, Any]:
    """The task and the options in a run's folder, as they were written.

    Args:
        run: the folder.
        option: to name in errors.

    Raises:
        ValueError: it holds no supervised run, or a damaged one.
    """
    path = run / CONFIG_FILE
    if not path.is_file():
        agent = (run / "config.yaml").is_file()
        hint = "; rl-nfm evaluate takes agents" if agent else f" (no {CONFIG_FILE})"
        raise ValueError(f"{option}: {run} holds no supervised run{hint}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["task"], content["config"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{option}: {path} is damaged, or of no supervised run") from None


def read_config(
    run: Path, cls: type[ConfigT], *, task: str, models: Models | None = None
) -> ConfigT:
    """The config that a run was started with, perhaps by an earlier version.

    Raises:
        ValueError: the folder holds no run of this task, or one of a model that is not registered.
    """
    found, values = read_saved(run, option="resume")
    if found != task:
        raise ValueError(f"resume: {run} holds a run of task {found!r}, not {task!r}")
    if models is not None:
        models.check_saved(values.get("model"), where=str(run / CONFIG_FILE))
    return validate(cls, with_current_names(cls, values), where=str(run / CONFIG_FILE))


def write_config(run: Path, config: RunConfig, *, task: str) -> None:
    """Write `config` as plain JSON into a run folder, which claims the folder for this run.

    Raises:
        ValueError: another run has claimed it, or it cannot be made or written.
    """
    values = plain(dataclasses.replace(config, resume=None))
    content = json.dumps({"task": task, "config": values}, indent=1)
    path = run / CONFIG_FILE
    with made_folder("out", run):
        pass
    try:
        if not config.resume:
            path.touch(exist_ok=False)
        try:
            with written(path) as partial:
                partial.write_text(content + "\n", encoding="utf-8")
        except OSError:
            if not config.resume:
                path.unlink()  # it claims the folder for a run that there is not
            raise
    except FileExistsError:
        raise _taken(run) from None
    except OSError as error:
        raise ValueError(f"out: {path} cannot be written ({error.strerror})") from None


def _taken(run: Path) -> ValueError:
    return ValueError(f"out: {run} already holds a run; continue it with --resume {run}")


def run_folder(config: RunConfig, *, task: str) -> Path:
    """The folder of a run: the resumed one, `out`, or a new one below `result_path`.

    Raises:
        ValueError: `out` already holds a run.
    """
    if config.resume is not None:
        return config.resume
    if config.out is None:
        words = [task, vars(config).get("model"), time.strftime("%Y%m%d-%H%M%S")]
        name = "-".join(word for word in words if word)
        names = (f"{name}-{n}" if n else name for n in itertools.count())
        base = vars(config).get("result_path", Path("runs/supervised"))
        return next(base / name for name in names if not (base / name).exists())
    if (config.out / CONFIG_FILE).exists():
        raise _taken(config.out)
    return config.out


def plain(config: Any) -> dict[str, Any]:
    """A config dataclass as JSON values, without the options that other models have brought.

    So a run can be read where those models are not installed.
    """
    values = plain_values(config)
    for group in getattr(config, GROUPS, ()):
        if group != values["model"]:
            del values[group]
    return values


def refuse_unused(
    config: ConfigT, presets: Mapping[str, ConfigT], used_by: Mapping[str, Sequence[str]]
) -> None:
    """Refuse options that the chosen model does not read.

    Args:
        config: has a field `model`.
        presets: as in `parse_config`.
        used_by: for an option, the models that read it.

    Raises:
        ValueError: such an option differs from its preset.
    """
    preset, model = presets[config.preset], vars(config)["model"]
    for name, models in used_by.items():
        if model not in models and getattr(config, name) != getattr(preset, name):
            raise ValueError(
                f"{name}: has no effect on model {model!r} (read by: {', '.join(models)})"
            )


def _check_resumable(old: Any, new: Any, free: Sequence[str], within: str = "") -> None:
    """Refuse a change of any option but the free ones."""
    for field in dataclasses.fields(new):
        name, before, now = (
            f"{within}{field.name}",
            getattr(old, field.name),
            getattr(new, field.name),
        )
        if name in free or before == now:
            continue
        if dataclasses.is_dataclass(now):
            _check_resumable(before, now, free, f"{name}.")
        raise ValueError(
            f"{name}: {value_text(now)} differs from the resumed run's {value_text(before)} "
            f"(free to change: {', '.join(free)})"
        )
