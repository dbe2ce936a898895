"""The acting side of training: plays the environments, and hands every row to the replay.

All that acts belongs to one stream, all that learns, the replay included, to another:

- acting: copy what the environments showed, choose actions, fill a slot of the handover;
- learning: take that slot into the replay; draw, update, write priorities; publish the weights.

Events order them: the replay takes a row once acting has filled its slot, acting fills a slot again
once the replay has taken it, and the weights cross as `ActingWeights` says.
"""

import dataclasses
import functools
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
    """Acts for E environments, in groups of B, and fills the replay."""

    def __init__(
        self,
        config: Config,
        learner: Learner,
        replay: Replay,
        streams: Streams,
        *,
        terminal_on_life_loss: bool,
        groups: int = 1,
    ):
        """Allocate.

        Args:
            config: of the run.
            learner: whose weights act.
            replay: to fill.
            streams: of acting and of learning.
            terminal_on_life_loss: a lost life ends the return.
            groups: of environments, which act one after the other.
        """
        self.replay, self.streams = replay, streams
        device, num_envs = learner.device, config.env.num_envs
        self._groups, self._each = groups, num_envs // groups
        cuda, lag = device.type == "cuda", lag_of(config.learner, device)
        self.weights = ActingWeights(
            learner.online, lag, acting=streams.acting, learning=streams.learning
        )
        # Taking turns on a CPU, both sides may draw from the one default generator.
        self.random = RandomStream(device, config.seed) if cuda or lag else None
        make_actor = functools.partial(
            Actor,
            self.weights.network,
            num_envs=self._each,
            num_quantiles=config.learner.num_action_quantiles,
            dtype=learner.dtype,
            terminal_on_life_loss=terminal_on_life_loss,
        )
        if learner.dtype is not None and self.random is not None:
            with self.random.drawn():
                self.weights.narrow(learner.dtype, lambda: _show(make_actor(), replay.obs_shape))
        actors = [make_actor() for _ in range(groups)]
        # rows that acting may be ahead: those of the updates in flight and of the next ones
        ahead = 2 * math.ceil(config.learner.steps_per_update / num_envs)
        slots = min(MAX_SLOTS, ahead + 1 + groups)
        example = _example(replay, actors[0], num_envs, device)
        self._handover = Handover(example, slots=slots, groups=groups)
        self._taken: list[Event | None] = [None] * slots
        self._acted = [0] * groups
        self._rows = 0
        self._add = Captured(
            self._take,
            name="adding to the replay",
            enabled=cuda and config.learner.cuda_graph and replay.capturable,
        )
        self.players = [
            StaticActor(
                actor,
                replay.obs_shape,
                streams.acting,
                graph=config.learner.cuda_graph,
                frame_channels=replay.frame_channels,
                random=self.random,
                on_act=functools.partial(self._fill, group),
                on_receive=functools.partial(self._close, group),
            )
            for group, actor in enumerate(actors)
        ]

    def begin(
        self, group: int, obs: NDArray[Any], info: dict[str, Any], *, epsilon: Tensor
    ) -> None:
        """Take in the first observations of a group, whose environments began new episodes."""
        start = info["episode_start"]
        self.players[group].begin(obs, episode_start=start, epsilon=self._part(epsilon, group))

    def act(self, group: int) -> NDArray[Any]:
        """Actions at a group's last observations, int64 [B]; the host waits for nothing else."""
        slot_free = self._taken[self._acted[group] % self._handover.slots]
        if slot_free is not None:
            self.streams.acting.wait(slot_free)
        self._acted[group] += 1
        return self.players[group].act()

    def receive(
        self,
        group: int,
        obs: NDArray[Any],
        reward: NDArray[Any],
        terminated: NDArray[Any],
        info: dict[str, Any],
        *,
        epsilon: Tensor,
    ) -> None:
        """Take in what a group's actions led to; the last group completes the row of the replay.

        Args:
            group: index of the group of B environments; all must come in turn.
            obs: uint8 [B, C, H, W].
            reward: raw, [B].
            terminated: game over, bool [B].
            info: of the environments, with `episode_start` and `life_loss`.
            epsilon: of the next actions of all environments, float [E] on the host.
        """
        self.players[group].receive(
            obs,
            reward,
            terminated=terminated,
            episode_start=info["episode_start"],
            life_loss=info["life_loss"],
            epsilon=self._part(epsilon, group),
        )
        if group < self._groups - 1:
            return
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
        # A run that goes on on another kind of device has a generator of another kind.
        if self.random is not None and self.random.takes(state.get("rng")):
            self.random.load_state(state["rng"])
        self.weights.refresh()
        for player in self.players:
            player.forget_graphs()
        self._add.forget()

    def _part(self, epsilon: Tensor, group: int) -> NDArray[Any]:
        return epsilon.numpy()[group * self._each :][: self._each]

    def _fill(self, group: int, row: Row) -> None:
        self._handover.put(row if self.replay.keeps_states else _without_states(row), group)

    def _close(self, group: int, row: Row) -> None:
        self._handover.put(row, group)
        self._handover.close(group)

    def _take(self) -> None:
        self.replay.write_row(self._handover.take())


def _example(
    replay: Replay, actor: Actor, num_envs: int, device: torch.device
) -> dict[str, Tensor]:
    """A row as acting makes it; the replay stores some of it in smaller types."""
    row = {name: store[0].to(device) for name, store in replay.row_stores.items()}
    made = {"action": actor.last_action, "episode_step": actor.episode_step}
    if replay.keeps_states:
        made |= {f"state.{index}": x for index, x in enumerate(actor.state)}
    return row | {name: x.new_zeros(num_envs, *x.shape[1:]) for name, x in made.items()}


def _show(actor: Actor, obs_shape: tuple[int, int, int]) -> None:
    """One act, as all others will be."""
    obs = torch.zeros(len(actor.last_action), *obs_shape, dtype=torch.uint8, device=actor.device)
    actor.act(obs, obs.new_ones(len(obs), dtype=torch.bool), epsilon=0.0, noise=True)


def _without_states(row: Row) -> Row:
    return {name: x for name, x in row.items() if not name.startswith("state.")}
