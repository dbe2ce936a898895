"""What a sweep of agents is to run, checked, and the runs that follow from it.

`OUT/preset.yaml` holds the values that all runs share, complete, so that a sweep stays what it was
when its preset is edited; `OUT/sweep.yaml` says what was asked. A run lies in GAME/METHOD/seed-N,
where METHOD is the encoder and what was varied: `nfm`, or `nfm,learner.learning_rate=1e-4`.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from agents.config import Config, chosen_encoders, make_config, to_plain
from agents.replay.storage import storages
from agents.reporting.swept import SWEEP_FILE
from agents.saving.resumable import changed_fields, check_resumable
from agents.saving.run_folder import RunFolder, folder_name
from agents.sweeping.folder import LOCK_FILE
from agents.sweeping.runs import PlannedRun
from agents.sweeping.variants import reference_of, with_encoder
from envs import games_of
from rl_nfm.encoders import encoder_names
from rl_nfm.support.configuration import plain_values
from rl_nfm.support.output_files import written
from rl_nfm.support.yaml_file import read_yaml

PRESET_FILE = "preset.yaml"
_PER_RUN = ("game", "encoder", "seed")
"""Options that a sweep sets for each run."""
_VALUE = r"(?:\[[^\[\]]+\]|[^,\[\]]+)"
"""Of an option that is varied: a list in brackets, or anything without commas."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep of agents: every game with every encoder, setting and seed."""

    base: Config
    """What all runs share, with the options of every encoder."""
    games: tuple[str, ...]
    """Names of games and suites."""
    encoders: tuple[str, ...]
    """Of `variants.variant_names()`."""
    seeds: tuple[int, ...]
    vary: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Option, as a dotted name, to its values as typed; all combinations are run."""
    name: str = ""
    """Name of the only method; none: methods are named by encoder and setting."""

    def __post_init__(self) -> None:
        for name in ("games", "encoders", "seeds"):
            check_unique(name, getattr(self, name))
        for option, values in self.vary.items():
            if option in _PER_RUN:
                raise ValueError(f"vary: {option} is not allowed, use --{option}s")
            check_unique(f"vary: {option}", values)

    def settings(self) -> list[dict[str, str]]:
        """Every combination of the varied settings."""
        values = itertools.product(*self.vary.values())
        return [dict(zip(self.vary, chosen, strict=True)) for chosen in values]

    def configs(self) -> dict[str, Config]:
        """Method to its config on the first game with the first seed.

        An option of an encoder is varied for the encoders that read it, and for those whose size is
        matched to one that does.

        Raises:
            ValueError: an unknown encoder or option, or a value that is not allowed.
        """
        found: dict[str, Config] = {}
        read: set[str] = set()
        for encoder, setting in itertools.product(self.encoders, self.settings()):
            config = self._config(encoder, setting)
            _ = storages[config.replay.storage]  # an unknown name is an error here, not in each run
            groups = {*chosen_encoders(config), reference_of(encoder)}
            unread = set(encoder_names()) - groups
            own = {k: value for k, value in setting.items() if k.split(".")[0] not in unread}
            read |= set(own)
            found.setdefault(self.name or method_name(encoder, own), config)
        for option in set(self.vary) - read:
            raise ValueError(
                f"vary: {option}: no encoder of this sweep has it ({', '.join(self.encoders)})"
            )
        return found

    def _config(self, encoder: str, setting: Mapping[str, str]) -> Config:
        first = {"game": games_of(self.games)[0], "seed": self.seeds[0]}
        values = plain_values(self.base) | first
        for option, text in setting.items():
            *path, last = option.split(".")
            group: Any = values
            for part in path:
                group = group.setdefault(part, {})
                if not isinstance(group, dict):
                    raise ValueError(f"vary: {option}: {part} is no group of options")
            try:
                group[last] = yaml.safe_load(text)
            except yaml.YAMLError:
                raise ValueError(f"vary: {option}: {text!r} is no value") from None
        config = with_encoder(make_config(values, where="vary" if setting else ""), encoder)
        unread = set(encoder_names()) - set(chosen_encoders(config))
        return dataclasses.replace(config, **{name: getattr(self.base, name) for name in unread})

    def runs(self, out: Path, threads: int) -> list[PlannedRun]:
        """All runs, those of the first seed first.

        Args:
            out: the sweep's folder.
            threads: cores of each run.

        Raises:
            ValueError: see `configs` and `envs.games_of`.
        """
        configs = self.configs()
        chosen = {method: _changes(self.base, config) for method, config in configs.items()}
        runs = []
        for seed, game, method in itertools.product(self.seeds, games_of(self.games), configs):
            folder, config = out / folder_name(game) / method / f"seed-{seed}", configs[method]
            options = {**chosen[method], "game": game, "encoder": config.encoder, "seed": seed}
            workers = () if config.env.num_threads else ("--env.num-threads", str(threads))
            preset = str(out / PRESET_FILE)
            runs.append(
                PlannedRun(
                    kind="train",
                    game=game,
                    method=method,
                    seed=seed,
                    folder=folder,
                    begin=("train", preset, *_flags(options), *workers, "--out", str(folder)),
                    resume=("train", "--resume", str(folder), *workers),
                    steps=config.steps,
                )
            )
        return runs

    def save(self, out: Path, also: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Write both files; games, encoders, seeds and values join those asked for before.

        Args:
            out: the sweep's folder.
            also: further entries of sweep.yaml.

        Raises:
            ValueError: `out` is no sweep and not empty, or holds one of another preset.
            OSError: it cannot be written.
        """
        before = read_request(out)
        asked: dict[str, Any] = {
            name: list(dict.fromkeys([*before.get(name, []), *getattr(self, name)]))
            for name in ("games", "encoders", "seeds")
        }
        vary = {option: list(values) for option, values in before.get("vary", {}).items()}
        for option, values in self.vary.items():
            vary[option] = list(dict.fromkeys([*vary.get(option, []), *values]))
        asked["vary"] = vary
        asked |= also
        if (out / PRESET_FILE).is_file():
            self._check_same(out / PRESET_FILE, before.get("encoders", []))
            self._check_runs(out)
        preset = self._preset(asked["encoders"])
        for name, values in ((PRESET_FILE, preset), (SWEEP_FILE, asked)):
            with written(out / name) as partial:
                partial.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")

    def _preset(self, encoders: Sequence[str]) -> dict[str, Any]:
        """The preset as plain values, for a file.

        Options at their defaults of encoders that the sweep does not have are left out: they may be
        of packages that are not installed when it goes on.
        """
        values, defaults = plain_values(self.base), plain_values(type(self.base)())
        used = {reference_of(name) for name in encoders} | set(encoders)
        used |= {name for config in self.configs().values() for name in chosen_encoders(config)}
        for name in set(encoder_names()) - used:
            if values[name] == defaults[name]:
                del values[name]
        return values

    def _check_same(self, path: Path, encoders: Sequence[str]) -> None:
        """Refuse settings that differ from those of the runs that the sweep already has."""
        before = make_config(read_yaml(path), where=str(path), saved=True)
        for encoder in encoders:
            old, new = (to_plain(with_encoder(base, encoder)) for base in (before, self.base))
            for field in changed_fields(old, new):
                if field not in _PER_RUN:
                    raise ValueError(
                        f"{field}: cannot change within a sweep; {path} has another value. "
                        "Choose another --out, or --vary it"
                    )

    def _check_runs(self, out: Path) -> None:
        """Refuse to go on with a run whose config is not what would be planned for it today."""
        configs = self.configs()
        for run in self.runs(out, threads=1):
            folder = RunFolder(run.folder)
            if not folder.config_path.is_file():
                continue
            planned = dataclasses.replace(configs[run.method], game=run.game, seed=run.seed)
            try:
                check_resumable(folder.config(), planned)
            except ValueError as error:
                field = str(error).partition(":")[0]
                raise ValueError(
                    f"{field}: {run.folder} was begun with another value, perhaps by another "
                    "version. Choose another --out"
                ) from None


