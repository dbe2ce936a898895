"""What a report is made of: the runs and score files a user names, read and checked.

Each becomes one `Result` per source: what `rl-nfm evaluate --json` wrote, and the training itself.
Results of different protocols, or of the same seed twice, are refused: scores may only be put
together where they measure the same thing independently.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from agents.config import RESUMABLE, Config, chosen_encoders, make_config, to_plain
from agents.reporting.swept import (
    LAST_EVALUATIONS,
    LAST_TENTH,
    SweptRun,
    each_once,
    is_run,
    swept_runs,
)
from agents.saving.run_folder import RunFolder
from envs import Protocol, human_normalized_score, resolve_game
from envs.games import MEMORY_CUE
from envs.memory import MEMORY_PROTOCOL
from rl_nfm.support.metrics_file import MetricsFile

SCORES = "scores.json"
"""Name of a score file that is found inside a run."""
TRAINING_EPISODES = 100
"""Of training, the last so many episodes count (Machado et al. 2018)."""
Source = Literal["evaluation", "training", "last_tenth", "last_evaluations"]

_PROTOCOL_FIELDS = [f.name for f in dataclasses.fields(Protocol) if f.name != "name"]
OBSERVATION = ("maxpool", "stack_num", "img_height", "img_width")
"""Fields of the protocol that say what the agent sees. They make another method, but the score of
an episode means the same whoever played it."""
_NO_PROTOCOL = {"name", "env_id", "seed", "num_envs", "ale_py", *OBSERVATION}
"""In the protocol block, but no reason to keep scores apart."""
_NO_METHOD = {"game", "seed", *RESUMABLE, "learner.cuda_graph"} - {"steps"}
"""Settings that do not make another method of a run; the protocol's are checked apart."""
_MAX_SETTINGS_IN_NAME = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """A training run over its agent steps."""

    episode_steps: NDArray[np.int64]
    """Steps of the log line that tells of each training episode, not decreasing."""
    episode_returns: NDArray[np.float64]
    """Return of each."""
    eval_steps: NDArray[np.int64]
    """Steps of each evaluation in training."""
    eval_returns: NDArray[np.float64]
    """Mean return of each."""
    steps: int
    """Where the log ends."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Episodes that one run was scored by."""

    source: Source
    game: str
    encoder: str
    seed: int | None
    """Of training; None where unknown or nothing was trained."""
    steps: int | None
    """Agent steps of training."""
    returns: list[float]
    """Per episode; may be empty for a training run that finished none."""
    protocol: Mapping[str, Any]
    settings: Mapping[str, Any]
    """Of the method, dotted names to values; empty where unknown."""
    where: str
    """Path, for messages."""
    best: bool = False
    """Whether the checkpoint of the best evaluation was scored, not the last one."""
    curve: Curve | None = None
    method: str = ""
    """Name in the report; see `name_methods`."""

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def hns(self) -> float | None:
        """Human-normalised mean return; None where no human score is published."""
        return human_normalized_score(self.game, self.mean)

    @property
    def has_curve(self) -> bool:
        """Whether there is something to draw."""
        return self.curve is not None and len(self.curve.episode_returns) > 0


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
            if not is_run(path) and swept_runs(path):
                continue
            if path.resolve() not in seen:
                results.append(_read_run(path, notes))
            files = [path / SCORES] if (path / SCORES).is_file() else []
        results += [_read_scores(file) for file in files if file.resolve() not in seen]
        seen |= {path.resolve(), *(file.resolve() for file in files)}
    check_protocols(results)
    results = name_methods(results, notes)
    _check_seeds(results)
    return results, notes


def _read_swept(run: SweptRun, notes: list[str]) -> list[Result]:
    """Both scores of a finished run of a sweep; of an unfinished one the curve alone."""
    result = dataclasses.replace(_read_run(run.path, notes), method=run.method)
    curve, steps = result.curve, RunFolder(run.path).config().steps
    assert curve is not None
    if curve.steps < steps:
        notes.append(f"{run.name}: at step {curve.steps} of {steps}, not in the tables yet")
        return [dataclasses.replace(result, source="last_tenth", returns=[])]
    late = curve.episode_returns[curve.episode_steps > (1 - LAST_TENTH) * steps].tolist()
    scores = [dataclasses.replace(result, source="last_tenth", returns=late)]
    evaluations = curve.eval_returns[-LAST_EVALUATIONS:].tolist()
    if len(evaluations) == LAST_EVALUATIONS:
        last = dataclasses.replace(result, source="last_evaluations", returns=evaluations)
        scores.append(dataclasses.replace(last, curve=None))
    return scores


