"""A run that ends within a second or two, for tests that need a whole one."""

from typing import Any

from agents.config import Config, make_config, to_plain
from agents.presets import read_preset

TINY: dict[str, Any] = {
    "game": "memory_cue",
    "steps": 96,
    "env": {"num_envs": 4},
    "replay": {"capacity_steps": 200, "min_steps": 40, "batch_size": 4},
    "learner": {"steps_per_update": 8},
    "head": {"hidden_size": 8, "num_cosines": 4},
    "run": {
        "log_every_steps": 16,
        "checkpoint_every_steps": 32,
        "eval_every_steps": 48,
        "eval_episodes": 1,
    },
}


def tiny(**changes: Any) -> Config:
    """The debug preset on the memory task, whose episodes last a few steps, smaller still."""
    values = to_plain(read_preset("debug"))
    for change in (TINY, changes):
        for key, value in change.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return make_config(values)
