"""Which results may be averaged or compared: same protocol, same method, same number of steps.

Results of different protocols, or of the same seed twice, are refused: scores may only be put
together where they measure the same thing independently.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from agents.config import Config, chosen_encoders, to_plain
from agents.reporting.results import TRAINING_EPISODES, Result
from agents.saving.resumable import RESUMABLE
from envs import ATARI_FIELDS, GymProtocol, protocol_fields

_GYM_FIELDS = [f.name for f in dataclasses.fields(GymProtocol) if f.name != "name"]
OBSERVATION = ("maxpool", "stack_num", "img_height", "img_width")
"""Fields of the protocol that say what the agent sees. Runs that differ in them are different
methods, but their scores mean the same and can be compared."""
_VERSIONS = {"ale_py", "packages"}
_NO_PROTOCOL = {"name", "env_id", "seed", "num_envs", "vectorization", *_VERSIONS, *OBSERVATION}
"""Fields of the protocol block in which scores that are put together may differ."""
_NO_METHOD = {"game", "seed", *RESUMABLE} - {"steps"}
"""Settings in which runs of one method may differ. The protocol's are checked separately."""
_ENV_PROTOCOL = {"protocol", *ATARI_FIELDS, *_GYM_FIELDS}
_MAX_SETTINGS_IN_NAME = 3


def encoder_of(config: Config) -> str:
    """`nature`, or `lstm on nfm` for an encoder that is built on another one."""
    return " on ".join(chosen_encoders(config))


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that tell methods apart: dotted names to values."""
    flat: dict[str, Any] = {}

    def add(group: Mapping[str, Any], prefix: str) -> None:
        for key, value in group.items():
            name = prefix + key
            if name in _NO_METHOD or (prefix == "env." and key in _ENV_PROTOCOL):
                continue
            if isinstance(value, Mapping):
                add(value, f"{name}.")
            else:
                flat[name] = value

    add(to_plain(config), "")
    protocol = protocol_of(config)
    observation = {f"env.{field}": protocol[field] for field in OBSERVATION if field in protocol}
    return flat | observation


def protocol_of(config: Config) -> dict[str, Any]:
    """The environment's settings with every default filled in."""
    return protocol_fields(config.protocol)


def protocol_line(results: Sequence[Result]) -> str:
    """The protocol that results share, in words; `check_protocols` has accepted them."""
    names = dict.fromkeys(str(r.protocol.get("name")) for r in results)
    shared = next((r.protocol for r in results if r.source == "training"), results[0].protocol)
    if "kwargs" in shared:
        return _gym_protocol_line(results)
    lives = "end the return" if shared.get("terminal_on_life_loss") else "do not end the return"
    parts = [
        f"protocol {' / '.join(names)}: sticky actions {shared.get('repeat_action_probability')}",
        f"{'all 18 actions' if shared.get('full_action_space') else 'minimal actions'}",
        f"lost lives {lives}",
        f"up to {shared['noop_max']} no-ops" if shared.get("noop_max") else "no no-ops",
        f"{shared.get('frameskip')} frames a step",
        f"cap {shared.get('max_num_frames_per_episode', 0):,} frames",
    ]
    return ", ".join(parts)


def _gym_protocol_line(results: Sequence[Result]) -> str:
    """For Gymnasium environments: each id, and how it differs from the registered one."""
    parts = {}
    for result in results:
        differing = [f"{k} {v}" for k in _GYM_FIELDS[:3] if (v := result.protocol.get(k))]
        parts[result.game] = f"{result.game} {', '.join(differing) or 'as registered'}"
    packages = dict.fromkeys(str(v) for r in results if (v := r.protocol.get("packages")))
    return "; ".join(["protocol gymnasium", *parts.values(), *packages])


def check_protocols(results: Sequence[Result]) -> None:
    """Refuse to put scores of different protocols together.

    Only fields that change the meaning of a score are compared: sticky actions, action set, life
    loss, no-ops, frame skip, cap and how episodes are counted. What the agent sees (`OBSERVATION`)
    is a property of the method. Training and evaluation must agree in the environment; evaluations,
    those during training too, must also agree in how actions are chosen, except for random play.

    Raises:
        ValueError: naming the field, both values and where they come from.
    """
    first: dict[tuple[str, str], tuple[Any, str]] = {}
    for result in results:
        fields = {*ATARI_FIELDS, *result.protocol} - _NO_PROTOCOL
        if result.steps is None:
            fields &= {*ATARI_FIELDS, *_GYM_FIELDS, "episodes_counted"}
        for field in sorted(fields):
            value = result.protocol.get(field, "unknown")
            # Each Gymnasium environment has arguments, wrappers and a length of its own.
            game = result.game if field in _GYM_FIELDS else ""
            first_value, where = first.setdefault((field, game), (value, result.where))
            if first_value != value:
                raise ValueError(
                    f"{field}: {value!r} in {result.where}, but {first_value!r} in {where}\n"
                    "scores of different protocols are never put together; report them apart"
                )


