"""Replay on the learner's device: one uint8 frame per step, stacks rebuilt at sampling.

Layout: one ring per environment, all written in lockstep, so a row is a time step of all of them:
every store is [rows, num_envs, ...]. A stored row t holds the newest frame of the observation, the
action taken on it, the raw reward and discount (0 or 1) that followed, and two borders:
`episode_start` (the frame is the first of an episode: it cuts stacks) and `life_loss` (the step
lost a life: it ends the return where the protocol says so; stacks go on).

The row before an episode start is never a start of a transition: it holds the last frame of its
episode (the environment's autoreset step, whose action is ignored), and is what a return that meets
a truncation bootstraps from. A resumed run begins new episodes, so its cut needs no own rule.

Clipping, n-step sums and gamma are applied at sampling, in this order.

Sampling reads sequences of `burn_in + T` positions and n rows more; for an encoder without state,
T = 1 and no burn-in, only the two rows that are needed.

Letters: R rows, E environments, B batch, T positions, S observations.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from agents.replay.priorities import Priorities
from rl_nfm.encoders import State


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Size and sampling of the replay buffer."""

    capacity_steps: Annotated[int, Gt(0)] = 1_000_000
    """Agent steps kept, over all environments; 7.1 kB each."""

    min_steps: Annotated[int, Gt(0)] = 20_000
    """Agent steps gathered before learning begins."""

    batch_size: Annotated[int, Gt(0)] = 32
    """Transitions, or sequences, per update."""

    priority_exponent: Annotated[float, Ge(0), Le(1)] = 0.5
    """Exponent of prioritised replay; 0 samples uniformly."""

    priority_beta: Annotated[float, Ge(0), Le(1)] = 0.4
    """Exponent of the importance weights at the start; annealed to `priority_beta_final`."""

    priority_beta_final: Annotated[float, Ge(0), Le(1)] = 1.0
    """Exponent of the importance weights at the end of training."""

    sequence_steps: Annotated[int, Gt(0)] = 1
    """Positions T trained in one sequence (recurrent encoders)."""

    burn_in_steps: Annotated[int, Ge(0)] = 0
    """Positions before them that only warm up the recurrent state."""

    overlap_steps: Annotated[int, Ge(0)] = 0
    """Steps shared by neighbouring sequences; below `sequence_steps`."""

    initial_state: Literal["stored", "zero"] = "stored"
    """What a sequence's recurrent state begins with: the one met when acting, or zeros."""

    max_weight: Annotated[float, Ge(0), Le(1)] = 0.9
    """Priority of a sequence: this times the largest plus the rest times the mean |TD error|."""

    @property
    def stride_steps(self) -> int:
        """Rows from the beginning of one sequence to that of the next."""
        return self.sequence_steps - self.overlap_steps

    def rows(self, num_envs: int) -> int:
        """Rows kept of so many environments: whole ones, and a whole number of strides."""
        return self.capacity_steps // num_envs // self.stride_steps * self.stride_steps

    def __post_init__(self) -> None:
        if self.overlap_steps >= self.sequence_steps:
            raise ValueError(
                f"overlap_steps: {self.overlap_steps} is not allowed: must be below "
                f"sequence_steps ({self.sequence_steps})"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReturnConfig:
    """How rewards become n-step returns."""

    n_steps: int
    discount: float
    reward_clip: float | None
    terminal_on_life_loss: bool


@dataclasses.dataclass(kw_only=True)
class Batch:
    """A sample. S is burn-in + T + n, or without a state 2: the first and the bootstrap's."""

    obs: Tensor
    """uint8 [S, B, C, H, W]."""
    state: State
    """Recurrent state before the first observation, each [B, ...]."""
    reset: Tensor
    """bool [S, B]: the state is zeroed before this observation."""
    extras: dict[str, Tensor]
    """`last_action`, `last_reward`, `episode_step`, all [S, B]."""
    a_tm1: Tensor
    """int64 [T, B]."""
    r_t: Tensor
    """Clipped and discounted n-step return without the bootstrap, float [T, B]."""
    discount_t: Tensor
    """gamma^m times the stored discounts, float [T, B]."""
    bootstrap: Tensor
    """int64 [T, B]: position in S of the observation to bootstrap from."""
    mask: Tensor
    """bool [T, B]: false where the position is an episode's last frame, which is no transition."""
    index: Tensor
    """int64 [B], for `update_priorities`."""
    probability: Tensor
    """float64 [B], of drawing this sequence."""
    weight: Tensor
    """Importance weights, float [B]."""
    burn_in_steps: int
    """Observations before the first of the T positions."""


class Replay:
    """The buffer. `add` once per environment step, `sample` and `update_priorities` per update."""

    def __init__(
        self,
        config: ReplayConfig,
        returns: ReturnConfig,
        *,
        num_envs: int,
        obs_shape: tuple[int, int, int],
        device: torch.device,
        state: State = (),
    ):
        """Allocate.

        Args:
            config: see `ReplayConfig`.
            returns: how rewards become returns.
            num_envs: E.
            obs_shape: (C, H, W); C frames are stacked at sampling, one is stored.
            device: where everything lives.
            state: an example of the encoder's recurrent state, each [1, ...].

        Raises:
            ValueError: if the capacity is too small for one sequence.
        """
        self.config, self.returns, self.num_envs, self.device = config, returns, num_envs, device
        self.obs_shape = obs_shape
        self.stack_num, height, width = obs_shape
        # before the burn-in: the rest of the stack, and at least the row of the last action
        self.history_steps = config.burn_in_steps + max(1, self.stack_num - 1)
        self.future_steps = config.sequence_steps - 1 + returns.n_steps
        self.stride = config.stride_steps
        self.rows = config.rows(num_envs)
        needed = self.history_steps + self.future_steps + self.stride
        if self.rows <= needed:
            least = (needed // self.stride + 1) * self.stride * num_envs
            raise ValueError(
                f"capacity_steps: {config.capacity_steps} is not allowed: {num_envs} environments "
                f"with this sequence, stack and n_steps need at least {least}"
            )

        def store(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(self.rows, num_envs, *shape, dtype=dtype, device=device)

        self.frame = store(height, width, dtype=torch.uint8)
        self.action = store(dtype=torch.uint8)
        self.reward = store(dtype=torch.float32)
        self.discount = store(dtype=torch.bool)
        self.episode_start = store(dtype=torch.bool)
        self.life_loss = store(dtype=torch.bool)
        self.episode_step = store(dtype=torch.int32)
        self.priorities = Priorities(self.rows * num_envs, device)
        self.max_priority = torch.ones((), dtype=torch.float64, device=device)
        self.added_rows = 0
        keep_state = config.initial_state == "stored"
        state_rows = self.rows // self.stride
        self.recurrent = tuple(
            torch.zeros(state_rows, num_envs, *s.shape[1:], device=device) if keep_state else s
            for s in state
        )
        self.beta = torch.zeros((), device=device)  # until learning begins
        self._env = torch.arange(num_envs, device=device)
        self._written = torch.zeros(1, dtype=torch.int64, device=device)  # `added_rows`, there

    @property
    def steps(self) -> int:
        """Agent steps held now."""
        return min(self.added_rows, self.rows) * self.num_envs

    @property
    def ready(self) -> bool:
        """Whether a first sequence is complete."""
        return self.added_rows > self.history_steps + self.future_steps + self.stride

    @property
    def row_stores(self) -> dict[str, Tensor]:
        """Everything kept per row and written once, by name, each [R, E, ...]."""
        names = ("frame", "action", "reward", "discount", "episode_start", "life_loss")
        return {name: getattr(self, name) for name in (*names, "episode_step")}

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

    def add(
        self,
        *,
        frame: Tensor,
        action: Tensor,
        reward: Tensor,
        discount: Tensor,
        episode_start: Tensor,
        life_loss: Tensor,
        episode_step: Tensor,
        state: State = (),
    ) -> None:
        """Append one row.

        Args:
            frame: newest frame of the observation acted on, uint8 [E, H, W].
            action: [E].
            reward: raw, of the step that followed, [E].
            discount: 0 where that step ended the game, else 1, [E].
            episode_start: the frame is the first of an episode, bool [E].
            life_loss: that step lost a life, bool [E].
            episode_step: steps since the episode began, at this frame, [E].
            state: recurrent state before this observation, each [E, ...].
        """
        self.write_row(
            {
                "frame": frame,
                "action": action,
                "reward": reward,
                "discount": discount,
                "episode_start": episode_start,
                "life_loss": life_loss,
                "episode_step": episode_step,
                **{f"state.{index}": value for index, value in enumerate(state)},
            }
        )
        self.count_row()

    def count_row(self) -> None:
        """The part of `add` that the host does."""
        self.added_rows += 1

    def write_row(self, row: Mapping[str, Tensor]) -> None:
        """The part of `add` that runs on the device alone, and so can be captured as a graph.

        Args:
            row: as for `add`; the recurrent states as `state.0`, ...
        """
        time = self._written  # the row's number, from the first ever written
        for name, store in self.row_stores.items():
            store.index_copy_(0, time % self.rows, row[name][None].to(store.dtype))
        if self.keeps_states:
            # the state of the sequence that begins behind the burn-in; others are not kept
            begins = (time + self.config.burn_in_steps) % self.stride == 0
            at = self._state_row(time % self.rows)
            for index, kept in enumerate(self.recurrent):
                new = torch.where(begins, row[f"state.{index}"][None], kept.index_select(0, at))
                kept.index_copy_(0, at, new.to(kept.dtype))
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
        """Let in the sequence that just became complete; put out the one that lost its past."""
        complete = newest - self.future_steps
        ahead = torch.arange(1, self.config.sequence_steps + 1, device=self.device)
        starts = self.episode_start.index_select(0, (complete + ahead) % self.rows)  # [T, E]
        weight = self.max_priority**self.config.priority_exponent
        let_in = (complete >= self.history_steps) & (complete % self.stride == 0)
        self._write(complete, torch.where(starts.all(0), 0.0, weight), let_in)
        broken = newest - self.rows + self.history_steps
        self._write(broken, torch.zeros_like(weight), newest >= self.rows)

    def _write(self, row: Tensor, weights: Tensor, due: Tensor) -> None:
        """Set the weights of one row where that is due."""
        index = row % self.rows * self.num_envs + self._env
        self.priorities.write(index, torch.where(due, weights, self.priorities.weights[index]))

    def sample(self, batch_size: int) -> Batch:
        """Draw sequences in proportion to their priorities.

        Needs at least one complete sequence, which holds once `min_steps` are gathered.
        """
        index, probability = self.priorities.sample(batch_size)
        row, env = index // self.num_envs, index % self.num_envs
        burn_in, length = self.config.burn_in_steps, self.config.sequence_steps
        offset = torch.arange(length, device=self.device)[:, None]
        r_t, discount_t, bootstrap_steps = self._returns(row + offset, env)
        mask = ~self._at(self.episode_start, row + offset + 1, env)
        if length == 1 and burn_in == 0 and not self.recurrent:
            rows = torch.cat([row[None], row + bootstrap_steps])  # [2, B]
            bootstrap = torch.ones_like(bootstrap_steps)
        else:
            span = burn_in + length + self.returns.n_steps
            rows = row - burn_in + torch.arange(span, device=self.device)[:, None]
            bootstrap = burn_in + offset + bootstrap_steps
        return Batch(
            obs=self.stacks(rows, env),
            state=self._states(rows[0], env),
            reset=self._resets(rows, env),
            extras=self._extras(rows, env),
            a_tm1=self._at(self.action, row + offset, env).long(),
            r_t=r_t,
            discount_t=discount_t,
            bootstrap=bootstrap,
            mask=mask,
            index=index,
            probability=probability,
            weight=importance_weights(probability, self.beta),
            burn_in_steps=burn_in,
        )

    def update_priorities(self, index: Tensor, td_error: Tensor, mask: Tensor) -> None:
        """Set the priorities of sampled sequences.

        Args:
            index: int64 [B] of a batch.
            td_error: |TD error|, float [T, B].
            mask: of the batch, bool [T, B].
        """
        if self.config.priority_exponent == 0:
            return
        error = td_error.double() * mask
        mean = error.sum(0) / mask.sum(0).clamp(min=1)
        eta = self.config.max_weight
        priority = eta * error.amax(0) + (1 - eta) * mean + 1e-6
        self.max_priority.copy_(torch.maximum(self.max_priority, priority.max()))
        self.priorities.write(index, priority**self.config.priority_exponent)

    def stacks(self, rows: Tensor, env: Tensor) -> Tensor:
        """Stacked observations, uint8 [S, B, C, H, W], of rows [S, B]; zeros before an episode."""
        age = torch.arange(self.stack_num - 1, -1, -1, device=self.device)  # oldest first
        index = self._flat(rows.unsqueeze(-1) - age, env.unsqueeze(-1))  # [S, B, C]
        frames = self.frame.flatten(0, 1).flatten(1)
        picked = frames.index_select(0, index.reshape(-1)).view(*index.shape, *self.frame.shape[2:])
        # a frame belongs to the stack unless an episode began after it
        start = self.episode_start.view(-1)[index][..., 1:]
        cut = start.flip(-1).cumsum(-1).flip(-1) > 0  # [S, B, C - 1]
        picked[..., :-1, :, :].mul_(~cut[..., None, None])
        return picked

    def _returns(self, rows: Tensor, env: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """n-step return, its discount and the steps m to its bootstrap, each [T, B]."""
        clip, gamma = self.returns.reward_clip, self.returns.discount
        total = torch.zeros(rows.shape, device=self.device)
        discount = torch.ones_like(total)
        inside = torch.ones_like(rows, dtype=torch.bool)
        steps = torch.zeros_like(rows)
        for k in range(self.returns.n_steps):
            if k > 0:
                inside = inside & ~self._at(self.episode_start, rows + k + 1, env)
            reward = self._at(self.reward, rows + k, env)
            if clip is not None:
                reward = reward.clamp(-clip, clip)
            total = total + torch.where(inside, discount * reward, 0.0)
            alive = self._at(self.discount, rows + k, env)
            if self.returns.terminal_on_life_loss:
                alive = alive & ~self._at(self.life_loss, rows + k, env)
            discount = torch.where(inside, discount * gamma * alive, discount)
            steps = steps + inside
        return total, discount, steps

    def _resets(self, rows: Tensor, env: Tensor) -> Tensor:
        reset = self._at(self.episode_start, rows, env)
        if self.returns.terminal_on_life_loss:
            reset = reset | self._at(self.life_loss, rows - 1, env)
        return reset

    def _extras(self, rows: Tensor, env: Tensor) -> dict[str, Tensor]:
        inside = ~self._at(self.episode_start, rows, env)
        return {
            "last_action": self._at(self.action, rows - 1, env).long() * inside,
            "last_reward": self._at(self.reward, rows - 1, env) * inside,
            "episode_step": self._at(self.episode_step, rows, env).long(),
        }

    def _states(self, first_row: Tensor, env: Tensor) -> State:
        if self.keeps_states:
            row = self._state_row(first_row % self.rows)
            return tuple(s[row, env] for s in self.recurrent)
        return tuple(s.expand(len(env), *s.shape[1:]) for s in self.recurrent)

    def _flat(self, rows: Tensor, env: Tensor) -> Tensor:
        return rows % self.rows * self.num_envs + env

    def _at(self, store: Tensor, rows: Tensor, env: Tensor) -> Tensor:
        return store.view(-1)[self._flat(rows, env)]


def importance_weights(probability: Tensor, beta: Tensor) -> Tensor:
    """`(1 / P)^beta`, normalised by the batch maximum (Schaul et al. 2016), float32 [B]."""
    weights = probability.clamp(min=torch.finfo(torch.float64).tiny) ** -beta.double()
    return (weights / weights.max()).float()


def replay_bytes(
    config: ReplayConfig, *, num_envs: int, obs_shape: Sequence[int], state: State
) -> tuple[int, int]:
    """Bytes that the buffer will take: (in all, of which recurrent states)."""
    stride = config.sequence_steps - config.overlap_steps
    steps = config.capacity_steps // num_envs * num_envs
    per_step = obs_shape[-1] * obs_shape[-2] + 1 + 4 + 3 + 4 + 8
    per_state = sum(s[0].numel() * 4 for s in state) if config.initial_state == "stored" else 0
    states = steps // stride * per_state
    return steps * per_step + states, states
