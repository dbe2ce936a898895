"""The acting side of training: plays the environments, and hands every row to the replay.

All that acts belongs to one stream, all that learns, the replay included, to another:

- acting: copy what the environments showed, choose actions, fill a slot of the handover;
- learning: take that slot into the replay; draw, update, write priorities; publish the weights.

Events order them: the replay takes a row once acting has filled its slot, acting fills a slot again
once the replay has taken it, and the weights cross as `ActingWeights` says.
"""

import dataclasses
import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.config import Config
from agents.learning.actor import Actor
from agents.learning.captured import Captured
from agents.learning.learner import Learner
from agents.learning.random_stream import RandomStream
from agents.learning.static_actor import Row, StaticActor
from agents.learning.streams import Event, Stream, make_stream
from agents.replay.buffer import Replay
from agents.training.handover import Handover
from agents.training.weights import ActingWeights, lag_of

MAX_SLOTS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Streams:
    """The two queues of work of a training run."""

    acting: Stream
    learning: Stream

    @classmethod
    def of(cls, device: torch.device) -> "Streams":
        """The streams of this device; acting has priority, since the environments wait for it."""
        return cls(acting=make_stream(device, urgent=True), learning=make_stream(device))

    def finish(self) -> None:
        """Let the host wait until no work is under way.

        Learning has waited for acting to fill the last slot, so it is the last to finish.
        """
        self.learning.finish()


class Collector:
    """Acts for E environments and fills the replay."""

    def __init__(
        self,
        config: Config,
        learner: Learner,
        replay: Replay,
        streams: Streams,
        *,
        terminal_on_life_loss: bool,
    ):
        self.replay, self.streams = replay, streams
        device, num_envs = learner.device, config.env.num_envs
        cuda, lag = device.type == "cuda", lag_of(config.learner, device)
        self.weights = ActingWeights(
            learner.online, lag, acting=streams.acting, learning=streams.learning
        )
        # Taking turns on a CPU, both sides may draw from the one default generator.
        self.random = RandomStream(device, config.seed) if cuda or lag else None
        actor = Actor(
            self.weights.network,
            num_envs=num_envs,
            num_quantiles=config.learner.num_action_quantiles,
            dtype=learner.dtype,
            terminal_on_life_loss=terminal_on_life_loss,
        )
        # rows that acting may be ahead: those of the updates in flight and of the next ones
        ahead = 2 * math.ceil(config.learner.steps_per_update / num_envs)
        self._handover = Handover(_example(replay, actor, device), slots=min(MAX_SLOTS, ahead + 2))
        self._taken: list[Event | None] = [None] * self._handover.slots
        self._rows = 0
        self._add = Captured(
            self._take,
            name="adding to the replay",
            enabled=cuda and config.learner.cuda_graph and replay.capturable,
        )
        self.player = StaticActor(
            actor,
            replay.obs_shape,
            streams.acting,
            graph=config.learner.cuda_graph,
            frame_channels=replay.frame_channels,
            random=self.random,
            on_act=self._fill,
            on_receive=self._close,
        )

    def begin(self, obs: NDArray[Any], info: dict[str, Any], *, epsilon: Tensor) -> None:
        """Take in the first observations, after all environments began new episodes."""
        self.player.begin(obs, episode_start=info["episode_start"], epsilon=epsilon.numpy())

    def act(self) -> NDArray[Any]:
        """Actions at the last observations, int64 [E]; the host waits for nothing else."""
        slot_free = self._taken[self._rows % self._handover.slots]
        if slot_free is not None:
            self.streams.acting.wait(slot_free)
        return self.player.act()

    def receive(
        self,
        obs: NDArray[Any],
        reward: NDArray[Any],
        terminated: NDArray[Any],
        info: dict[str, Any],
        *,
        epsilon: Tensor,
    ) -> None:
        """Take in what the actions led to, and store the completed row in the replay.

        Args:
            obs: uint8 [E, C, H, W].
            reward: raw, [E].
            terminated: game over, bool [E].
            info: of the environments, with `episode_start` and `life_loss`.
            epsilon: of the next actions, float [E] on the host.
        """
        self.player.receive(
            obs,
            reward,
            terminated=terminated,
            episode_start=info["episode_start"],
            life_loss=info["life_loss"],
            epsilon=epsilon.numpy(),
        )
        learning = self.streams.learning
        learning.wait(self.streams.acting.record())
        learning.run(self._add)
        self.replay.count_row()
        self._taken[self._rows % self._handover.slots] = learning.record()
        self._rows += 1

    def state(self) -> dict[str, Tensor]:
        """The state of the random generator, where acting has one of its own."""
        return {} if self.random is None else {"rng": self.random.state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore it after the learner and the replay, and act with its present weights."""
        if self.random is not None and "rng" in state:
            self.random.load_state(state["rng"])
        self.weights.refresh()
        self.player.forget_graphs()
        self._add.forget()

    def _fill(self, row: Row) -> None:
        self._handover.put(row if self.replay.keeps_states else _without_states(row))

    def _close(self, row: Row) -> None:
        self._handover.put(row)
        self._handover.close()

    def _take(self) -> None:
        self.replay.write_row(self._handover.take())


def _example(replay: Replay, actor: Actor, device: torch.device) -> dict[str, Tensor]:
    """A row as acting makes it; the replay stores some of it in smaller types."""
    row = {name: store[0].to(device) for name, store in replay.row_stores.items()}
    row |= {"action": actor.last_action, "episode_step": actor.episode_step}
    if replay.keeps_states:
        row |= {f"state.{index}": x for index, x in enumerate(actor.state)}
    return row


def _without_states(row: Row) -> Row:
    return {name: x for name, x in row.items() if not name.startswith("state.")}
