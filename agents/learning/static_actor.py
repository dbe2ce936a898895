"""An actor that is fed through fixed buffers, so that a GPU can replay it as one graph.

Per environment step the host copies all that is new into one pinned buffer, which crosses in one
copy; one graph is launched, and the actions come back through another pinned buffer. Nothing is
allocated. On the CPU the same code runs without a copy.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
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
    """Acts for E environments: `receive` what they showed, then `act`."""

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
            actor: whose network acts; its state becomes the buffers' business.
            obs_shape: (C, H, W).
            stream: where all work is done.
            graph: capture it (on a GPU only).
            frame_channels: c of C in one of the stacked frames.
            random: what it draws from; None: torch's default generator.
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
        """The first observations [E, C, H, W], which no action led to."""
        self._uploads.fill(
            obs=obs,
            episode_start=episode_start,
            epsilon=epsilon,
            reward=0.0,
            life_loss=False,
            terminated=False,
        )
        self.stream.run(self._uploads.copy)

    def act(self) -> NDArray[np.int64]:
        """Actions upon the last observations, int64 [E]; the host waits for them."""
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
        """What followed the last actions, and the observations to act upon next.

        The host may write its buffers: the actions it has waited for came after their last copy.
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
        actor, given = self.actor, self._uploads.tensors
        last_action, episode_step, *state = self._kept
        actor.last_action, actor.episode_step, actor.state = last_action, episode_step, tuple(state)
        actor.observe(given["reward"], given["life_loss"])
        action = actor.act(
            given["obs"], given["episode_start"], epsilon=given["epsilon"], **self._options
        )
        row = {
            "frame": newest_frame(given["obs"], self._channels),
            "episode_start": given["episode_start"],
        }
        row |= {f"state.{index}": x for index, x in enumerate(state)}
        self._on_act({**row, "action": action, "episode_step": actor.episode_step})
        self._chosen.copy_(action)
        kept = (actor.last_action, actor.episode_step, *actor.state)
        for buffer, new in zip(self._kept, kept, strict=True):
            buffer.copy_(new)

    def _report(self) -> None:
        given = self._uploads.tensors
        self._on_receive(
            {
                "reward": given["reward"],
                "discount": ~given["terminated"],
                "life_loss": given["life_loss"],
            }
        )

    def _download(self) -> None:
        self._actions.copy_(self._chosen, non_blocking=True)