def read_request(out: Path) -> dict[str, Any]:
    """The content of sweep.yaml; empty where no sweep has begun in the folder.

    Raises:
        ValueError: the folder holds other things, or the file is damaged.
    """
    if (out / SWEEP_FILE).is_file():
        return read_yaml(out / SWEEP_FILE)
    others = [path.name for path in out.iterdir() if path.name not in (PRESET_FILE, LOCK_FILE)]
    if others:
        raise ValueError(f"out: {out} is not empty and holds no sweep ({others[0]})")
    return {}


def method_name(encoder: str, setting: Mapping[str, str]) -> str:
    """The encoder and the varied settings, as the name of a folder."""
    return ",".join([encoder, *(f"{option}={value}" for option, value in setting.items())])


def check_unique(name: str, values: Sequence[Any]) -> None:
    """Refuse an empty list, and a value that is in it twice.

    Raises:
        ValueError: naming it.
    """
    if not values:
        raise ValueError(f"{name}: at least one is needed")
    for value in values:
        if list(values).count(value) > 1:
            raise ValueError(f"{name}: {value} is given twice")


def parse_vary(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Options and their values from words like `learner.n_steps=1,3` or `counts=[1,3],[1,5]`.

    Raises:
        ValueError: another form, or an option twice.
    """
    varied: dict[str, tuple[str, ...]] = {}
    for word in words:
        option, _, values = word.partition("=")
        option = option.replace("-", "_")
        found = re.fullmatch(rf"{_VALUE}(?:,{_VALUE})*", values)
        if not option or not found or "/" in values:
            raise ValueError(
                f"vary: {word!r} is not allowed, must be OPTION=VALUE,VALUE or, where a value is a "
                "list, OPTION=[VALUE,VALUE],[VALUE,VALUE]"
            )
        if option in varied:
            raise ValueError(f"vary: {option} is given twice")
        # a value is one, and has one folder, however it is typed
        varied[option] = tuple(
            value.replace(" ", "") if value.startswith("[") else value.strip()
            for value in re.findall(_VALUE, values)
        )
        check_unique(f"vary: {option}", [_number_or_text(value) for value in varied[option]])
    return varied


def _number_or_text(value: str) -> float | str:
    """1e-4 and 0.0001 are the same value."""
    try:
        return float(value)
    except ValueError:
        return value


def parse_seeds(words: Sequence[str]) -> tuple[int, ...]:
    """Seeds from numbers and ranges: `0 1 2`, `0..4` (both ends included).

    Raises:
        ValueError: anything else.
    """
    seeds: list[int] = []
    for word in words:
        first, dots, last = word.partition("..")
        if not first.isdecimal() or (dots and not last.isdecimal()):
            raise ValueError(f"seeds: {word!r} is not allowed, must be a number or FIRST..LAST")
        begin, count = int(first), int(last or first) - int(first) + 1
        if not 0 < count <= 10_000:
            raise ValueError(f"seeds: {word!r} is not allowed: {max(0, count)} seeds")
        seeds += range(begin, begin + count)
    return tuple(seeds)


def _changes(base: Config, config: Config) -> dict[str, Any]:
    """Dotted names and values of what `config` changes."""
    found: dict[str, Any] = {}
    for name in changed_fields(plain_values(base), plain_values(config)):
        option, value = "", config
        for key in name.split("."):
            if not dataclasses.is_dataclass(value):
                break  # an entry of a value that is a mapping
            option, value = f"{option}.{key}".removeprefix("."), getattr(value, key)
        found[option] = value
    return found


def _flags(options: Mapping[str, Any]) -> list[str]:
    """The words that `rl-nfm train` takes for options."""
    return [word for name, value in options.items() for word in (f"--{name}", *_words(value))]


def _words(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [word for pair in value.items() for word in map(str, pair)]
    if isinstance(value, list | tuple):
        return [word for item in value for word in _words(item)]
    return [str(value)]
