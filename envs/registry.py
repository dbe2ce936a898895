"""Environments of a game by its name: the prefix of the name says which maker builds them.

`gym:MinAtar/Breakout-v1` is made by whoever registered `gym`; `memory_cue` is a maker of one game;
a name that begins with no registered key is an Atari game. A package outside this project registers
its own by calling `register_env` at import and naming the module in its entry points, group
`rl_nfm.envs`.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from envs.checks import did_you_mean
from envs.spec import EnvProtocol, StepSpec
from envs.vector import GameVecEnv

_LOG = logging.getLogger(__name__)

DEFAULT = "atari"
"""Makes the games whose names begin with no registered key."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvEntry:
    """One registered maker."""

    key: str
    """What names begin with: `KEY:REST`, or `KEY` alone."""
    make: Callable[..., GameVecEnv]
    """`make(game, *, num_envs, batch_size, num_threads, protocol, seed, render_mode, **fields)`,
    see `make_env`. `protocol` may be a protocol of another maker, which says nothing then."""
    protocol: Callable[[Mapping[str, Any]], EnvProtocol]
    """The protocol that a run's options mean (`env.*` of its config, by name): all of them may be
    given, those left alone with their defaults. Raises ValueError for one that is not allowed."""
    canonical: Callable[[str], str]
    """The one name of a game under all that it may be called. Raises ValueError for a name that is
    known to be wrong before an environment is made."""
    scores: Callable[[str], tuple[float, float] | None]
    """Mean returns of a random agent and of a human in a game, by its canonical name."""

    @property
    def summary(self) -> str:
        """One line that describes the maker."""
        return (self.make.__doc__ or self.key).strip().splitlines()[0]


_REGISTRY: dict[str, EnvEntry] = {}
_plugins_loaded = False


def register_env(
    key: str,
    *,
    protocol: Callable[[Mapping[str, Any]], EnvProtocol],
    canonical: Callable[[str], str] = str,
    scores: Callable[[str], tuple[float, float] | None] = lambda _: None,
) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: register a maker of environments; see `EnvEntry` for what the parts do.

    Raises:
        ValueError: if the key is taken, by another maker or an Atari game, or no identifier.
    """
    if not key.isidentifier():
        raise ValueError(f"environment key {key!r} must be a Python identifier")
    if key in _REGISTRY:
        raise ValueError(f"environment key {key!r} is already registered")
    if DEFAULT in _REGISTRY and _is_canonical(key):
        raise ValueError(f"environment key {key!r} is not allowed: an Atari game is called so")

    def register(make: Callable[..., GameVecEnv]) -> Callable[..., GameVecEnv]:
        _REGISTRY[key] = EnvEntry(
            key=key, make=make, protocol=protocol, canonical=canonical, scores=scores
        )
        return make

    return register


def _is_canonical(game: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(_REGISTRY[DEFAULT].canonical(game))
    return False


def _load_plugins() -> None:
    """Import the modules of other packages that register makers; a broken one is left out."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    for point in entry_points(group="rl_nfm.envs"):
        known = dict(_REGISTRY)
        try:
            point.load()
        except (Exception, SystemExit) as error:  # whatever foreign code may raise
            _REGISTRY.clear()
            _REGISTRY.update(known)
            reason = (str(error).splitlines() or [""])[0]
            _LOG.warning(
                "rl-nfm: the environment plug-in %s (%s) is left out: %s: %s",
                *(point.name, point.value, type(error).__name__, reason),
            )


def env_keys() -> list[str]:
    """All registered keys, in the order of registration."""
    _load_plugins()
    return list(_REGISTRY)


def env_entry(game: str) -> EnvEntry:
    """The maker of a game.

    Raises:
        ValueError: no name, or a prefix that is not registered, with the nearest one.
    """
    if not isinstance(game, str):
        raise ValueError(f"game: must be a name, got {game!r}")
    keys = env_keys()
    prefix, colon, _ = game.partition(":")
    if prefix in keys:
        return _REGISTRY[prefix]
    compact = game.lower().replace("_", "")
    alone = next((key for key in keys if key.replace("_", "") == compact), None)
    if alone is not None:
        return _REGISTRY[alone]
    if colon:
        hint = did_you_mean(prefix, keys)
        raise ValueError(
            f"game: {game!r}: prefix {prefix!r} is not registered{hint} (known: {', '.join(keys)})"
        )
    return _REGISTRY[DEFAULT]


def _known_entry(game: str) -> EnvEntry:
    """The maker of a game, whose name its maker knows.

    Raises:
        ValueError: see `env_entry`; or no Atari game, naming what else is registered.
    """
    entry = env_entry(game)
    try:
        entry.canonical(game)
    except ValueError as error:
        if entry.key != DEFAULT:
            raise
        others = [key for key in env_keys() if key != DEFAULT]
        raise ValueError(
            f"{error}; other environments: {', '.join(others)}{did_you_mean(game, others)} (one of "
            "another package needs that package installed)"
        ) from None
    return entry


