"""The encoder contract and the registry that maps names to encoders.

Everything that uses an encoder (agent, SB3 adapter, command line) relies on this file only.

Shapes: T time steps, B batch, C stacked frames, H x W pixels, D features, A actions.
"""

import dataclasses
import difflib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor, nn

_LOG = logging.getLogger(__name__)

State = tuple[Tensor, ...]
"""Recurrent state: tensors of shape [B, ...]; empty for a feed-forward encoder."""

Extras = Mapping[str, Tensor]
"""`last_action` int64, `last_reward` float, `episode_step` int64, all [T, B]."""


class Encoder(nn.Module):
    """Turns a sequence of stacked frames into a sequence of features.

    Subclasses set `feature_dim` and implement `forward`; a recurrent one also overrides
    `initial_state`. Feed-forward encoders derive from `FeedForwardEncoder` instead.
    """

    feature_dim: int

    @property
    def recurrent(self) -> bool:
        """Whether the encoder carries a state from step to step."""
        return len(self.initial_state(1)) > 0

    def initial_state(self, batch_size: int) -> State:
        """State before the first step, zeros, each tensor [B, ...]."""
        del batch_size
        return ()

    def forward(
        self,
        obs: Tensor,
        state: State = (),
        reset: Tensor | None = None,
        extras: Extras | None = None,
    ) -> tuple[Tensor, State]:
        """Encode a sequence.

        Args:
            obs: uint8 [T, B, C, H, W].
            state: as `initial_state` gives it; `()` means zeros.
            reset: bool [T, B]; the state is zeroed before step t where true. None: nowhere.
            extras: see `Extras`; an encoder may ignore it.

        Returns:
            features [T, B, D] and the state after the last step.
        """
        raise NotImplementedError


class FeedForwardEncoder(Encoder):
    """An encoder without state: implements `embed`, and T is folded into B."""

    def embed(self, pixels: Tensor) -> Tensor:
        """Features [N, D] of pixels in [0, 1], float [N, C, H, W]."""
        raise NotImplementedError

    def forward(
        self,
        obs: Tensor,
        state: State = (),
        reset: Tensor | None = None,
        extras: Extras | None = None,
    ) -> tuple[Tensor, State]:
        """See `Encoder.forward`."""
        del reset, extras
        check_observations(obs)
        steps, batch = obs.shape[:2]
        return self.embed(scale_pixels(obs.flatten(0, 1))).view(steps, batch, -1), state


def check_observations(obs: Tensor) -> None:
    """Refuse what is no sequence of batches of stacked frames.

    Raises:
        ValueError: if `obs` is not [T, B, C, H, W].
    """
    if obs.dim() != 5:
        raise ValueError(
            f"observations: shape {tuple(obs.shape)} is not allowed: must be [T, B, C, H, W], time "
            "steps and batch first (one observation of four frames: 1, 1, 4, 84, 84)"
        )


def scale_pixels(frames: Tensor) -> Tensor:
    """uint8 [N, C, H, W] to float in [0, 1], channels_last; in bf16 under bf16 autocast."""
    device = frames.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    if frames.is_cuda:  # one kernel, which rounds once
        pixels = torch.empty_like(frames, dtype=dtype, memory_format=torch.channels_last)
        return torch.mul(frames, 1.0 / 255.0, out=pixels)
    # Cast, then change the layout: half the time of both at once on a CPU.
    pixels = frames.to(dtype).contiguous(memory_format=torch.channels_last)
    return pixels.mul_(1.0 / 255.0)


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
    {"game", "encoder", "steps", "seed", "device", "preset", "out", "resume", "help"}
    | {"env", "replay", "learner", "head", "exploration", "run"}
)
"""What options of a training run are called; an encoder's name is the name of its own group."""

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
    if not name.isidentifier():
        raise ValueError(f"encoder name {name!r} must be a Python identifier")
    if name in RESERVED_NAMES:
        raise ValueError(f"encoder name {name!r} is not allowed: options of a run are called so")
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
    """Import the modules of other packages that register encoders; a broken one is left out."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    for point in entry_points(group="rl_nfm.encoders"):
        known = dict(_REGISTRY)
        try:
            point.load()
            _check_options(_REGISTRY.keys() - known.keys())
        except (Exception, SystemExit) as error:  # whatever foreign code may raise
            _REGISTRY.clear()
            _REGISTRY.update(known)
            reason = (str(error).splitlines() or [""])[0]
            _LOG.warning(
                "rl-nfm: the encoder plug-in %s (%s) is left out: %s: %s",
                *(point.name, point.value, type(error).__name__, reason),
            )


def _check_options(names: Iterable[str]) -> None:
    """Raise for options that cannot be read from files, which would break every command."""
    from rl_nfm.support.configuration import validate

    for name in names:
        validate(_REGISTRY[name].config, {}, where=name)


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
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
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
        ValueError: unknown name or option, or a value out of range.
    """
    from rl_nfm.support.configuration import validate

    entry = encoder_entry(name)
    if config is None:
        config = validate(entry.config, options, where=name)
    if entry.takes_trunk:
        return entry.build(
            config, obs_shape=obs_shape, num_actions=num_actions, trunk_config=trunk_config
        )
    if trunk_config is not None:
        raise ValueError(f"encoder {name!r} is not built on a trunk, so it takes no trunk_config")
    return entry.build(config, obs_shape=obs_shape, num_actions=num_actions)
