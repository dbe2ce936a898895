"""Starting a run from the weights of a trained agent."""

from pathlib import Path

from agents.learning.learner import Learner
from agents.saving import checkpoint
from agents.training.trainer import Trainer


def initialize(trainer: Trainer) -> None:
    """Load the weights that `config.init` names, if any, before the first step of a new run.

    Raises:
        ValueError: see `start_from`.
    """
    if trainer.config.init is not None:
        start_from(trainer.config.init, trainer.learner)
        trainer.collector.weights.refresh()


def start_from(agent: str, learner: Learner) -> None:
    """Load the weights of an agent into both networks of a learner that has made no update.

    The head, whose size depends on the game's actions and on its own options, begins anew where it
    does not fit, and so do auxiliary losses; a line says so.

    Args:
        agent: path of a run, of a checkpoint or of an exported folder, or `zoo:NAME`.
        learner: whose networks are changed.

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
    for part, name in wrong.items():
        print(f"note: init: the {part} of {agent} does not fit ({name}); it begins anew")
    weights = {k: v for k, v in weights.items() if k.split(".")[0] not in wrong}
    learner.online.load_state_dict({**current, **weights})
    learner.target.load_state_dict(learner.online.state_dict())
