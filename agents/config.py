"""The agent's config: groups of frozen dataclasses, each next to its owner.

`config_class()` adds one group per registered encoder, so that `--encoder nfm --nfm.width 32` works
for encoders of outside packages too. A preset may hold a group for every encoder; only that of the
chosen one (and of its trunk) is read and saved.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml
from annotated_types import Ge, Gt, Le

from agents.learning.config import ExplorationConfig, LearnerConfig
from agents.replay.config import ReplayConfig
from envs import ATARI_FIELDS, PROTOCOLS, AtariProtocol, EnvProtocol, env_protocol, make_protocol
from rl_nfm.encoders import encoder_entry, encoder_names
from rl_nfm.support.bounds import Bounded
from rl_nfm.support.configuration import nearest, plain_values, validate
from rl_nfm.support.former import with_current_names
from rl_nfm.support.output_files import written
from rl_nfm.values.heads import HeadConfig

CONFIG_FILE = "config.yaml"
"""A run's config, in its folder; whatever folder has one is a run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvConfig(Bounded):
    """The environments. A field left at none takes the protocol's value."""

    protocol: str = "dopamine"
    """Named settings: rltime, dopamine, machado or atari100k."""

    num_envs: Annotated[int, Gt(0)] = 8
    """Games played side by side."""

    num_threads: Annotated[int, Ge(0)] = 0
    """Threads that emulate; 0: one per processor core, at most one per game."""

    num_groups: Annotated[int, Ge(0)] = 0
    """Groups of games that take turns: some play while actions for the others are chosen. 0: two on
    a GPU with at least 32 games, else one."""

    stack_num: Annotated[int, Gt(0)] | None = None
    """Frames in an observation."""

    repeat_action_probability: Annotated[float, Ge(0), Le(1)] | None = None
    """Probability that a frame repeats the previous action (sticky actions)."""

    full_action_space: bool | None = None
    """All 18 actions instead of the game's minimal set."""

    terminal_on_life_loss: bool | None = None
    """A lost life ends the return (the game goes on)."""

    noop_max: Annotated[int, Ge(0)] | None = None
    """An episode begins with fewer no-ops than that, as many as chance says."""

    max_num_frames_per_episode: Annotated[int, Gt(0)] | None = None
    """Emulator frames after which an episode is truncated."""

    kwargs: str = ""
    """Of a gym: environment: its arguments, as Python writes them ("size=5, slippery=True")."""

    wrappers: tuple[str, ...] = ()
    """Around a gym: environment, the innermost first: module:Class, or module:Class(a=1)."""

    max_episode_steps: Annotated[int, Gt(0)] | None = None
    """Of a gym: environment: steps after which an episode is truncated."""

    vectorization: Literal["sync", "async"] | None = None
    """Of gym: environments: sync steps all in this process (none: likewise), async each in its
    own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.resolve()

    def resolve(self) -> AtariProtocol:
        """The Atari protocol with these overrides.

        Raises:
            ValueError: unknown protocol or a value out of range.
        """
        if self.protocol not in PROTOCOLS:
            raise ValueError(nearest("protocol", self.protocol, list(PROTOCOLS)))
        overrides = {k: v for k, v in self.options().items() if k in ATARI_FIELDS}
        return make_protocol(self.protocol, **overrides)

    def options(self) -> dict[str, Any]:
        """All that makes the protocol of a game, by name."""
        mine = ("num_envs", "num_threads", "num_groups")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in mine}


@contextlib.contextmanager
def named_env_options() -> Iterator[None]:
    """Inside, errors that begin with the name of an option of `EnvConfig` get its group's too."""
    try:
        yield
    except ValueError as error:
        if str(error).split(":")[0] not in EnvConfig.__dataclass_fields__:
            raise
        raise ValueError(f"env.{error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Bounded):
    """What a run writes, and how often; all counts in agent steps."""

    log_every_steps: Annotated[int, Gt(0)] = 10_000
    """Between lines of metrics.jsonl and TensorBoard."""

    eval_every_steps: Annotated[int, Gt(0)] = 250_000
    """Between evaluations."""

    eval_episodes: Annotated[int, Ge(0)] = 10
    """Episodes per evaluation in training; 0: none."""

    eval_epsilon: Annotated[float, Ge(0), Le(1)] = 0.001
    """Probability of a random action in evaluation."""

    video_every_evals: Annotated[int, Ge(0)] = 5
    """Of the evaluations, every so many-th (and the first and the last one) leaves a small clip of
    its first episode in TensorBoard; 0: none."""

    checkpoint_every_steps: Annotated[int, Gt(0)] = 250_000
    """Between checkpoints."""

    save_replay: bool = True
    """Keep the replay buffer in checkpoints; without it a resumed run first fills a new one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Bounded):
    """One training run."""

    game: str = "ms_pacman"
    """ms_pacman, MsPacman or ALE/MsPacman-v5, and likewise for every other Atari game (the version
    of an id says nothing: sticky actions and frame skip are those of env.protocol); gym:ID or
    gym:PACKAGE:ID for a Gymnasium environment with images and discrete actions; memory_cue."""

    encoder: str = "nature"
    """Which network reads the observations; `rl-nfm encoders` lists them."""

    steps: Annotated[int, Gt(0)] = 50_000_000
    """Agent steps in all, over all environments (1 step = 4 emulator frames)."""

    seed: Annotated[int, Ge(0), Le(2**31 - 1)] = 1
    """Of weights, exploration, replay and environments."""

    init: str | None = None
    """Start from the weights of a trained agent: a run, a checkpoint, a folder of `rl-nfm export`
    or zoo:NAME of `rl-nfm agents`. Its encoder must be the same; for other actions the head begins
    anew, and a line says so."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""

    env: EnvConfig = dataclasses.field(default_factory=EnvConfig)
    replay: ReplayConfig = dataclasses.field(default_factory=ReplayConfig)
    learner: LearnerConfig = dataclasses.field(default_factory=LearnerConfig)
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    exploration: ExplorationConfig = dataclasses.field(default_factory=ExplorationConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        entry = encoder_entry(self.encoder)
        trunk = getattr(getattr(self, entry.name, None), "trunk", None)
        if trunk is not None:
            encoder_entry(trunk)
        num_envs, replay = self.env.num_envs, self.replay
        if num_envs < 1 or replay.stride_steps < 1:
            return  # out of bounds, which the reader of the config tells
        if (held := replay.rows(num_envs) * num_envs) < replay.min_steps:
            raise ValueError(
                f"replay.capacity_steps: {replay.capacity_steps} is not allowed: {num_envs} "
                f"environments fill {held} of it, and learning begins at replay.min_steps "
                f"({replay.min_steps})"
            )

    @property
    def protocol(self) -> EnvProtocol:
        """The settings that the game is played under.

        Raises:
            ValueError: an option that means nothing in this game.
        """
        with named_env_options():
            return env_protocol(self.game, self.env.options())

    def __reduce__(self) -> tuple[Any, ...]:
        # The class with the encoders' groups is made at run time, so pickle cannot find it by name.
        return make_config, (to_plain(self),)


def chosen_encoders(config: Config) -> list[str]:
    """The encoder and, where it has one, its trunk."""
    names = [config.encoder]
    trunk = getattr(getattr(config, config.encoder), "trunk", None)
    return names if trunk is None else [*names, trunk]


def flags_of_encoder(name: str, argv: Sequence[str]) -> list[str]:
    """The flags among the words that are options of an encoder, without their values."""
    flags = [word.split("=")[0] for word in argv if word.startswith("--")]
    groups = (f"{name}.", f"no_{name}.")
    return [flag for flag in flags if flag[2:].replace("-", "_").startswith(groups)]


def config_class() -> type[Config]:
    """`Config` with one group of options per registered encoder."""
    return _config_class(tuple(encoder_names()))


@cache
def _config_class(encoders: tuple[str, ...]) -> type[Config]:
    listed = tyro.conf.arg(help=f"Which network reads the frames: {', '.join(encoders)}.")
    groups: list[Any] = [("encoder", Annotated[str, listed], dataclasses.field(default="nature"))]
    groups += [
        (entry.name, entry.config, dataclasses.field(default_factory=entry.config))
        for entry in map(encoder_entry, encoders)
    ]
    cls = dataclasses.make_dataclass("Config", groups, bases=(Config,), frozen=True, kw_only=True)
    cls.__doc__ = Config.__doc__
    return cls


def make_config(values: Mapping[str, Any], *, where: str = "", saved: bool = False) -> Config:
    """A checked config from plain values.

    Args:
        values: as `to_plain` gives them; defaults fill what is missing.
        where: put before the names of options in errors.
        saved: a run of an earlier version, which had other names for some options, may have
            written them.

    Raises:
        ValueError: unknown option, wrong type or value out of range, or an encoder that is not
            registered here.
    """
    name = values.get("encoder")
    group = values.get(name) if isinstance(name, str) else None
    trunk = group.get("trunk") if isinstance(group, Mapping) else None
    for encoder in (name, trunk):
        if isinstance(encoder, str):
            _check_registered(encoder, where)  # before its group of options is called unknown
    cls = config_class()
    return validate(cls, with_current_names(cls, values) if saved else values, where=where)


def _check_registered(encoder: str, where: str) -> None:
    try:
        encoder_entry(encoder)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from None


def to_plain(config: Config) -> dict[str, Any]:
    """Plain values of everything that is read: groups of encoders not chosen are left out."""
    plain = plain_values(config)
    for name in set(encoder_names()) - set(chosen_encoders(config)):
        plain.pop(name, None)
    return plain


def write_config(config: Config, path: Path) -> None:
    """Save as YAML, readable as a preset; atomically.

    Raises:
        OSError: if it cannot be written.
    """
    with written(path) as partial:
        text = yaml.safe_dump(to_plain(config), sort_keys=False)
        partial.write_text(text, encoding="utf-8")
