"""From names to encoders; packages outside this project register theirs by entry point."""

import dataclasses
import keyword
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from rl_nfm.encoders.base import Encoder
from rl_nfm.support.discovery import load_plugins
from rl_nfm.support.errors import foreign_errors, foreign_modules
from rl_nfm.support.near import did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderEntry:
    """One registered encoder."""

    name: str
    config: type
    """Frozen dataclass of options; constructible without arguments."""
    build: Callable[..., Encoder]
    """`build(config, *, obs_shape=(C, H, W), num_actions=A)`; where the config has a field `trunk`,
    also with `trunk_config`, the config of the encoder named there, or None for its defaults."""
    summary: str

    @property
    def takes_trunk(self) -> bool:
        """Whether it is built on another encoder, named by its config's field `trunk`."""
        return any(field.name == "trunk" for field in dataclasses.fields(self.config))


RESERVED_NAMES = frozenset(
    {"game", "encoder", "steps", "seed", "device", "preset", "out", "resume", "init", "help"}
    | {"env", "replay", "learner", "head", "exploration", "run", "protocol"}
    | {"resnet_matched", "resnet_macs", "lstm_matched"}
)
"""What options of a training run and matched baselines of a sweep are called; an encoder's name is
the name of its own group of options."""

_REGISTRY: dict[str, EncoderEntry] = {}
_plugins_loaded = False


def register_encoder(name: str, config: type) -> Callable[[Callable[..., Encoder]], Any]:
    """Decorator: register a builder (a function or an Encoder class) under `name`.

    A package outside this project registers its own by calling this at import and naming the
    module in its entry points, group `rl_nfm.encoders`.

    Raises:
        ValueError: if the name is taken, reserved or no identifier, or `config` is not a frozen
            dataclass that can be made without arguments.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"encoder name {name!r} must be a Python identifier, and no keyword")
    if name in RESERVED_NAMES:
        raise ValueError(
            f"encoder name {name!r} is not allowed: an option or a matched baseline is called so"
        )
    if name in _REGISTRY:
        raise ValueError(f"encoder {name!r} is already registered")
    if not (dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen):  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(f"the config of encoder {name!r} must be a frozen dataclass, got {config}")
    try:
        config()
    except TypeError as error:
        raise ValueError(f"the config of encoder {name!r} needs defaults: {error}") from None

    def register(build: Callable[..., Encoder]) -> Callable[..., Encoder]:
        summary = (build.__doc__ or name).strip().splitlines()[0]
        _REGISTRY[name] = EncoderEntry(name=name, config=config, build=build, summary=summary)
        return build

    return register


def _load_plugins() -> None:
    """Those of other packages, once."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    load_plugins("rl_nfm.encoders", "encoder", _REGISTRY, _check_options)


def _check_options(names: Iterable[str]) -> None:
    """Raise for options that files cannot hold or give back, which would break every command."""
    from rl_nfm.support.configuration import plain_values, validate

    for name in names:
        config = _REGISTRY[name].config
        validate(config, plain_values(config()), where=name)


def encoder_names() -> list[str]:
    """All registered names, in the order of registration."""
    _load_plugins()
    return list(_REGISTRY)


def encoder_entries() -> Iterator[EncoderEntry]:
    """All registered encoders."""
    return (_REGISTRY[name] for name in encoder_names())


def encoder_entry(name: str) -> EncoderEntry:
    """The entry of `name`.

    Raises:
        ValueError: for an unknown name, with the nearest one.
    """
    names = encoder_names()
    if name not in names:
        hint = did_you_mean(name, names)
        raise ValueError(
            f"encoder: {name[:100]!r} is not registered{hint} (known: {', '.join(names)}); one of "
            "another package needs that package installed or imported"
        )
    return _REGISTRY[name]


def make_encoder(
    name: str,
    *,
    obs_shape: tuple[int, int, int] = (4, 84, 84),
    num_actions: int = 18,
    config: Any = None,
    trunk_config: Any = None,
    **options: Any,
) -> Encoder:
    """Build an encoder by name.

    Args:
        name: a registered name.
        obs_shape: (C, H, W) of one observation.
        num_actions: for encoders that take the last action as input.
        config: the encoder's config dataclass; by default one made of `options`.
        trunk_config: config of the encoder that `config.trunk` names; by default its defaults.
        options: fields of the config, when `config` is not given.

    Raises:
        ValueError: unknown name or option, a value out of range, another encoder's config, or
            options beside a config; or one of another package fails or breaks the contract.
    """
    from rl_nfm.support.configuration import validate

    entry = encoder_entry(name)
    if config is None:
        config = validate(entry.config, options, where=name)
    elif options:
        raise ValueError(f"{', '.join(options)}: not allowed beside config, which has all options")
    elif not isinstance(config, entry.config):
        raise ValueError(
            f"config: encoder {name!r} takes {entry.config.__name__}, got {type(config).__name__}"
        )
    trunk = {"trunk_config": trunk_config} if entry.takes_trunk else {}
    if trunk_config is not None and not trunk:
        raise ValueError(f"encoder {name!r} is not built on a trunk, so it takes no trunk_config")
    if not foreign_modules(entry.build):
        return entry.build(config, obs_shape=obs_shape, num_actions=num_actions, **trunk)
    from rl_nfm.encoders.contract import check_encoder

    with foreign_errors(f"encoder {name!r}", entry.build):
        encoder = entry.build(config, obs_shape=obs_shape, num_actions=num_actions, **trunk)
        try:
            check_encoder(encoder, obs_shape)
        except (RuntimeError, NotImplementedError):
            if not torch.cuda.is_available():  # else perhaps it runs there alone
                raise
        return encoder
