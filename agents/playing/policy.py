"""A trained agent for use from Python: `agents.load(path)` and Stable-Baselines3's `predict`.

Shapes: `*B` a batch, or nothing where there is one observation; C, H, W of stacked frames. They are
not checked in tests: `predict` itself refuses what does not fit, with a message for users.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from numpy.typing import NDArray

from agents.config import Config
from agents.learning.actor import Actor, to_device
from agents.learning.config import autocast_dtype
from agents.learning.network import QNetwork
from agents.saving import checkpoint
from rl_nfm.support.device import choose_device

PredictState = tuple[NDArray[np.generic], ...]


class Agent:
    """A network that acts: greedily, or epsilon-greedily where `deterministic` is false."""

    def __init__(self, network: QNetwork, config: Config, obs_shape: tuple[int, int, int]):
        self.network, self.config, self.obs_shape = network.eval(), config, obs_shape

    def predict(
        self,
        observation: UInt8[np.ndarray, "*B C H W"] | UInt8[np.ndarray, "*B H W C"],
        state: PredictState | None = None,
        episode_start: Bool[np.ndarray, "*B"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Int64[np.ndarray, "*B"], PredictState | None]:
        """Actions, with the signature of Stable-Baselines3's `predict`.

        That tells neither rewards nor lost lives, so a recurrent encoder that reads the last reward
        (or forgets where a lost life ends the return) sees none of them here; `rl-nfm evaluate`
        shows it both.

        Args:
            observation: one observation or a batch of them, channels first or last.
            state: what the last call returned; None at the beginning.
            episode_start: true where `observation` is the first of an episode.
            deterministic: the same action for the same observation and state; false: as in an
                evaluation, random with the probability `run.eval_epsilon` and with quantile
                fractions drawn anew.

        Returns:
            The actions, a scalar array for one observation, and the state for the next call, which
            is None for a feed-forward encoder.

        Raises:
            ValueError: if the shape fits neither order, the values are no uint8, the batch is
                empty, or `state` or `episode_start` are of another batch or agent.
        """
        obs = np.asarray(observation)
        single = obs.ndim == 3
        batch = self._channels_first(obs[None] if single else obs)
        if not len(batch):
            raise ValueError("observation: an empty batch is not allowed: at least one observation")
        start = np.zeros(len(batch), bool) if episode_start is None else np.asarray(episode_start)
        start = start.reshape(-1).astype(bool)
        if state is not None:
            self._check_parts(state)
        for name, rows in (
            ("episode_start", start),
            ("state", start if state is None else state[-1]),
        ):
            if len(rows) != len(batch):
                raise ValueError(
                    f"{name}: of {len(rows)} is not allowed, the batch is of {len(batch)}"
                )
        actor = self._actor(len(batch), state)
        if state is None:
            start = np.ones(len(batch), bool)
        epsilon = 0.0 if deterministic else self.config.run.eval_epsilon
        device = actor.device
        action = actor.act(
            to_device(batch, device),
            to_device(start, device),
            epsilon=epsilon,
            noise=False,
            fixed_fractions=deterministic,
        )
        actions = action.cpu().numpy()
        kept = self._kept(actor)
        return (actions[0] if single else actions), kept

    def _check_parts(self, state: PredictState) -> None:
        parts = len(self.network.initial_state(1))
        if not parts or len(state) != parts + 2:
            raise ValueError(
                f"state: one of {len(state)} arrays is not allowed: must be what the last call "
                "returned, or none at the beginning"
            )

    def _channels_first(self, obs: NDArray[np.uint8]) -> NDArray[np.uint8]:
        c, h, w = self.obs_shape
        if obs.dtype != np.uint8 or obs.shape[1:] not in ((c, h, w), (h, w, c)):
            raise ValueError(
                f"observation: {obs.dtype} of shape {obs.shape} is not allowed: uint8 "
                f"{(c, h, w)} or {(h, w, c)}, or a batch of them"
            )
        if obs.shape[1:] != (c, h, w):
            obs = obs.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(obs)

    def _actor(self, batch: int, state: PredictState | None) -> Actor:
        learner = self.config.learner
        device = next(self.network.parameters()).device
        actor = Actor(
            self.network,
            num_envs=batch,
            num_quantiles=learner.num_action_quantiles,
            dtype=autocast_dtype(learner.precision, device),
            terminal_on_life_loss=False,
        )
        if state is not None:
            *recurrent, last_action, step = (to_device(s, device) for s in state)
            actor.state = tuple(recurrent)
            actor.last_action, actor.episode_step = last_action, step
        return actor

    def _kept(self, actor: Actor) -> PredictState | None:
        """State of the next call. SB3's `predict` tells no rewards, so the last one counts 0."""
        if not actor.state:
            return None
        kept = (*actor.state, actor.last_action, actor.episode_step)
        return tuple(s.cpu().numpy() for s in kept)


def load(path: str | Path, *, device: str = "auto", which: str = "last") -> Agent:
    """The agent of a run's folder or of a single checkpoint.

    Args:
        path: either, or `zoo:NAME` for one that comes with the package.
        device: auto, cpu, cuda or cuda:N.
        which: of a run, the `last` checkpoint or the `best` one.

    Raises:
        CheckpointError: missing or damaged (a ValueError).
        ValueError: another `device` or `which`.
    """
    found = checkpoint.open_checkpoint(checkpoint.find(Path(path), which))
    network = checkpoint.load_network(found, choose_device(device))
    with torch.no_grad():
        return Agent(network, found.config, found.meta.obs_shape)
