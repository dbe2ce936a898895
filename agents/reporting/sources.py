"""The runs and score files a user names, read and checked.

Each becomes one `Result` per source: what `rl-nfm evaluate --json` wrote, and the training itself.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.config import Config, make_config
from agents.reporting.methods import (
    at_common_steps,
    check_methods,
    check_protocols,
    check_seeds,
    encoder_of,
    name_methods,
    protocol_of,
    settings_of,
)
from agents.reporting.results import TRAINING_EPISODES, Curve, Result
from agents.reporting.swept import (
    LAST_EVALUATIONS,
    LAST_TENTH,
    SWEEP_FILE,
    SweptRun,
    each_once,
    is_run,
    swept_runs,
)
from agents.saving.checkpoint import list_checkpoints, open_checkpoint, step_of
from agents.saving.resumable import check_resumable
from agents.saving.run_folder import RunFolder
from envs import resolve_game
from rl_nfm.support.metrics_file import MetricsFile
from rl_nfm.support.storage import CheckpointError

SCORES = "scores.json"
"""Name of a score file that is found inside a run."""


def read_results(paths: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """Everything the given runs and score files hold, and notes on what they lack.

    Raises:
        ValueError: a path that is neither, damaged content, different protocols, or one seed twice.
    """
    results: list[Result] = []
    notes: list[str] = []
    seen: set[Path] = set()
    swept = each_once([run for path in paths if not is_run(path) for run in swept_runs(path)])
    results += [result for run in swept for result in _read_swept(run, notes)]
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: does not exist")
        files = [path]
        if path.is_dir():
            if not is_run(path) and (swept_runs(path) or (path / SWEEP_FILE).is_file()):
                notes += [] if swept_runs(path) else [f"{path}: a sweep in which no run has begun"]
                continue
            if path.resolve() not in seen:
                results.append(_read_run(path, notes))
            files = [path / SCORES] if (path / SCORES).is_file() else []
        results += [_read_scores(file) for file in files if file.resolve() not in seen]
        seen |= {path.resolve(), *(file.resolve() for file in files)}
    check_protocols(results)
    check_methods(results)
    results = name_methods(results, notes)
    check_seeds(results)
    return at_common_steps(results, notes), notes


def _read_swept(run: SweptRun, notes: list[str]) -> list[Result]:
    """Both scores of a finished run of a sweep; of an unfinished one the curve alone."""
    result = dataclasses.replace(_read_run(run.path, notes), method=run.method)
    curve, steps = result.curve, RunFolder(run.path).config().steps
    assert curve is not None
    if curve.steps < steps:
        ended = result.steps is not None and result.steps >= steps
        said = f"at step {curve.steps} of {steps}, not in the tables"
        notes.append(f"{run.name}: {f'its metrics end {said}' if ended else f'{said} yet'}")
        return [dataclasses.replace(result, source="last_tenth", returns=[])]
    late = curve.episode_returns[curve.episode_steps > (1 - LAST_TENTH) * steps].tolist()
    scores = [dataclasses.replace(result, source="last_tenth", returns=late)]
    evaluations = curve.eval_returns[-LAST_EVALUATIONS:].tolist()
    if len(evaluations) == LAST_EVALUATIONS:
        last = dataclasses.replace(result, source="last_evaluations", returns=evaluations)
        scores.append(dataclasses.replace(last, curve=None))
    else:
        notes.append(
            f"{run.name}: {len(evaluations)} evaluations, not among those of {LAST_EVALUATIONS}"
        )
    if not late:
        notes.append(f"{run.name}: no episode ended in its last tenth, not in that table")
    return scores


def _read_run(path: Path, notes: list[str]) -> Result:
    folder = RunFolder.open(path)
    config = folder.config()
    curve = _read_curve(folder.metrics, notes)
    saved = list_checkpoints(folder.checkpoints)[-1:]
    for last in saved:
        _check_config(folder, config, last)
    # Runs of early versions did not log their last stretch; their last checkpoint shows the end.
    steps = max([curve.steps, *map(step_of, saved)])
    if curve.updates == 0:
        notes.append(f"{path}: no update was made, so nothing was learned")
    if not len(curve.episode_returns):
        notes.append(f"{path}: no training episode has ended")
    protocol = protocol_of(config)
    if len(curve.eval_steps):
        protocol["eval_epsilon"] = config.run.eval_epsilon
    return Result(
        source="training",
        game=resolve_game(config.game),
        encoder=encoder_of(config),
        seed=config.seed,
        steps=steps,
        returns=curve.episode_returns[-TRAINING_EPISODES:].tolist(),
        protocol=protocol,
        settings=settings_of(config),
        where=str(path),
        curve=curve,
    )


def _check_config(folder: RunFolder, config: Config, last: Path) -> None:
    """Refuse a config.yaml that was changed, or cut short, after the training it stands for."""
    try:
        trained = open_checkpoint(last, tensors=False).config
    except CheckpointError:
        return  # of a report the checkpoint is no part
    try:
        check_resumable(trained, config)
    except ValueError as error:
        field = str(error).partition(":")[0]
        raise ValueError(
            f"{folder.config_path}: {field} is not that of the training (see {last})"
        ) from None


def _read_curve(metrics: MetricsFile, notes: list[str]) -> Curve:
    content = metrics.read()
    lines = content.lines
    if content.damaged:
        notes.append(metrics.describe(content.damaged))
    if content.torn:
        notes.append(f"{metrics.path}: torn after line {len(lines)}, 1 left out")
    if not (lines or content.damaged or content.torn):
        notes.append(f"{metrics.path}: missing or empty")
    steps, returns, eval_steps, eval_returns = [], [], [], []
    for number, line in enumerate(lines, 1):
        new = line.get("episode_returns", [])
        evaluated = line.get("eval_return_mean")
        known = [line["steps"], *([] if evaluated is None else [evaluated])]
        if not isinstance(new, list) or not all(map(_is_number, [*known, *new])):
            raise ValueError(f"{metrics.path}: line {number} holds other than numbers")
        ends = line.get("episode_ends", [])
        known_ends = isinstance(ends, list) and len(ends) == len(new) and all(map(_is_number, ends))
        steps += ends if known_ends else [line["steps"]] * len(new)
        returns += new
        if evaluated is not None:
            eval_steps.append(line["steps"])
            eval_returns.append(evaluated)
    return Curve(
        episode_steps=np.array(steps, np.int64),
        episode_returns=np.array(returns, np.float64),
        eval_steps=np.array(eval_steps, np.int64),
        eval_returns=np.array(eval_returns, np.float64),
        steps=int(lines[-1]["steps"]) if lines else 0,
        updates=lines[-1].get("updates") if lines else None,
    )


def _read_scores(path: Path) -> Result:
    """A file of `rl-nfm evaluate --json`; only the keys of the contract are needed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path}: damaged, or no JSON") from None
    needed = {"game": str, "returns": list, "protocol": dict, "encoder": str}
    for key, kind in needed.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise ValueError(f"{path}: no {key!r} (not written by `rl-nfm evaluate --json`)")
    returns = content["returns"]
    if not returns or not all(map(_is_number, returns)):
        raise ValueError(f"{path}: returns: must be a list of at least one number")
    for key in ("checkpoint_steps", "train_seed"):
        if not isinstance(content.get(key), int | None):
            raise ValueError(f"{path}: {key}: {content[key]!r} is not allowed, must be an integer")
    settings, encoder = {}, content["encoder"]
    if isinstance(content.get("config"), dict):
        config = make_config(content["config"], where=f"{path}: config", saved=True)
        settings, encoder = settings_of(config), encoder_of(config)
    if content.get("random_attention"):
        encoder += " with random attention"
    return Result(
        source="evaluation",
        game=resolve_game(content["game"]),
        encoder=encoder,
        seed=content.get("train_seed"),
        steps=content.get("checkpoint_steps"),
        returns=[float(value) for value in returns],
        protocol=content["protocol"],
        settings=settings,
        where=str(path),
        best=content.get("which") == "best",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
