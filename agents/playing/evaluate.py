"""Playing episodes with a trained network, without display or training state.

The policy evaluated is the one that learned, without its noise: quantile fractions are drawn anew
at every step, from the evaluation's seed, as Dopamine and rltime do. With the same fractions at
every step and epsilon 0.001 a young agent gets stuck more often (one: 23 of 24 episodes returned
exactly 70, and 21 with drawn ones; with epsilon 0.05 none): docs/results.md, section 7.
The first N episodes to *start* are counted, not the first N to end, which would favour short ones.

Shapes: E environments; C, H, W of stacked frames, c of C in one of them.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from numpy.typing import NDArray

from agents.config import Config
from agents.learning.actor import Actor
from agents.learning.config import autocast_dtype
from agents.learning.network import QNetwork
from agents.learning.random_stream import RandomStream
from agents.learning.static_actor import StaticActor
from agents.learning.streams import make_stream
from agents.playing.counter import EpisodeCounter
from agents.playing.scores import Scores, protocol_block
from envs import GameVecEnv, make_env, newest_frame
from rl_nfm.support.device import cores


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayStep:
    """One observation of each of E games, and the action taken at it.

    The last observation of an episode is among them (`info["episode_end"]` is true there); its
    action has no effect. The actor's network has just read the observations.
    """

    obs: UInt8[np.ndarray, "E C H W"]
    """Stacked frames, the newest last."""
    reward: Float32[np.ndarray, " E"]
    """Raw reward that came with the observation."""
    info: dict[str, Any]
    """As `GameVecEnv` has it: `episode_start`, `episode_end`, `lives`, ..."""
    action: Int64[np.ndarray, " E"]
    """The action chosen at the observation."""
    actor: Actor | None
    """What chose the action; None for random play."""
    frame_channels: int = 1
    """c."""

    @property
    def newest(self) -> UInt8[np.ndarray, "*c H W"]:
        """The newest frame of the first game; c is left out where it is 1."""
        return newest_frame(self.obs[:1], self.frame_channels)[0]


OnStep = Callable[[PlayStep], object]
NUM_ENVS = 32
"""Games side by side, unless asked for otherwise: one forward serves all of them."""


def play(
    network: QNetwork | None,
    config: Config,
    *,
    episodes: int,
    epsilon: float,
    seed: int,
    num_envs: int = NUM_ENVS,
    fixed_fractions: bool = False,
    progress: bool = False,
    on_step: OnStep | None = None,
    capture: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> Scores:
    """Play episodes; random actions where there is no network.

    Args:
        network: on the device to act on.
        config: names the game, the protocol and the number of acting quantiles.
        episodes: N.
        epsilon: probability of a random action; random play has 1.
        seed: of the environments and of the actions; training's random streams are left alone.
        num_envs: games side by side, at most N.
        fixed_fractions: the same quantile fractions at every step; see the head of this file.
        progress: show how many episodes have ended.
        on_step: called with each observation; the first game's first episode is the first counted.
        capture: on a GPU, capture acting as a graph; not where `on_step` hooks into the network.
        stop: asked at every step whether to end early.

    Raises:
        Interrupted: `stop` said so.
        ValueError: if the network was made for another number of actions than the game has.
    """
    env = make_env(
        config.game,
        num_envs=min(num_envs, episodes),
        # A run may come from a machine with more cores.
        num_threads=min(config.env.num_threads, cores()),
        protocol=config.protocol,
        seed=env_seed(seed),
    )
    with contextlib.closing(env):
        if network is None:
            player: _Player = _RandomPlayer(env, seed)
        else:
            player = _NetworkPlayer(
                network,
                config,
                env,
                epsilon=epsilon,
                seed=seed,
                fixed_fractions=fixed_fractions,
                graph=capture,
            )
        counted = EpisodeCounter(env.num_envs, episodes)
        with counted.shown() if progress else contextlib.nullcontext():
            _play(env, player, counted, on_step, stop)
    return Scores(
        game=env.game,
        returns=counted.returns,
        lengths=counted.lengths,
        protocol=protocol_block(
            env,
            epsilon=1.0 if network is None else epsilon,
            seed=seed,
            fixed_fractions=fixed_fractions,
        ),
    )


class Interrupted(Exception):
    """An evaluation was asked to end before its episodes did."""


class _RandomPlayer:
    """Takes every action with the same probability."""

    actor = None

    def __init__(self, env: GameVecEnv, seed: int):
        self.num_actions, self.num_envs = len(env.action_meanings), env.num_envs
        self.generator = torch.Generator().manual_seed(seed)

    def begin(self, obs: NDArray[np.uint8], info: dict[str, Any]) -> None:
        """Looks at nothing."""

    def act(self) -> NDArray[np.int64]:
        """Actions [E]."""
        shape = (self.num_envs,)
        return torch.randint(self.num_actions, shape, generator=self.generator).numpy()

    def receive(
        self, obs: NDArray[np.uint8], reward: NDArray[np.float32], info: dict[str, Any]
    ) -> None:
        """Looks at nothing."""


class _NetworkPlayer:
    """Acts with a network, from random numbers of its own."""

    def __init__(
        self,
        network: QNetwork,
        config: Config,
        env: GameVecEnv,
        *,
        epsilon: float,
        seed: int,
        fixed_fractions: bool,
        graph: bool,
    ):
        self.actor, self.epsilon = _make_actor(network, config, env), epsilon
        shape: Any = env.single_observation_space.shape
        self._player = StaticActor(
            self.actor,
            shape,
            make_stream(self.actor.device),
            graph=graph and config.learner.cuda_graph,
            random=RandomStream(self.actor.device, seed),
            noise=False,
            fixed_fractions=fixed_fractions,
        )

    def begin(self, obs: NDArray[np.uint8], info: dict[str, Any]) -> None:
        """The first observations."""
        self._player.begin(obs, episode_start=info["episode_start"], epsilon=self.epsilon)

    def act(self) -> NDArray[np.int64]:
        """Actions [E]."""
        return self._player.act()

    def receive(
        self, obs: NDArray[np.uint8], reward: NDArray[np.float32], info: dict[str, Any]
    ) -> None:
        """What followed."""
        self._player.receive(
            obs,
            reward,
            terminated=False,
            episode_start=info["episode_start"],
            life_loss=info["life_loss"],
            epsilon=self.epsilon,
        )


_Player = _RandomPlayer | _NetworkPlayer


def _play(
    env: GameVecEnv,
    player: _Player,
    counted: EpisodeCounter,
    on_step: OnStep | None,
    stop: Callable[[], bool],
) -> None:
    """Until all episodes are counted; their last observation is shown too."""
    obs, info = env.reset()
    player.begin(obs, info)
    reward = np.zeros(env.num_envs, np.float32)
    while True:
        action = player.act()
        if on_step is not None:
            on_step(
                PlayStep(
                    obs=obs,
                    reward=reward,
                    info=info,
                    action=action,
                    actor=player.actor,
                    frame_channels=env.step_spec.channels,
                )
            )
        if counted.done:
            break
        if stop():
            raise Interrupted
        obs, reward, _, _, info = env.step(action)
        player.receive(obs, reward, info)
        counted.step(info)


def _make_actor(network: QNetwork, config: Config, env: GameVecEnv) -> Actor:
    num_actions, known = len(env.action_meanings), network.head.num_actions
    if known != num_actions:
        raise ValueError(f"{env.game}: has {num_actions} actions, the network was made for {known}")
    return Actor(
        network,
        num_envs=env.num_envs,
        num_quantiles=config.learner.num_action_quantiles,
        dtype=autocast_dtype(config.learner.precision, next(network.parameters()).device),
        terminal_on_life_loss=env.protocol.terminal_on_life_loss,
    )


def env_seed(seed: int, steps: int = 0) -> int:
    """A seed for environments such that neighbouring seeds share no environment.

    Args:
        seed: of the run.
        steps: where the run goes on; each continuation gets random numbers of its own.
    """
    if steps:
        digest = hashlib.sha256(f"{seed} {steps}".encode()).digest()
        seed = int.from_bytes(digest[:8], "big")
    return seed * 1_000_003 % (2**31 - 4096)
