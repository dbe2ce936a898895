"""The update: from a batch to new weights, without host synchronisation.

Rainbow's parts, each a switch: quantiles (IQN), double, dueling, n-step, prioritised, noisy; and
Munchausen. All off is DQN. The maths is in `rl_nfm.values.losses`; this file runs the networks and
steps the optimiser. Where batches come from, and where the TD errors go, is not its business:
`agents.training.step` composes it with a replay. Noise is drawn afresh for the online, the
selecting and the target forward. bf16 autocast covers the networks; losses and targets are fp32.

Letters: S observations, T positions, B batch, N, M, K online, target and selecting quantiles.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from agents.learning.network import QNetwork
from agents.replay.buffer import Batch
from rl_nfm.support.optimizer import load_optimizer_state, optimizer_state
from rl_nfm.values import losses


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Options of the update."""

    steps_per_update: Annotated[float, Gt(0)] = 4.0
    """Agent steps, over all environments, per gradient update."""

    discount: Annotated[float, Gt(0), Le(1)] = 0.99
    """gamma, per agent step."""

    n_steps: Annotated[int, Gt(0)] = 3
    """Steps of the return before it bootstraps."""

    reward_clip: Annotated[float, Gt(0)] | None = 1.0
    """Rewards are clipped to plus or minus this; none: raw rewards."""

    double: bool = True
    """The online network selects the action whose value the target network gives."""

    munchausen: bool = False
    """Add the scaled log-policy to the reward and use soft values; refused with `double`."""

    munchausen_alpha: Annotated[float, Ge(0), Le(1)] = 0.9
    """Scale of the log-policy bonus."""

    munchausen_temperature: Annotated[float, Gt(0)] = 0.03
    """Temperature of the softmax policy."""

    munchausen_clip: Annotated[float, Le(0)] = -1.0
    """Lower bound of the log-policy bonus before scaling."""

    value_rescaling_eps: Annotated[float, Ge(0)] | None = None
    """Learn values rescaled by R2D2's h(x) = sign(x) (sqrt(|x| + 1) - 1) + eps x, for raw rewards
    (published: 1e-3); none: values as they are. Refused with `munchausen`."""

    priority: Literal["td_error", "loss"] = "td_error"
    """What a transition's priority is: the mean |TD error|, or its loss (as in SABER)."""

    num_quantiles: Annotated[int, Gt(0)] = 64
    """N: fractions drawn for the online network."""

    num_target_quantiles: Annotated[int, Gt(0)] = 64
    """N': fractions drawn for the target network."""

    num_action_quantiles: Annotated[int, Gt(0)] = 32
    """K: fractions averaged to choose an action, in selection, acting and evaluation."""

    kappa: Annotated[float, Ge(0)] = 1.0
    """Huber threshold; 0: plain quantile loss, or squared error without quantiles."""

    learning_rate: Annotated[float, Gt(0)] = 6.25e-5
    """Adam's, at the start."""

    learning_rate_final: Annotated[float, Ge(0)] | None = None
    """Learning rate at the end of training, reached linearly; none: constant."""

    adam_eps: Annotated[float, Gt(0)] = 1.5e-4
    """Adam's epsilon."""

    max_grad_norm: Annotated[float, Gt(0)] | None = 10.0
    """Global gradient norm is clipped to this; none: not clipped."""

    target_every_updates: Annotated[int, Gt(0)] = 2000
    """Updates between hard copies to the target network."""

    target_tau: Annotated[float, Gt(0), Le(1)] | None = None
    """Share of the online weights mixed into the target at every update; none: hard copies."""

    acting_lag: Annotated[int, Ge(0), Le(1)] | None = None
    """1: acting uses the weights from before the updates in flight, so that both run at the same
    time; 0: it waits for them. None: 1 on a GPU, 0 on a CPU."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 autocast where the processor computes in it natively, else fp32. With bf16 on a
    GPU, matrix products that autocast leaves alone take TF32."""

    compile: bool | Literal["auto"] = False
    """torch.compile the loss; auto: on a GPU only. Presets say so where it was measured to pay."""

    cuda_graph: bool = True
    """Capture the update as one CUDA graph (on a GPU only)."""

    def __post_init__(self) -> None:
        if self.munchausen and self.double:
            raise ValueError("munchausen: True is not allowed together with double (set it False)")
        if self.munchausen and self.value_rescaling_eps is not None:
            raise ValueError(
                f"value_rescaling_eps: {self.value_rescaling_eps} is not allowed together with "
                "munchausen, whose log-policy is in units of the reward (allowed: none)"
            )


def native_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run in hardware there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported())


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """bf16, or None for plain fp32."""
    use = precision == "bf16" or (precision == "auto" and native_bf16(device))
    return torch.bfloat16 if use else None


