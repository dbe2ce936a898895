"""Starting a run from the weights of a trained agent."""

import contextlib
from pathlib import Path

from agents.config import Config
from agents.learning.learner import Learner
from agents.saving import checkpoint
from agents.training.trainer import Trainer
from envs import make_env


def initialize(trainer: Trainer) -> None:
    """Load the weights that `config.init` names, if any, before the first step of a new run.

    Raises:
        ValueError: see `start_from`.
    """
    if trainer.config.init is not None:
        start_from(trainer.config.init, trainer.learner, trainer.env.action_meanings)
        trainer.collector.weights.refresh()


def start_from(agent: str, learner: Learner, action_meanings: list[str]) -> None:
    """Load the weights of an agent into both networks of a learner that has made no update.

    The head, which depends on the game's actions and on its own options, begins anew where it does
    not fit, and so do auxiliary losses; a line says so.

    Args:
        agent: path of a run, of a checkpoint or of an exported folder, or `zoo:NAME`.
        learner: whose networks are changed.
        action_meanings: names of the actions, as the environments have them.

    Raises:
        CheckpointError: missing or damaged.
        ValueError: its encoder is another one.
    """
    found = checkpoint.open_checkpoint(checkpoint.find(Path(agent)))
    weights, current = found.tensors("network"), learner.online.state_dict()
    wrong: dict[str, str] = {}  # part of the network to one of its weights
    for name in {**current, **weights}:
        if name not in current or name not in weights or current[name].shape != weights[name].shape:
            wrong.setdefault(name.split(".")[0], name)
    if "encoder" in wrong:
        raise ValueError(
            f"init: {agent} is not allowed: its encoder {found.config.encoder!r} has other weights "
            f"than the one here ({wrong['encoder']})"
        )
    meanings = _action_meanings(found.config)
    if meanings is not None and meanings != action_meanings:  # perhaps as many, of another meaning
        for part in {name.split(".")[0] for name in current} - {"encoder"}:
            wrong.setdefault(part, f"actions {' '.join(meanings)}")
    for part, why in wrong.items():
        print(f"note: init: the {part} of {agent} does not fit ({why}); it begins anew")
    weights = {k: v for k, v in weights.items() if k.split(".")[0] not in wrong}
    learner.online.load_state_dict({**current, **weights})
    learner.target.load_state_dict(learner.online.state_dict())


def _action_meanings(config: Config) -> list[str] | None:
    """Those of the game that a run was trained on; None where it cannot be made here."""
    with contextlib.suppress(ValueError):
        env = make_env(config.game, num_envs=1, num_threads=1, protocol=config.protocol)
        with contextlib.closing(env):
            return env.action_meanings
    return None
