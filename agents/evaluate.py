"""Playing episodes with a trained network, without display or training state.

Counts the first N episodes *started*, not ended: the latter favours short episodes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import ale_py
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from agents.actor import Actor, to_device
from agents.config import Config
from agents.learner import autocast_dtype
from agents.network import QNetwork
from envs import human_normalized_score, make_env, resolve_game

OnStep = Callable[[NDArray[np.uint8], Actor, dict[str, Any]], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Returns of N episodes under one protocol."""

    game: str
    returns: list[float]
    lengths: list[int]
    protocol: dict[str, Any]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def median(self) -> float:
        """Median return."""
        return float(np.median(self.returns))

    @property
    def hns(self) -> float | None:
        """Human-normalised mean return; None where no human score is published."""
        return human_normalized_score(self.game, self.mean)


def protocol_block(config: Config, *, epsilon: float, seed: int, num_envs: int) -> dict[str, Any]:
    """Everything that the score depends on beside the network."""
    return {
        "env_id": f"ale_py.vector_env/{resolve_game(config.game)}",
        **dataclasses.asdict(config.env.resolve()),
        "epsilon": epsilon,
        "seed": seed,
        "num_envs": num_envs,
        "episodes_counted": "first started",
        "ale_py": ale_py.__version__,
    }


def play(
    network: QNetwork | None,
    config: Config,
    *,
    episodes: int,
    epsilon: float,
    seed: int,
    num_envs: int = 8,
    progress: bool = False,
    on_step: OnStep | None = None,
) -> Scores:
    """Play episodes; random actions where there is no network.

    Args:
        network: on the device to act on.
        config: names the game, the protocol and the number of acting quantiles.
        episodes: N.
        epsilon: probability of a random action.
        seed: of the environments and of the actions; training's random streams are left alone.
        num_envs: games side by side, at most N.
        progress: show a bar.
        on_step: called with the observations, the actor and the info before each step.
    """
    num_envs = min(num_envs, episodes)
    env = make_env(
        config.game,
        num_envs=num_envs,
        num_threads=config.env.num_threads,
        protocol=config.env.resolve(),
        seed=env_seed(seed),
    )
    devices = [] if network is None or next(network.parameters()).device.type == "cpu" else None
    with torch.random.fork_rng(devices=devices), tqdm(total=episodes, disable=not progress) as bar:
        torch.manual_seed(seed)
        counted = _Counter(num_envs, episodes, bar)
        obs, info = env.reset()
        actor = None
        if network is not None:
            actor = Actor(
                network,
                num_envs=num_envs,
                num_quantiles=config.learner.num_action_quantiles,
                dtype=autocast_dtype(config.learner.precision, next(network.parameters()).device),
                terminal_on_life_loss=env.protocol.terminal_on_life_loss,
            )
        while not counted.done:
            if actor is None:
                action = torch.randint(int(env.single_action_space.n), (num_envs,)).numpy()  # pyright: ignore
            else:
                start = to_device(info["episode_start"], actor.device)
                chosen = actor.act(
                    to_device(obs, actor.device), start, epsilon=epsilon, noise=False
                )
                action = chosen.cpu().numpy()
                if on_step is not None:
                    on_step(obs, actor, info)
            obs, reward, _, _, info = env.step(action)
            if actor is not None:
                actor.observe(
                    to_device(reward, actor.device), to_device(info["life_loss"], actor.device)
                )
            counted.step(info)
    env.close()
    return Scores(
        game=resolve_game(config.game),
        returns=counted.returns,
        lengths=counted.lengths,
        protocol=protocol_block(config, epsilon=epsilon, seed=seed, num_envs=num_envs),
    )


def env_seed(seed: int) -> int:
    """A seed for environments such that neighbouring seeds share no environment."""
    return seed * 1_000_003 % (2**31 - 4096)


class _Counter:
    """Gives episodes numbers in the order of their start, and keeps the first N."""

    def __init__(self, num_envs: int, episodes: int, bar: "tqdm[Any]"):
        self.number = np.arange(num_envs)
        self.next = num_envs
        self.results: dict[int, tuple[float, int]] = {}
        self.episodes, self.bar = episodes, bar

    @property
    def done(self) -> bool:
        return len(self.results) == self.episodes

    @property
    def returns(self) -> list[float]:
        return [self.results[i][0] for i in range(self.episodes)]

    @property
    def lengths(self) -> list[int]:
        return [self.results[i][1] for i in range(self.episodes)]

    def step(self, info: dict[str, Any]) -> None:
        for i in np.flatnonzero(info.get("_episode", ())):
            number = int(self.number[i])
            if number < self.episodes:
                episode = info["episode"]
                self.results[number] = (float(episode["r"][i]), int(episode["l"][i]))
                self.bar.update()
            self.number[i] = self.next
            self.next += 1