class Learner:
    """Owns the training state of both networks; `update(batch)` is one gradient step."""

    def __init__(
        self,
        config: LearnerConfig,
        online: QNetwork,
        target: QNetwork,
        *,
        device: torch.device,
    ):
        self.config, self.online, self.target, self.device = config, online, target, device
        target.load_state_dict(online.state_dict())
        target.requires_grad_(False)
        self.learning_rate = torch.tensor(config.learning_rate, device=device)
        cuda = device.type == "cuda"
        self.optimizer = torch.optim.Adam(
            online.parameters(),
            lr=self.learning_rate if cuda else config.learning_rate,
            eps=config.adam_eps,
            fused=True,
            capturable=cuda,
        )
        self._names = [name for name, _ in online.named_parameters()]
        self.updates = 0
        self.dtype = autocast_dtype(config.precision, device)
        if cuda and self.dtype is not None:
            # Products that stay float32 beside half precision, a recurrent core's above all: TF32,
            # 10 bits of mantissa (bf16: 7), as JAX has it by default, at several times the speed.
            torch.set_float32_matmul_precision("high")
        self._loss = self._compute_loss
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        self._summed_updates = 0
        target.eval()

    @property
    def wants_compile(self) -> bool:
        """Whether the config asks to compile, on this device."""
        asked = self.config.compile
        return self.device.type == "cuda" if asked == "auto" else asked

    def compile(self) -> None:
        """Let `torch.compile` make the loss; the first updates then take seconds to minutes."""
        self._loss = torch.compile(self._compute_loss)

    def set_schedule(self, progress: float) -> None:
        """Set the learning rate for this share of training done, in [0, 1]."""
        config = self.config
        final = config.learning_rate_final
        if final is not None:
            rate = config.learning_rate + progress * (final - config.learning_rate)
            self.learning_rate.fill_(rate)
            if self.device.type != "cuda":
                self.optimizer.param_groups[0]["lr"] = rate

    def update(self, batch: Batch) -> Tensor:
        """One gradient step.

        Returns:
            What each position's priority is made of, float [T, B]: |TD error|, or the loss where
            `priority` says so.
        """
        error = self.gradient_step(batch)
        self.count_update()
        return error

    def gradient_step(self, batch: Batch) -> Tensor:
        """The part of `update` that runs on the device alone, and so can be captured as a graph."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, td_error, q_value = self._loss(batch)
        positions = batch.mask.sum(0).clamp(min=1)
        per_sequence = (loss * batch.mask).sum(0) / positions
        total = (per_sequence * batch.weight).mean()
        total.backward()
        limit = self.config.max_grad_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self.online.parameters(), limit, foreach=True)
        self.optimizer.step()
        if self.config.target_tau is not None:
            self._mix_target(self.config.target_tau)
        self._record(total, td_error, q_value, norm, batch.mask)
        return loss.detach() if self.config.priority == "loss" else td_error

    def count_update(self) -> None:
        """The part of `update` that the host decides: a hard copy to the target when it is due."""
        self.updates += 1
        self._summed_updates += 1
        if self.config.target_tau is None and self.updates % self.config.target_every_updates == 0:
            self._mix_target(1.0)

    def state(self) -> dict[str, Tensor]:
        """What goes on beside the online network, by name: target, optimiser, count of updates."""
        state = {f"target.{name}": value for name, value in self.target.state_dict().items()}
        moments = optimizer_state(self.optimizer, self._names)
        state |= {f"optimizer.{name}": value for name, value in moments.items()}
        return state | {"updates": torch.tensor(self.updates)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave; the online network is loaded by itself.

        Raises:
            RuntimeError: if the target's weights do not fit the network.
            ValueError: if the optimiser's state does not.
            KeyError: if something is missing.
        """
        self.target.load_state_dict(with_prefix(state, "target."))
        load_optimizer_state(self.optimizer, with_prefix(state, "optimizer."), self._names)
        self.updates = int(state["updates"])

    def finite(self) -> bool:
        """Whether all weights and all sums for the metrics are numbers; the host waits for it."""
        tensors = [p.detach() for p in self.online.parameters()]
        weights = torch._foreach_norm(tensors)  # pyright: ignore[reportPrivateImportUsage]
        return bool(torch.isfinite(torch.stack([*weights, self._sums.abs().sum().float()])).all())

    def metrics(self) -> dict[str, float]:
        """Means since the last call: loss, |TD error|, value of the action taken, gradient norm."""
        count, self._summed_updates = self._summed_updates, 0
        if count == 0:
            return {}
        values = (self._sums / count).tolist()
        self._sums.zero_()
        return dict(zip(("loss", "td_error", "q_value", "grad_norm"), values, strict=True))

    def _record(
        self, loss: Tensor, td_error: Tensor, q_value: Tensor, norm: Tensor, mask: Tensor
    ) -> None:
        count = mask.sum().clamp(min=1)
        now = torch.stack(
            [loss.detach(), (td_error * mask).sum() / count, (q_value * mask).sum() / count, norm]
        ).double()
        self._sums.add_(now)

    @torch.no_grad()
    def _mix_target(self, share: float) -> None:
        """Target += share * (online - target), parameters and floating buffers alike."""
        online, target = self.online.state_dict(), self.target.state_dict()
        for name, value in target.items():
            if value.is_floating_point() and share < 1:
                value.lerp_(online[name], share)
            else:
                value.copy_(online[name])

    def _compute_loss(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, |TD error| and value of the action taken, each [T, B]; the last two detached."""
        config = self.config
        first, positions = batch.burn_in_steps, batch.a_tm1.shape[0]
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)
        with autocast:
            ahead = len(batch.obs) if config.double else first + positions
            features = self._unroll(self.online, batch, 0, ahead)  # [S, B, D]
            values, tau = self.online.values(
                features[first : first + positions], config.num_quantiles, noise="batch"
            )
            with torch.no_grad():
                target_t = self._targets(batch, features)
        taken = losses.take_action(values, batch.a_tm1)  # [T, B, N]
        if tau is None:
            loss, td_error = losses.td_loss(taken[..., 0], target_t[..., 0], config.kappa)
        else:
            loss, td_error = losses.quantile_huber_loss(taken, tau, target_t, config.kappa)
        return loss, td_error, taken.detach().mean(-1)

    def _unroll(self, network: QNetwork, batch: Batch, begin: int, end: int) -> Tensor:
        """Features of observations begin..end; only the T trained ones carry gradient."""
        first = batch.burn_in_steps
        last = first + batch.a_tm1.shape[0]
        state, parts = batch.state, []
        recurrent = len(state) > 0
        for piece in (slice(begin, first), slice(max(begin, first), last), slice(last, end)):
            if piece.stop <= piece.start:
                continue
            grad = first <= piece.start < last and torch.is_grad_enabled()
            with torch.set_grad_enabled(grad):
                extras = {name: value[piece] for name, value in batch.extras.items()}
                features, state = network.features(
                    batch.obs[piece], state, batch.reset[piece] if recurrent else None, extras
                )
            parts.append(features)
            if not grad:
                # Casts cached without gradient would hide the weights from the next piece.
                torch.clear_autocast_cache()
        return torch.cat(parts)

    def _targets(self, batch: Batch, online_features: Tensor) -> Tensor:
        """Samples of the target distribution, [T, B, M]."""
        config = self.config
        # Without a state only the bootstrap observations are needed.
        skipped = 0 if batch.state or config.munchausen else batch.a_tm1.shape[0]
        features = self._unroll(self.target, batch, skipped, len(batch.obs))
        index = batch.bootstrap.unsqueeze(-1).expand(-1, -1, features.shape[-1])
        next_features = features.gather(0, index - skipped)
        quantile_t, _ = self.target.values(
            next_features, config.num_target_quantiles, noise="batch"
        )
        if config.munchausen:
            return self._munchausen_targets(batch, features, quantile_t)
        selector = quantile_t
        if config.double:
            chosen = online_features.gather(0, index)
            selector, _ = self.online.values(chosen, config.num_action_quantiles, noise="batch")
        elif self.target.quantiles:
            # Fractions of their own: the maximum over the samples that also give the value would
            # choose their luck (Dopamine and rltime draw anew too).
            selector, _ = self.target.values(
                next_features, config.num_action_quantiles, noise="batch"
            )
        a_t = selector.mean(-2).argmax(-1)  # [T, B]
        value_t = losses.take_action(quantile_t, a_t)
        eps = config.value_rescaling_eps
        if eps is None:
            return losses.bootstrap_target(batch.r_t, batch.discount_t, value_t)
        return losses.rescaled_bootstrap_target(batch.r_t, batch.discount_t, value_t, eps)

    def _munchausen_targets(self, batch: Batch, features: Tensor, quantile_t: Tensor) -> Tensor:
        """Soft targets; the log-policy bonus belongs to the first step of the return."""
        config = self.config
        first = batch.burn_in_steps
        present = features[first : first + batch.a_tm1.shape[0]]
        q_tm1 = self.target.values(present, config.num_target_quantiles, noise="batch")[0].mean(-2)
        bonus = losses.munchausen_bonus(
            q_tm1,
            batch.a_tm1,
            config.munchausen_alpha,
            config.munchausen_temperature,
            config.munchausen_clip,
        )
        value_t = losses.munchausen_value(quantile_t, config.munchausen_temperature)
        return losses.bootstrap_target(batch.r_t + bonus, batch.discount_t, value_t)


def with_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin so, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
