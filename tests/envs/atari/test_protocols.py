import dataclasses

import numpy as np
import pytest

from envs import PROTOCOLS, AtariProtocol, make_protocol

# Written out from the sources named in the module, field by field.
EXPECTED = {
    # sticky, all actions, no-ops, skip, pool, stack, life loss, fire
    "rltime": (0.0, False, 30, 4, True, 1, True, True),
    "dopamine": (0.25, False, 0, 4, True, 4, False, False),
    "machado": (0.25, True, 0, 4, True, 4, False, False),
    "atari100k": (0.0, False, 30, 4, True, 4, True, True),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_named_protocols(name):
    p = PROTOCOLS[name]
    got = (
        p.repeat_action_probability,
        p.full_action_space,
        p.noop_max,
        p.frameskip,
        p.maxpool,
        p.stack_num,
        p.terminal_on_life_loss,
        p.use_fire_reset,
    )
    assert got == EXPECTED[name]
    assert (p.name, p.img_height, p.img_width) == (name, 84, 84)
    assert p.max_num_frames_per_episode == 108_000
    assert make_protocol(name) == p


def test_the_table_is_complete_and_read_only():
    assert list(PROTOCOLS) == list(EXPECTED)
    with pytest.raises(TypeError):
        PROTOCOLS["dopamine"] = PROTOCOLS["rltime"]  # type: ignore[index]


def test_overrides_change_their_field_only_and_none_changes_nothing():
    changed = make_protocol("rltime", stack_num=4, noop_max=None)
    assert changed == dataclasses.replace(PROTOCOLS["rltime"], stack_num=4)
    assert make_protocol(changed, img_width=96).img_width == 96
    assert make_protocol(changed, img_width=96).stack_num == 4


def test_numpy_numbers_become_plain_ones():
    p = make_protocol("dopamine", stack_num=np.int64(3), repeat_action_probability=1)
    assert type(p.stack_num) is int
    assert type(p.repeat_action_probability) is float


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("repeat_action_probability", 2.0, "a number from 0 to 1"),
        ("repeat_action_probability", -0.1, "a number from 0 to 1"),
        ("repeat_action_probability", float("nan"), "a number from 0 to 1"),
        ("repeat_action_probability", "0.25", "a number from 0 to 1"),
        ("repeat_action_probability", True, "a number from 0 to 1"),
        ("full_action_space", 1, "true or false"),
        ("noop_max", -1, "an integer from 0 to 1000"),
        ("noop_max", 10**9, "an integer from 0 to 1000"),
        ("frameskip", 0, "an integer from 1 to 100"),
        ("frameskip", (2, 5), "an integer from 1 to 100"),
        ("stack_num", 0, "an integer from 1 to 16"),
        ("stack_num", 4.0, "an integer from 1 to 16"),
        ("stack_num", True, "an integer from 1 to 16"),
        ("img_height", 0, "an integer from 1 to 256"),
        ("img_width", -84, "an integer from 1 to 256"),
        ("img_width", 10**6, "an integer from 1 to 256"),
        ("max_num_frames_per_episode", 0, "an integer from 1 to 2147483646"),
        ("max_num_frames_per_episode", 2**31, "an integer from 1 to 2147483646"),
        ("use_fire_reset", "yes", "true or false"),
    ],
)
def test_a_bad_value_names_field_value_and_what_is_allowed(field, value, allowed):
    with pytest.raises(ValueError, match=f"^{field}: .* is not allowed, must be {allowed}$") as e:
        make_protocol("dopamine", **{field: value})
    assert repr(value) in str(e.value)
    with pytest.raises(ValueError, match=field):
        AtariProtocol(**{**vars(PROTOCOLS["dopamine"]), field: value})


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="protocol: 'dopamin' is unknown; did you mean 'dopamine'"):
        make_protocol("dopamin")
    with pytest.raises(ValueError, match="protocol: None is unknown"):
        make_protocol(None)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="field: 'frame_skip' is unknown; did you mean 'frameskip'"
    ):
        make_protocol("dopamine", frame_skip=2)
    with pytest.raises(ValueError, match="field: 'name' is unknown"):
        make_protocol("dopamine", name="mine")
