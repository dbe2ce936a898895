"""The rows of all environments, and what is read of them.

Layout: one ring per environment, written in lockstep: every store is [rows, num_envs, ...]. Row t
holds the newest frame of the observation, the action taken on it, the raw reward and discount (0 or
1) that followed, and two borders: `episode_start` (the first frame of an episode, which cuts
stacks) and `life_loss` (the step lost a life: it ends the return where the protocol says so; stacks
go on).

Shapes: R rows, E environments, B batch, S observations; C, H, W of stacked frames.
"""

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from agents.replay.layout import FRAME, make_stores
from agents.replay.stacks import frames_kept, pick_frames


class Ring:
    """The stores, by row number: rows are numbered from the first ever written."""

    def __init__(
        self,
        rows: int,
        num_envs: int,
        obs_shape: tuple[int, int, int],
        *,
        frame_channels: int,
        device: torch.device,
        terminal_on_life_loss: bool,
    ):
        """Allocate.

        Args:
            rows: R.
            num_envs: E.
            obs_shape: (C, H, W) of stacked frames; one of them is stored.
            frame_channels: c of C in one frame; C / c frames are stacked at sampling.
            device: where everything lives.
            terminal_on_life_loss: a lost life resets the encoder's state.
        """
        self.rows, self.num_envs, self.device = rows, num_envs, device
        self.obs_shape, self.stack_num = obs_shape, obs_shape[0] // frame_channels
        self.terminal_on_life_loss = terminal_on_life_loss
        self.row_stores = make_stores(rows, num_envs, obs_shape, device, frame_channels)
        self.frame, self.episode_start = self.row_stores[FRAME], self.row_stores["episode_start"]

    def stacks(
        self, rows: Int64[Tensor, "S B"], env: Int64[Tensor, " B"]
    ) -> UInt8[Tensor, "S B C H W"]:
        """Observations of stacked frames; a frame from before the episode is zeros."""
        return self._pick(*self._frames_of(rows, env))

    def _frames_of(self, rows: Tensor, env: Tensor) -> tuple[Tensor, Tensor]:
        age = torch.arange(self.stack_num - 1, -1, -1, device=self.device)  # oldest first
        index = self._flat(rows.unsqueeze(-1) - age, env.unsqueeze(-1))  # [S, B, stack]
        return index, frames_kept(self.episode_start.view(-1), index)

    def _pick(self, index: Tensor, kept: Tensor) -> Tensor:
        picked = pick_frames(self.frame.flatten(0, 1).flatten(1), index, kept)
        return picked.view(*index.shape[:-1], *self.obs_shape)

    def _resets(self, rows: Tensor, env: Tensor) -> Tensor:
        reset = self._at("episode_start", rows, env)
        if self.terminal_on_life_loss:
            reset = reset | self._at("life_loss", rows - 1, env)
        return reset

    def _extras(self, rows: Tensor, env: Tensor) -> dict[str, Tensor]:
        inside = ~self._at("episode_start", rows, env)
        return {
            "last_action": self._at("action", rows - 1, env).long() * inside,
            "last_reward": self._at("reward", rows - 1, env) * inside,
            "episode_step": self._at("episode_step", rows, env).long(),
        }

    def _flat(self, rows: Tensor, env: Tensor) -> Tensor:
        return rows % self.rows * self.num_envs + env

    def _at(self, name: str, rows: Tensor, env: Tensor) -> Tensor:
        return self.row_stores[name].view(-1)[self._flat(rows, env)]