def resolve_game(game: str) -> str:
    """The canonical name of a game: `ms_pacman` for MsPacman, ALE/MsPacman-v5, ...

    Raises:
        ValueError: unknown, with the nearest name. Whether a `gym:` id is registered shows only
            when its environments are made.
    """
    return _known_entry(game).canonical(game)


def env_protocol(game: str, options: Mapping[str, Any]) -> EnvProtocol:
    """The settings under which a game is played.

    Args:
        game: its name.
        options: of a run, by name; see `EnvEntry.protocol`.

    Raises:
        ValueError: an option that is unknown, out of range, or means nothing in this game.
    """
    entry = env_entry(game)
    with _foreign_errors(entry):
        protocol = entry.protocol(options)
    if not isinstance(protocol, EnvProtocol):
        raise ValueError(
            f"environment {entry.key!r}: its protocol is {type(protocol).__name__}, must have what "
            "envs.EnvProtocol has (name, stack_num, terminal_on_life_loss, render_fps)"
        )
    return protocol


def step_spec(game: str, protocol: EnvProtocol) -> StepSpec:
    """The contents of a step of a game; except for Atari, one environment is made to find out.

    Raises:
        ValueError: it cannot be made.
    """
    if env_entry(game).key == DEFAULT:
        settings: Any = protocol
        return StepSpec(
            height=settings.img_height,
            width=settings.img_width,
            stack_num=settings.stack_num,
            reward="integer",
            has_lives=True,
        )
    with contextlib.closing(make_env(game, num_envs=1, protocol=protocol)) as env:
        return env.step_spec


def random_and_human_score(game: str) -> tuple[float, float] | None:
    """Mean returns of a random agent and of a human tester; None where none are published."""
    entry = env_entry(game)
    return entry.scores(entry.canonical(game))


def human_normalized_score(game: str, score: float) -> float | None:
    """Linear in the return: 0 for a random agent, 1 for the human; None where none is published."""
    scores = random_and_human_score(game)
    if scores is None:
        return None
    random, human = scores
    return (score - random) / (human - random)


def make_env(
    game: str,
    *,
    num_envs: int = 8,
    batch_size: int = 0,
    num_threads: int = 0,
    protocol: Any = "dopamine",
    seed: int | None = None,
    render_mode: str | None = None,
    **protocol_fields: Any,
) -> GameVecEnv:
    """Environments of a game by name.

    Args:
        game: an Atari game, `gym:ID`, `memory_cue`, or what an outside package has registered.
        num_envs: see `make_atari`, as for all that follow.
        batch_size: rows per `recv`; `gym:` environments come in whole batches.
        num_threads: C++ threads of an Atari game; says nothing elsewhere.
        protocol: of an Atari game, a name or an `AtariProtocol`; of a `gym:` environment a
            `GymProtocol`.
            One of another maker says nothing.
        seed: for the first `reset`.
        render_mode: None, or "rgb_array" for `render()`.
        protocol_fields: fields of the protocol that differ.

    Raises:
        ValueError: anything unknown or out of range, naming what is allowed.
    """
    entry = _known_entry(game)
    with _foreign_errors(entry):
        env = entry.make(
            game,
            num_envs=num_envs,
            batch_size=batch_size,
            num_threads=num_threads,
            protocol=protocol,
            seed=seed,
            render_mode=render_mode,
            **protocol_fields,
        )
    if not isinstance(env, GameVecEnv):
        given = type(env).__name__
        raise ValueError(f"environment {entry.key!r}: made {given}, must be a GameVecEnv of envs")
    _check_observations(env)
    return env


@contextlib.contextmanager
def _foreign_errors(entry: EnvEntry) -> Iterator[None]:
    """Inside, what another package's code raises becomes one line that names it."""
    try:
        yield
    except Exception as error:
        told = isinstance(error, ValueError | OSError)
        code = (getattr(part, "func", part) for part in (entry.make, entry.protocol))  # a partial
        modules = dict.fromkeys(function.__module__ for function in code)
        foreign = [module for module in modules if module.partition(".")[0] != "envs"]
        if not foreign or (told and type(error) is not ValueError):
            raise
        reason = (str(error).splitlines() or [""])[0]
        if not told:
            reason = f"{type(error).__name__}: {reason} (RL_NFM_TRACEBACK=1 shows where)"
        raise ValueError(f"environment {entry.key!r} ({', '.join(foreign)}): {reason}") from error


def _check_observations(env: GameVecEnv) -> None:
    """Refuse observations that a replay would store wrongly, because the spec does not fit them."""
    space, spec = env.single_observation_space, env.step_spec
    if space.shape != spec.obs_shape or space.dtype != np.uint8:
        env.close()
        kind = "grey frames" if spec.channels == 1 else f"frames of {spec.channels} channels"
        raise ValueError(
            f"{env.game}: observations of shape {space.shape}, {space.dtype}, are not allowed: "
            f"{kind} in a stack {spec.obs_shape}, uint8"
        )