def _read_run(path: Path, notes: list[str]) -> Result:
    folder = RunFolder.open(path)
    config = folder.config()
    curve = _read_curve(folder.metrics, notes)
    if not len(curve.episode_returns):
        notes.append(f"{path}: no training episode has ended")
    protocol = _protocol(config)
    if len(curve.eval_steps):
        protocol["eval_epsilon"] = config.run.eval_epsilon
    return Result(
        source="training",
        game=resolve_game(config.game),
        encoder=_encoder(config),
        seed=config.seed,
        steps=curve.steps,
        returns=curve.episode_returns[-TRAINING_EPISODES:].tolist(),
        protocol=protocol,
        settings=_settings(config),
        where=str(path),
        curve=curve,
    )


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
        steps += [line["steps"]] * len(new)
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
        config = make_config(content["config"], where=f"{path}: config")
        settings, encoder = _settings(config), _encoder(config)
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


def _encoder(config: Config) -> str:
    """`nature`, or `lstm on nfm` of one that is built on another."""
    return " on ".join(chosen_encoders(config))


def _settings(config: Config) -> dict[str, Any]:
    """What makes the method: dotted names to values."""
    flat: dict[str, Any] = {}

    def add(group: Mapping[str, Any], prefix: str) -> None:
        for key, value in group.items():
            name = prefix + key
            if name in _NO_METHOD or (prefix == "env." and key in (*_PROTOCOL_FIELDS, "protocol")):
                continue
            if isinstance(value, Mapping):
                add(value, f"{name}.")
            else:
                flat[name] = value

    add(to_plain(config), "")
    seen = _protocol(config)
    return flat | {f"env.{field}": seen[field] for field in OBSERVATION}


def _protocol(config: Config) -> dict[str, Any]:
    """The environment's settings with every default filled in."""
    memory = resolve_game(config.game) == MEMORY_CUE
    return dataclasses.asdict(MEMORY_PROTOCOL if memory else config.env.resolve())


def check_protocols(results: Sequence[Result]) -> None:
    """Refuse to put scores of different protocols together.

    Only what changes the meaning of a score counts: sticky actions, action set, life loss, no-ops,
    frame skip, cap and how episodes are counted. What the agent sees (`OBSERVATION`) is a property
    of the method. Training and evaluation share the environment, evaluations (and those in
    training) also how actions are chosen, which random play has no part in.

    Raises:
        ValueError: naming the field, both values and where they come from.
    """
    first: dict[str, tuple[Any, str]] = {}
    for result in results:
        fields = {*_PROTOCOL_FIELDS, *result.protocol} - _NO_PROTOCOL
        if result.steps is None:
            fields &= {*_PROTOCOL_FIELDS, "episodes_counted"}
        for field in sorted(fields):
            value = result.protocol.get(field, "unknown")
            known, where = first.setdefault(field, (value, result.where))
            if known != value:
                raise ValueError(
                    f"{field}: {value!r} in {result.where}, but {known!r} in {where}\n"
                    "scores of different protocols are never put together; report them apart"
                )


def name_methods(results: Sequence[Result], notes: list[str]) -> list[Result]:
    """Name each result by its encoder and, where runs of that encoder differ, by its settings.

    Runs of a sweep have their names: what the sweep calls an encoder and what it varied.

    Args:
        results: of all sources.
        notes: gets one for each method whose differences do not fit into a name.
    """
    named = {id(result): result.encoder for result in results}
    unnamed = [result for result in results if not result.method]
    for encoder in dict.fromkeys(result.encoder for result in unnamed):
        told = [r for r in unnamed if r.encoder == encoder and r.settings]
        keys = dict.fromkeys(key for result in told for key in result.settings)
        varying = [
            k for k in keys if any(r.settings.get(k) != told[0].settings.get(k) for r in told)
        ]
        variants: list[str] = []
        for result in told if varying else ():
            text = ", ".join(f"{key}={result.settings.get(key)}" for key in varying)
            short = len(varying) <= _MAX_SETTINGS_IN_NAME
            if text not in variants:
                variants.append(text)
                if not short:
                    notes.append(f"{encoder} #{len(variants)}: {text}")
            number = variants.index(text) + 1
            named[id(result)] = f"{encoder} ({text})" if short else f"{encoder} #{number}"
    best = " of the best checkpoint"
    return [
        dataclasses.replace(result, method=named[id(result)] + (best if result.best else ""))
        if not result.method
        else result
        for result in results
    ]


def _check_seeds(results: Sequence[Result]) -> None:
    seen: dict[tuple[str, str, str, int], str] = {}
    for result in results:
        if result.seed is not None:
            key = (result.source, result.method, result.game, result.seed)
            if key in seen:
                raise ValueError(
                    f"seed: {result.seed} twice for {result.method} on {result.game} "
                    f"({result.source}): {seen[key]} and {result.where}; must be different ones"
                )
            seen[key] = result.where
