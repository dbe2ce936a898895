"""An actor whose inputs are fixed buffers, so that a GPU can replay it as one graph.

At each environment step the host writes all new inputs into one pinned buffer, which one copy moves
to the device; one graph is launched, and the actions come back through another pinned buffer.
Nothing is allocated. On the CPU the same code runs without a copy.

Shapes: E environments. They are not checked in tests, because `Stream` is a protocol that cannot be
checked at run time; what passes through here reaches `Actor.act`, whose shapes are checked.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import ArrayLike
from torch import Tensor

from agents.learning.actor import Actor
from agents.learning.captured import Captured
from agents.learning.random_stream import RandomStream
from agents.learning.streams import Stream
from agents.learning.uploads import Uploads
from envs import newest_frame

Row = Mapping[str, Tensor]


def _nothing(_row: Row) -> None:
    pass


class StaticActor:
    """Acts for E environments: `receive` takes what they returned, then `act` chooses actions."""

    def __init__(
        self,
        actor: Actor,
        obs_shape: tuple[int, int, int],
        stream: Stream,
        *,
        graph: bool,
        frame_channels: int = 1,
        random: RandomStream | None = None,
        noise: bool = True,
        fixed_fractions: bool = False,
        on_act: Callable[[Row], object] = _nothing,
        on_receive: Callable[[Row], object] = _nothing,
    ):
        """Allocate.

        Args:
            actor: whose network acts; from now on its state is kept in the buffers here.
            obs_shape: (C, H, W).
            stream: on which all work is done.
            graph: capture it (on a GPU only).
            frame_channels: c of C in one of the stacked frames.
            random: where random numbers come from; None: torch's default generator.
            noise: as for `Actor.act`.
            fixed_fractions: as for `Actor.act`.
            on_act: called on the stream with `frame`, `episode_start`, `action`, `episode_step` and
                `state.0`, ...: the recurrent state before the observation.
            on_receive: likewise with `reward`, `discount` and `life_loss`.
        """
        self.actor, self.stream, self._channels = actor, stream, frame_channels
        self._options = {"noise": noise, "fixed_fractions": fixed_fractions}
        self._on_act, self._on_receive = on_act, on_receive
        num_envs, device = len(actor.last_action), actor.device
        each = (num_envs,)
        self._uploads = Uploads(
            {
                "obs": ((num_envs, *obs_shape), torch.uint8),
                "reward": (each, torch.float32),
                "epsilon": (each, torch.float32),
                "episode_start": (each, torch.bool),
                "life_loss": (each, torch.bool),
                "terminated": (each, torch.bool),
            },
            device,
        )
        cuda = device.type == "cuda"
        self._kept = [x.clone() for x in (actor.last_action, actor.episode_step, *actor.state)]
        self._actions = torch.zeros(num_envs, dtype=torch.int64, pin_memory=cuda)
        self._chosen = torch.zeros(num_envs, dtype=torch.int64, device=device)
        options = {"enabled": graph and cuda, "random": random}
        self._act = Captured(self._choose, name="acting", **options)
        self._receive = Captured(self._report, name="receiving", **options)

    def begin(self, obs: ArrayLike, *, episode_start: ArrayLike, epsilon: ArrayLike) -> None:
        """Take in the first observations [E, C, H, W], which no action led to."""
        self._uploads.fill(
            obs=obs,
            episode_start=episode_start,
            epsilon=epsilon,
            reward=0.0,
            life_loss=False,
            terminated=False,
        )
        self.stream.follow()  # what was made in the constructor, and weights that were loaded
        self.stream.run(self._uploads.copy)

    def act(self) -> Int64[np.ndarray, " E"]:
        """Actions at the last observations; the host waits for them."""
        self.stream.run(self._act)
        self.stream.run(self._download)
        self.stream.record().synchronize()
        return self._actions.numpy().copy()

    def receive(
        self,
        obs: ArrayLike,
        reward: ArrayLike,
        *,
        terminated: ArrayLike,
        episode_start: ArrayLike,
        life_loss: ArrayLike,
        epsilon: ArrayLike,
    ) -> None:
        """Take in what followed the last actions, and the observations to act on next.

        The host may write to its buffers: it has waited for actions that came after the last copy.
        """
        self._uploads.fill(
            obs=obs,
            reward=reward,
            terminated=terminated,
            episode_start=episode_start,
            life_loss=life_loss,
            epsilon=epsilon,
        )
        self.stream.run(self._uploads.copy)
        self.stream.run(self._receive)

    def forget_graphs(self) -> None:
        """Capture anew: after the network's tensors were replaced."""
        self._act.forget()

    def _choose(self) -> None:
        actor, inputs = self.actor, self._uploads.tensors
        last_action, episode_step, *state = self._kept
        actor.last_action, actor.episode_step, actor.state = last_action, episode_step, tuple(state)
        actor.observe(inputs["reward"], inputs["life_loss"])
        action = actor.act(
            inputs["obs"], inputs["episode_start"], epsilon=inputs["epsilon"], **self._options
        )
        row = {
            "frame": newest_frame(inputs["obs"], self._channels),
            "episode_start": inputs["episode_start"],
        }
        row |= {f"state.{index}": x for index, x in enumerate(state)}
        self._on_act({**row, "action": action, "episode_step": actor.episode_step})
        self._chosen.copy_(action)
        next_state = (actor.last_action, actor.episode_step, *actor.state)
        for buffer, new in zip(self._kept, next_state, strict=True):
            buffer.copy_(new)

    def _report(self) -> None:
        inputs = self._uploads.tensors
        self._on_receive(
            {
                "reward": inputs["reward"],
                "discount": ~inputs["terminated"],
                "life_loss": inputs["life_loss"],
            }
        )

    def _download(self) -> None:
        self._actions.copy_(self._chosen, non_blocking=True)
