"""Evaluation protocols: named settings of the environment under which scores are comparable.

Sources, per name:

* `rltime`: opherlieber/rltime, `configs/atari_iqn_lstm.json`; the setting of the NFM paper.
* `dopamine`: google/dopamine, `discrete_domains/atari_lib.py`, and 27,000 steps an episode as in
  its gin files (its present path through Gymnasium ends them at 100,000 frames).
* `machado`: Machado et al. 2018 with Dopamine's frame skip and cap: all 18 actions, frame skip 4
  (paper: 5) and 108,000 frames an episode (paper: 18,000).
* `atari100k`: Kaiser et al. 2020 as it is commonly run, with rlpyt's `envs/atari/atari_env.py`.

Deviations, all because of ale-py's vector environment: no-ops are drawn from 0 to `noop_max` - 1
(elsewhere up to `noop_max`, from 0 or 1), one fewer where FIRE is pressed; FIRE is pressed once,
and only when a game begins (rltime and rlpyt press two buttons, after every life loss too); a lost
life is seen at the end of the frame skip, which goes on after it, and stacks go on as well; the
last observation of an episode, whose frame skip is cut short, is not the maximum over its last two
frames, but holds the frame before (of use only to the value at a time-out).
"""

import dataclasses
import typing
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from annotated_types import Ge, Le

from envs.checks import check, check_known


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtariProtocol:
    """Everything about the environment that a score depends on, apart from the game.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """

    name: str
    """The protocol these settings began from; compare whole objects, not names."""
    repeat_action_probability: Annotated[float, Ge(0), Le(1)]
    """Sticky actions: probability per emulator frame that the previous action is repeated."""
    full_action_space: bool
    """All 18 joystick actions instead of the game's minimal set."""
    noop_max: Annotated[int, Ge(0), Le(1000)]
    """No-ops at the start of an episode, in emulator frames: uniform from 0 to `noop_max` - 1."""
    frameskip: Annotated[int, Ge(1), Le(100)]
    """Emulator frames per agent step, all with the same action."""
    maxpool: bool
    """Whether an observation is the pixel-wise maximum of the last two emulator frames."""
    stack_num: Annotated[int, Ge(1), Le(16)]
    """Frames per observation, the newest last; zero frames pad the start of an episode."""
    img_height: Annotated[int, Ge(1), Le(256)]
    """Height of an observation, in pixels."""
    img_width: Annotated[int, Ge(1), Le(256)]
    """Width of an observation, in pixels."""
    terminal_on_life_loss: bool
    """Whether a lost life ends the return in training; the game goes on, and is not reset."""
    use_fire_reset: bool
    """Whether FIRE is pressed once at the start of an episode, where the game has it."""
    max_num_frames_per_episode: Annotated[int, Ge(1), Le(2**31 - 2)]
    """Emulator frames (no-ops excluded) after which an episode is truncated."""

    @property
    def render_fps(self) -> float:
        """Agent steps in a second of play."""
        return 60 / self.frameskip

    def __post_init__(self) -> None:
        for field, hint in typing.get_type_hints(AtariProtocol, include_extras=True).items():
            object.__setattr__(self, field, check(field, getattr(self, field), hint))


ATARI_FIELDS = tuple(f.name for f in dataclasses.fields(AtariProtocol) if f.name != "name")
"""Each can differ from the named protocol."""
_DOPAMINE = AtariProtocol(
    name="dopamine",
    repeat_action_probability=0.25,
    full_action_space=False,
    noop_max=0,
    frameskip=4,
    maxpool=True,
    stack_num=4,
    img_height=84,
    img_width=84,
    terminal_on_life_loss=False,
    use_fire_reset=False,
    max_num_frames_per_episode=108_000,
)
_ATARI_100K = dataclasses.replace(
    _DOPAMINE,
    name="atari100k",
    repeat_action_probability=0.0,
    noop_max=30,
    terminal_on_life_loss=True,
    use_fire_reset=True,
)

PROTOCOLS: Mapping[str, AtariProtocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            # One frame without a stack: the encoder there is recurrent.
            dataclasses.replace(_ATARI_100K, name="rltime", stack_num=1),
            _DOPAMINE,
            dataclasses.replace(_DOPAMINE, name="machado", full_action_space=True),
            _ATARI_100K,
        )
    }
)
"""The named protocols."""


def make_protocol(protocol: str | AtariProtocol, **overrides: Any) -> AtariProtocol:
    """A protocol with some fields changed.

    Args:
        protocol: a key of `PROTOCOLS`, or an `AtariProtocol`.
        overrides: fields of `AtariProtocol` apart from `name`; None leaves a field as it is.

    Raises:
        ValueError: unknown name or field, with the nearest one, or a value out of range.
    """
    if not isinstance(protocol, AtariProtocol):
        check_known("protocol", protocol, PROTOCOLS)
        protocol = PROTOCOLS[protocol]
    for key in overrides:
        check_known("protocol field", key, ATARI_FIELDS)
    changed = {key: value for key, value in overrides.items() if value is not None}
    return dataclasses.replace(protocol, **changed)
