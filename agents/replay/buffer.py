"""Replay on the learner's device: one uint8 frame per step, stacks rebuilt at sampling.

`Ring` holds the rows and reads them; here they are written, drawn and given priorities.

The row before an episode start is never a start of a transition: it holds the last frame of its
episode (the environment's autoreset step, whose action is ignored), and is what a return that meets
a truncation bootstraps from. A resumed run begins new episodes, so it needs no rule of its own.

Clipping, n-step sums and gamma are applied at sampling, in this order.

Sampling reads `burn_in + T + n` rows; single transitions without state need only two of them.

Shapes: R rows, E environments, B batch, T positions, S observations; C, H, W of stacked frames.
Tests check them in `Batch`, returns and priorities, not here: its small helpers would slow them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

from agents.replay.batch import Batch
from agents.replay.config import ReplayConfig
from agents.replay.layout import make_states
from agents.replay.priorities import Priorities, importance_weights, sequence_priority
from agents.replay.returns import ReturnConfig, n_step_returns
from agents.replay.ring import Ring
from agents.replay.storage import register_storage
from rl_nfm.encoders import State
from rl_nfm.support.ranks import ALONE, Ranks


@register_storage("device")
class Replay(Ring):
    """The buffer. `add` once per environment step, `sample` and `update_priorities` per update."""

    capturable = True
    """Whether adding, sampling and priorities can be parts of a CUDA graph."""

    def __init__(
        self,
        config: ReplayConfig,
        returns: ReturnConfig,
        *,
        num_envs: int,
        obs_shape: tuple[int, int, int],
        frame_channels: int = 1,
        device: torch.device,
        state: State = (),
        ranks: Ranks = ALONE,
    ):
        """Allocate.

        Args:
            config: see `ReplayConfig`.
            returns: how rewards become returns.
            num_envs: E.
            obs_shape: (C, H, W) of stacked frames; one of them is stored.
            frame_channels: c of C in one frame; C / c frames are stacked at sampling.
            device: where everything lives.
            state: an example of the encoder's recurrent state, each [1, ...].
            ranks: of whose replays this is one; importance weights and the largest priority are
                those over all of them.

        Raises:
            ValueError: if the capacity is too small for one sequence.
        """
        self.config, self.returns, self.frame_channels = config, returns, frame_channels
        # priorities that are not used need no maxima either
        self.ranks = ranks if config.priority_exponent else ALONE
        # before the burn-in: the rest of the stack, and at least the row of the last action
        history = max(1, obs_shape[0] // frame_channels - 1)
        self.history_steps = config.burn_in_steps + history
        self.future_steps = config.sequence_steps - 1 + returns.n_steps
        self.stride, rows = config.stride_steps, config.rows(num_envs)
        needed = self.history_steps + self.future_steps + self.stride
        if rows <= needed:
            least = (needed // self.stride + 1) * self.stride * num_envs
            raise ValueError(
                f"capacity_steps: {config.capacity_steps} is not allowed: {num_envs} environments "
                f"with this sequence, stack and n_steps need at least {least}"
            )
        super().__init__(
            rows,
            num_envs,
            obs_shape,
            frame_channels=frame_channels,
            device=device,
            terminal_on_life_loss=returns.terminal_on_life_loss,
        )
        self.priorities = Priorities(self.rows * num_envs, device)
        self.max_priority = torch.ones((), dtype=torch.float64, device=device)
        self.added_rows = 0
        self.recurrent = make_states(config, state, num_envs, device)
        self.beta = torch.zeros((), device=device)  # until learning begins
        self._drawing, self._prioritising = self._draw, self._set_priorities  # or compiled
        self._env = torch.arange(num_envs, device=device)
        self._written = torch.zeros(1, dtype=torch.int64, device=device)  # `added_rows`, there

    @classmethod
    def home(cls, device: torch.device) -> torch.device:
        """Where a replay lives whose learner is on `device`."""
        return device

    def compile(self) -> None:
        """Let `torch.compile` make drawing and priorities: 14 kernels on a GPU instead of 177.

        The uniform numbers that draw then have the 24 bits of float32. Frames are picked as before:
        the compiler would compute their places anew for every pixel.
        """
        if self.ranks.alone:  # a maximum over all ranks would break the graph
            self._drawing = torch.compile(self._draw)
            self._prioritising = torch.compile(self._set_priorities)

    @property
    def steps(self) -> int:
        """Agent steps held now."""
        return min(self.added_rows, self.rows) * self.num_envs

    @property
    def ready(self) -> bool:
        """Whether a first sequence is complete."""
        return self.added_rows > self.history_steps + self.future_steps + self.stride

    def set_schedule(self, progress: float) -> None:
        """Set beta for this share of training done, in [0, 1]."""
        first, last = self.config.priority_beta, self.config.priority_beta_final
        self.beta.fill_(first + progress * (last - first))

    def state(self) -> dict[str, Tensor]:
        """Everything but `row_stores`, by name."""
        state = {
            "priorities": self.priorities.weights,
            "max_priority": self.max_priority,
            "added_rows": torch.tensor(self.added_rows),
        }
        return state | {f"state.{index}": value for index, value in enumerate(self.recurrent)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave; the `row_stores` are filled by the caller.

        Raises:
            KeyError: if something is missing.
        """
        self.added_rows = int(state["added_rows"])
        self._written.fill_(self.added_rows)
        self.priorities.load(state["priorities"])
        self.max_priority.copy_(state["max_priority"])
        for index, store in enumerate(self.recurrent):
            store.copy_(state[f"state.{index}"])

    def add(self, *, state: State = (), **row: Shaped[Tensor, "E ..."]) -> None:
        """Append one row.

        Args:
            state: the encoder's recurrent state before this observation, each [E, ...].
            row: a tensor for each name of `layout.ROW`.
        """
        self.write_row({**row, **{f"state.{index}": x for index, x in enumerate(state)}})
        self.count_row()

    def count_row(self) -> None:
        """The part of `add` that the host does."""
        self.added_rows += 1

    def write_row(self, row: Mapping[str, Shaped[Tensor, "E ..."]]) -> None:
        """The part of `add` that runs on the device alone, and so can be captured as a graph.

        Args:
            row: as for `add`; the recurrent states as `state.0`, ...
        """
        time = self._written  # the row's number, from the first ever written
        for name, store in self.row_stores.items():
            store.index_copy_(0, time % self.rows, row[name][None].to(store.dtype))
        if self.keeps_states:
            # only the states with which a burn-in begins are kept
            begins = (time + self.config.burn_in_steps) % self.stride == 0
            slot = self._state_row(time % self.rows)
            for index, store in enumerate(self.recurrent):
                new = torch.where(begins, row[f"state.{index}"][None], store.index_select(0, slot))
                store.index_copy_(0, slot, new.to(store.dtype))
        self._update_eligible(time)
        time.add_(1)

    @property
    def keeps_states(self) -> bool:
        """Whether rows bring the encoder's recurrent state."""
        return self.config.initial_state == "stored" and len(self.recurrent) > 0

    def _state_row(self, row: Tensor) -> Tensor:
        """Where the state before `row` is kept."""
        return (row + self.config.burn_in_steps) % self.rows // self.stride

    def _update_eligible(self, newest: Tensor) -> None:
        """Let sampling draw the newest complete sequence, and not the one whose past is gone."""
        complete = newest - self.future_steps
        ahead = torch.arange(1, self.config.sequence_steps + 1, device=self.device)
        starts = self.episode_start.index_select(0, (complete + ahead) % self.rows)  # [T, E]
        weight = self.max_priority**self.config.priority_exponent
        admitted = (complete >= self.history_steps) & (complete % self.stride == 0)
        self._write(complete, torch.where(starts.all(0), 0.0, weight), admitted)
        broken = newest - self.rows + self.history_steps
        self._write(broken, torch.zeros_like(weight), newest >= self.rows)

    def _write(self, row: Tensor, weights: Tensor, due: Tensor) -> None:
        """Set the weights of one row where that is due."""
        index = row % self.rows * self.num_envs + self._env
        self.priorities.write(index, torch.where(due, weights, self.priorities.weights[index]))

    def sample(self, batch_size: int) -> Batch:
        """Draw sequences in proportion to their priorities.

        Needs at least one complete sequence, which holds once `min_steps` are gathered. In a very
        small replay all complete ones may begin with the end of an episode; a batch of them has a
        mask of zeros and teaches nothing.
        """
        fields, index, kept = self._drawing(batch_size)
        return Batch(obs=self._pick(index, kept), **fields)

    def recent(
        self, steps: int, num_envs: int
    ) -> tuple[UInt8[Tensor, "S B C H W"], Bool[Tensor, "S B"], dict[str, Shaped[Tensor, "S B"]]]:
        """Observations, resets and extras of the newest rows: S <= steps, B = num_envs."""
        held = min(self.added_rows, self.rows) - self.stack_num  # the oldest lack their past
        age = torch.arange(max(1, min(steps, held)), device=self.device).flip(0)[:, None]
        rows, env = (self.added_rows - 1 - age).expand(-1, num_envs), self._env[:num_envs]
        return self.stacks(rows, env), self._resets(rows, env), self._extras(rows, env)

    def update_priorities(
        self,
        index: Int64[Tensor, " B"],
        td_error: Float[Tensor, "T B"],
        mask: Bool[Tensor, "T B"],
    ) -> None:
        """Set the priorities of sampled sequences.

        Args:
            index: that of the batch.
            td_error: |TD error| of each position.
            mask: that of the batch.
        """
        if self.config.priority_exponent == 0:
            return
        largest = self._prioritising(index, td_error, mask)
        self.max_priority.copy_(self.ranks.maximum(largest))

    def _set_priorities(self, index: Tensor, td_error: Tensor, mask: Tensor) -> Tensor:
        """Write them, and return the largest one ever."""
        # a sequence without a step of its own, drawn where there was no other, is not drawn again
        priority = sequence_priority(td_error, mask, self.config.max_weight) * mask.any(0)
        self.priorities.write(index, priority**self.config.priority_exponent)
        # Returned, because compiled code loses what is copied into a single float64 on a CPU.
        return torch.maximum(self.max_priority, priority.max())

    def _draw(self, batch_size: int) -> tuple[dict[str, Any], Tensor, Tensor]:
        """A batch without its observations, and what `_pick` needs for them."""
        index, probability = self.priorities.sample(batch_size)
        row, env = index // self.num_envs, index % self.num_envs
        burn_in, length = self.config.burn_in_steps, self.config.sequence_steps
        offset = torch.arange(length, device=self.device)[:, None]
        r_t, discount_t, bootstrap_steps = self._returns(row + offset, env)
        mask = ~self._at("episode_start", row + offset + 1, env) & (probability > 0)
        if length == 1 and burn_in == 0 and not self.recurrent:
            rows = torch.cat([row[None], row + bootstrap_steps])  # [2, B]
            bootstrap = torch.ones_like(bootstrap_steps)
        else:
            span = burn_in + length + self.returns.n_steps
            rows = row - burn_in + torch.arange(span, device=self.device)[:, None]
            bootstrap = burn_in + offset + bootstrap_steps
        fields = {
            "state": self._states(rows[0], env),
            "reset": self._resets(rows, env),
            "extras": self._extras(rows, env),
            "a_tm1": self._at("action", row + offset, env).long(),
            "r_t": r_t,
            "discount_t": discount_t,
            "bootstrap": bootstrap,
            "mask": mask,
            "index": index,
            "probability": probability,
            "weight": importance_weights(probability, self.beta, self.ranks),
            "burn_in_steps": burn_in,
        }
        return fields, *self._frames_of(rows, env)

    def _returns(self, rows: Tensor, env: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """n-step return, its discount and the steps m to its bootstrap, each [T, B]."""
        ahead = rows + torch.arange(self.returns.n_steps, device=self.device)[:, None, None]
        alive = self._at("discount", ahead, env)  # [n, T, B]
        if self.returns.terminal_on_life_loss:
            alive = alive & ~self._at("life_loss", ahead, env)
        reward, crosses = self._at("reward", ahead, env), self._at("episode_start", ahead + 1, env)
        return n_step_returns(self.returns, reward, alive, crosses)

    def _states(self, first_row: Tensor, env: Tensor) -> State:
        if self.keeps_states:
            row = self._state_row(first_row % self.rows)
            return tuple(s[row, env] for s in self.recurrent)
        return tuple(s.expand(len(env), *s.shape[1:]) for s in self.recurrent)
