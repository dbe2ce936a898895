"""Presets of the supervised tasks: YAML files in `rl_nfm/supervised/presets/TASK/`.

A file holds what differs from the defaults of the task's config. A preset is chosen by its name, or
by the path of any other such file.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Generic

from rl_nfm.supervised.loop.options import ConfigT, with_nfm_preset
from rl_nfm.supervised.models import Models
from rl_nfm.support.configuration import plain_values, validate
from rl_nfm.support.yaml_file import read_yaml

FOLDER = Path(__file__).parents[1] / "presets"
DEFAULT = "small"


class Presets(Mapping[str, ConfigT], Generic[ConfigT]):
    """Configs by the names of presets; a file is read at the first access.

    Args:
        task: name of the folder.
        config: the class of the task's options.
        given: configs by name, instead of a folder's files; the default one first.
    """

    def __init__(
        self, task: str, config: type[ConfigT], given: Mapping[str, ConfigT] | None = None
    ):
        self._folder, self._own, self._given = FOLDER / task, config, given
        self._read: dict[tuple[str, type[ConfigT]], ConfigT] = {}
        self.models: Models | None = None
        """The task's models, whose own options belong to the config; set at its registration."""

    @property
    def _config(self) -> type[ConfigT]:
        return self._own if self.models is None else self.models.with_options(self._own)

    @cached_property
    def _names(self) -> list[str]:
        if self._given is not None:
            return [*self._given]
        names = sorted(path.stem for path in self._folder.glob("*.yaml"))
        return sorted(names, key=lambda name: name != DEFAULT)  # the default first

    def __getitem__(self, preset: str) -> ConfigT:
        """The config of a preset, by name or path.

        Raises:
            KeyError: neither a known name nor a path.
            ValueError: the file cannot be read, or has options that the task does not have.
        """
        key = preset, self._config
        if key not in self._read:
            path = Path(preset)
            if self._given is not None and preset in self._given:
                self._read[key] = validate(self._config, plain_values(self._given[preset]))
                return self._read[key]
            if preset in self._names:
                path = self._folder / f"{preset}.yaml"
            elif path.suffix not in (".yaml", ".yml"):
                raise KeyError(preset)
            self._read[key] = self._of(path, preset)
        return self._read[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _of(self, path: Path, preset: str) -> ConfigT:
        values, start = read_yaml(path), self._config(preset=preset)
        nfm = values.get("nfm")
        if isinstance(nfm, Mapping) and "preset" in nfm:
            start = with_nfm_preset(start, str(nfm["preset"]))
        return validate(self._config, _over(plain_values(start), values), where=str(path))


def _over(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`defaults` updated with `values`, group by group."""
    merged = {**defaults, **values}
    for name, value in values.items():
        if isinstance(value, Mapping) and isinstance(defaults.get(name), Mapping):
            merged[name] = _over(defaults[name], value)
    return merged
