"""Table 8 of the NFM paper as one command: heads, top-k and sizes of NFM, and the baseline.

Published, CIFAR-100 with PreActResNet34: baseline 80.13 %, the twelve rows 80.26 to 80.77 %; shown
beside runs of that network on that data only. Takes the flags of `classification` (`--resume`
aside); each row is a run of its own below OUT, so that a broken sweep goes on where it stopped when
it is started again with the same flags. With others it is refused: a table never mixes runs.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_nfm.supervised.loop.options import (
    CONFIG_FILE,
    parse_config,
    plain,
    read_config,
    run_folder,
)
from rl_nfm.supervised.loop.presets import Presets
from rl_nfm.supervised.loop.reporting import write_result
from rl_nfm.supervised.loop.run import run_trials
from rl_nfm.supervised.registry import register_task
from rl_nfm.supervised.tasks.classification import ClassificationConfig, ClassificationTask

NAME = "classification_sweep"
TABLE_8 = {
    (2, 3, 8, 16): 80.37,
    (2, 3, 8, 32): 80.47,
    (2, 3, 8, 64): 80.41,
    (2, 4, 8, 16): 80.26,
    (2, 4, 8, 32): 80.77,
    (2, 4, 8, 64): 80.52,
    (4, 3, 16, 16): 80.31,
    (4, 3, 16, 32): 80.26,
    (4, 3, 16, 64): 80.27,
    (4, 3, 32, 32): 80.40,
    (4, 4, 16, 32): 80.55,
    (4, 4, 32, 64): 80.33,
}
"""(heads, top-k, d_k, d_v) to the published accuracy in %."""
BASELINE = 80.13
PRESETS = Presets(NAME, ClassificationConfig)


def rows(config: ClassificationConfig) -> dict[str, tuple[ClassificationConfig, float | None]]:
    """Name to (config, published accuracy in % or None) of the baseline and the twelve rows."""
    baseline = dataclasses.replace(config, model="resnet", nfm=PRESETS[config.preset].nfm)
    is_published = config.data == "cifar100" and config.depth == 34
    named = {"baseline": (baseline, BASELINE if is_published else None)}
    for (heads, top_k, key_size, value_size), accuracy in TABLE_8.items():
        nfm = dataclasses.replace(
            config.nfm, heads=heads, top_k=top_k, key_size=key_size, value_size=value_size
        )
        name = f"heads{heads}_top{top_k}_key{key_size}_value{value_size}"
        row = dataclasses.replace(config, model="nfm", nfm=nfm)
        named[name] = (row, accuracy if is_published else None)
    return named


@register_task(NAME, "table 8: NFM's heads, top-k and sizes on one data set, with the baseline")
def main(argv: Sequence[str]) -> int:
    """Run all rows and write one table."""
    config = parse_config(argv, task=NAME, presets=PRESETS, description=__doc__ or "")
    if config.resume is not None:
        raise ValueError("resume: start the sweep again with the same --out instead")
    if config.model != "nfm":
        raise ValueError(f"model: the sweep trains both, {config.model!r} alone is classification")
    out = config.out or run_folder(config, task=NAME)
    table, planned = [], rows(config)
    for name, (row, _) in planned.items():
        _check_kept(out / name, row)
    for name, (row, published) in planned.items():
        result = _run(out / name, row)
        accuracy = result["mean"]["accuracy"]
        table.append(
            {"name": name, "published": published, "mean": result["mean"]}
            | {"deviation": result["deviation"], "parameters": result["trials"][0]["parameters"]}
            | {"config": _options(row)}
        )
        beside = "" if published is None else f"  (published: {published:.2f} %)"
        print(f"{name:32}  {100 * accuracy:6.2f} %{beside}")
    paths = [out / "table.json", *([config.json] if config.json else [])]
    write_result({"task": NAME, "rows": table}, *paths)
    return 0


def _check_kept(folder: Path, config: ClassificationConfig) -> None:
    """That what is already in the folder of a row was begun with the same options.

    Raises:
        ValueError: it was not.
    """
    if not (folder / CONFIG_FILE).is_file():
        return
    old = _options(read_config(folder, ClassificationConfig, task="classification"))
    for name, value in _options(config).items():
        if old[name] != value:
            raise ValueError(
                f"{name}: {value!r} is not allowed, {folder} was run with {old[name]!r} "
                f"(choose another --out)"
            )


def _options(config: ClassificationConfig) -> dict[str, Any]:
    """What decides a row's result: all options but files and the device, as JSON values."""
    return {k: v for k, v in plain(config).items() if k not in ("json", "out", "resume", "device")}


def _run(folder: Path, config: ClassificationConfig) -> dict[str, Any]:
    """The result of one row: read where the row is finished, else trained or continued."""
    done = folder / "result.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    started = (folder / CONFIG_FILE).is_file()
    config = dataclasses.replace(
        config, json=None, out=None if started else folder, resume=folder if started else None
    )
    return run_trials("classification", ClassificationTask, config)
