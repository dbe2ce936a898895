"""YAML files of options: one mapping, each key once, no aliases."""

from pathlib import Path
from typing import Any

import yaml

from rl_nfm.support.configuration import short
from rl_nfm.support.errors import first_line


class _NotPlainError(ValueError):
    """YAML that a config must not contain."""


class _PlainLoader(yaml.SafeLoader):
    """Refuses duplicate keys, which hide mistakes, and aliases, which grow without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            line = event.start_mark.line + 1
            raise _NotPlainError(f"line {line}: aliases are not allowed, write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                line = key.start_mark.line + 1
                raise _NotPlainError(f"line {line}: {short(name)} is given twice")
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: if the file cannot be read, is no YAML, is not a mapping, gives a key twice or
            uses aliases.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except _NotPlainError as error:
        raise ValueError(f"{path}: {error}") from None
    # PyYAML raises KeyError and AttributeError for wrong values of its own tags.
    except (yaml.YAMLError, ValueError, RecursionError, KeyError, AttributeError) as error:
        problem = getattr(error, "problem", None) or first_line(error)
        raise ValueError(f"{path}: not valid YAML ({problem})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must be a mapping of options, got {type(values).__name__}")
    for key in values:
        if not isinstance(key, str):
            raise ValueError(f"{path}: keys must be names, got {short(key)}")
    return values