def check_methods(results: Sequence[Result]) -> None:
    """Refuse runs of several sweeps under one method's name whose settings differ.

    Raises:
        ValueError: naming the first setting, both values and where they come from.
    """
    first: dict[tuple[str, str], Result] = {}
    for result in results:
        if not result.method:
            continue
        before = first.setdefault((result.game, result.method), result)
        for name in dict.fromkeys([*before.settings, *result.settings]):
            old, new = before.settings.get(name), result.settings.get(name)
            if name != "steps" and old != new:
                raise ValueError(
                    f"{name}: {new!r} in {result.where}, but {old!r} in {before.where}, both "
                    f"{result.method}; report the sweeps apart"
                )


def name_methods(results: Sequence[Result], notes: list[str]) -> list[Result]:
    """Name each result by its encoder and, where runs of that encoder differ, by its settings.

    Runs of a sweep already have names, which say what the sweep varied.

    Args:
        results: of all sources.
        notes: a line is added for each method whose differences do not fit into a name.
    """
    named = {id(result): result.encoder for result in results}
    unnamed = [result for result in results if not result.method]
    for encoder in dict.fromkeys(result.encoder for result in unnamed):
        group = [r for r in unnamed if r.encoder == encoder and r.settings]
        keys = dict.fromkeys(key for result in group for key in result.settings)
        first = group[0].settings if group else {}
        varying = [k for k in keys if any(r.settings.get(k) != first.get(k) for r in group)]
        variants: list[str] = []
        for result in group if varying else ():
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


def check_seeds(results: Sequence[Result]) -> None:
    """Refuse a seed that counts twice.

    Raises:
        ValueError: naming both runs.
    """
    runs: dict[tuple[str, str, str, int], str] = {}
    for result in results:
        if result.seed is not None:
            key = (result.source, result.method, result.game, result.seed)
            if key in runs:
                raise ValueError(
                    f"seed: {result.seed} twice for {result.method} on {result.game} "
                    f"({result.source}): {runs[key]} and {result.where}; must be different ones"
                )
            runs[key] = result.where


def at_common_steps(results: Sequence[Result], notes: list[str]) -> list[Result]:
    """The runs of a method on a game where all of them are: at the same number of steps.

    A run that stopped early is left out where other runs of the group have finished, and so is one
    of a sweep that was planned shorter than the others. Where none has finished, all are scored at
    the last step that all of them have reached. Every run that is left out, cut or not finished is
    named in `notes`. Best checkpoints are kept whatever their steps are. Unfinished runs of a sweep
    have been named before and are in no table; their curves are drawn where the whole group is
    unfinished.
    """
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.source, result.method, result.game), []).append(result)
    kept_ids = {id(r) for r in results if r.best}
    cut: dict[int, Result] = {}
    for group in groups.values():
        if group[0].source in ("last_tenth", "last_evaluations"):
            group = [r for r in group if r.finished] or group
            most = max((r.steps or 0) for r in group)
            kept_ids |= {id(r) for r in group if not r.finished or r.steps == most}
            notes += [_lag(r, most) for r in group if id(r) not in kept_ids]
            continue
        most = max((r.steps or 0) for r in group)
        if any(r.finished for r in group) or group[0].source == "evaluation":
            comparable = [r for r in group if (r.steps or 0) == most]
        else:
            comparable = group
            least = min((r.steps or 0) for r in group)
            cut |= {id(r): _until(r, least, notes) for r in group if r.steps != least}
        kept_ids |= {id(r) for r in comparable}
        notes += [_lag(r, most) for r in group if id(r) not in kept_ids]
        notes += [_lag(r, None) for r in comparable if not r.finished]
    return [cut.get(id(r), r) for r in results if id(r) in kept_ids]


def _lag(result: Result, others: int | None) -> str:
    """The note on a run that stopped early."""
    of = "" if result.planned_steps is None else f" of {result.planned_steps}"
    subject = f"{result.where}: {result.source} of {result.method} on {result.game}"
    if others is None:
        return f"{subject} is not finished: at {result.steps}{of} steps"
    return f"{subject} left out: at {result.steps}{of} steps, where others are at {others}"


def _until(result: Result, steps: int, notes: list[str]) -> Result:
    """A training run as it was at an earlier step."""
    assert result.curve is not None
    returns = result.curve.episode_returns[result.curve.episode_steps <= steps]
    notes.append(f"{result.where}: scored at {steps} steps, which all runs of its kind reached")
    return dataclasses.replace(result, steps=steps, returns=returns[-TRAINING_EPISODES:].tolist())
