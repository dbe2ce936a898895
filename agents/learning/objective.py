"""What an update minimises: the loss of a batch, and its targets.

Rainbow's parts, each a switch: quantiles (IQN), double, dueling, n-step, noisy; and Munchausen. All
off is DQN. The maths is in `rl_nfm.values.losses`; this file runs the networks. Noise is drawn
afresh for the online, the selecting and the target forward. bf16 autocast covers the networks;
losses and targets are fp32.

Shapes: S observations, T positions, B batch, D features; N, M and K online, target and selecting
quantiles.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from agents.learning.auxiliary import Latents
from agents.learning.config import LearnerConfig
from agents.learning.network import QNetwork
from agents.replay.batch import Batch
from rl_nfm.values import losses


class LossTerms(NamedTuple):
    """One number for each position; TD error and value carry no gradient."""

    loss: Float[Tensor, "T B"]
    """Loss of the values."""
    td_error: Float[Tensor, "T B"]
    """Mean absolute TD error."""
    q_value: Float[Tensor, "T B"]
    """Value of the action taken."""
    auxiliary: dict[str, Float[Tensor, "T B"]]
    """Further terms by name, weighted; what is minimised is the sum of `loss` and these."""


class Objective:
    """The loss of a batch."""

    def __init__(
        self,
        config: LearnerConfig,
        online: QNetwork,
        target: QNetwork,
        *,
        device: torch.device,
        dtype: torch.dtype | None,
    ):
        self.config, self.online, self.target = config, online, target
        self.device, self.dtype = device, dtype
        losses_of_run = online.auxiliary.values()
        self._reads_maps = any(getattr(loss, "reads_maps", False) for loss in losses_of_run)

    def __call__(self, batch: Batch) -> LossTerms:
        """Of each position, without host synchronisation."""
        config = self.config
        first, positions = batch.burn_in_steps, batch.a_tm1.shape[0]
        trained = slice(first, first + positions)
        with self._autocast():
            ahead = len(batch.obs) if config.double else first + positions
            features, maps = self._unroll(self.online, batch, 0, ahead, self._reads_maps)
            values, tau = self.online.values(features[trained], config.num_quantiles, noise="batch")
            with torch.no_grad():
                target_t = self.targets(batch, features)
            latents = Latents(features[trained], None if maps is None else maps[trained])
            auxiliary = self._auxiliary(batch, latents)
        taken = losses.take_action(values, batch.a_tm1)  # [T, B, N]
        if tau is None:
            loss, td_error = losses.td_loss(taken[..., 0], target_t[..., 0], config.kappa)
        else:
            loss, td_error = losses.quantile_huber_loss(taken, tau, target_t, config.kappa)
        value = taken.detach().mean(-1)
        return LossTerms(loss=loss, td_error=td_error, q_value=value, auxiliary=auxiliary)

    def use_target(self, batch: Batch) -> None:
        """Run the target network in the way that the loss runs it."""
        with self._autocast():
            features = self.unroll(self.target, batch, 0, len(batch.obs))
            self.target.values(features, self.config.num_target_quantiles, noise="batch")

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def _auxiliary(self, batch: Batch, latents: Latents) -> dict[str, Tensor]:
        """The terms of the auxiliary losses."""
        terms = {}
        for name, loss in self.online.auxiliary.items():
            term = loss(batch, latents, self.target.encoder)
            if not isinstance(term, Tensor) or term.shape != batch.mask.shape:
                given = tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__
                raise ValueError(
                    f"learner.auxiliary: {name} gave {given}, must be the loss of each position, "
                    f"[T, B] = {tuple(batch.mask.shape)}"
                )
            terms[name] = self.config.auxiliary[name] * term.float()
        return terms

    def unroll(
        self, network: QNetwork, batch: Batch, begin: int, end: int
    ) -> Float[Tensor, "s B D"]:
        """Features of the s observations begin..end; only the T trained ones carry gradient."""
        return self._unroll(network, batch, begin, end, False)[0]

    def _unroll(
        self, network: QNetwork, batch: Batch, begin: int, end: int, with_maps: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Features as `unroll` gives them, and the feature maps where they are asked for."""
        first = batch.burn_in_steps
        last = first + batch.a_tm1.shape[0]
        state, parts, maps = batch.state, [], []
        recurrent = len(state) > 0
        for piece in (slice(begin, first), slice(max(begin, first), last), slice(last, end)):
            if piece.stop <= piece.start:
                continue
            grad = first <= piece.start < last and torch.is_grad_enabled()
            with torch.set_grad_enabled(grad):
                extras = {name: value[piece] for name, value in batch.extras.items()}
                inputs = (
                    batch.obs[piece],
                    state,
                    batch.reset[piece] if recurrent else None,
                    extras,
                )
                if with_maps:
                    features, state, piece_maps = network.encoder.forward_with_maps(*inputs)
                    maps.append(piece_maps)
                else:
                    features, state = network.features(*inputs)
            parts.append(features)
            if (
                piece.start < first
                and torch.is_grad_enabled()
                and not torch.compiler.is_compiling()
            ):
                # Casts cached without gradient would hide the weights from the next piece. The
                # compiler caches none, and up to torch 2.11 its graph would end here.
                torch.clear_autocast_cache()
        return torch.cat(parts), torch.cat(maps) if maps else None

    def targets(
        self, batch: Batch, online_features: Float[Tensor, "s B D"]
    ) -> Float[Tensor, "T B M"]:
        """Samples of the target distribution.

        Args:
            batch: from the replay.
            online_features: of the online network, s = S with `double`, where they choose the
                action; without it they are not read.
        """
        config = self.config
        # Without a state only the bootstrap observations are needed.
        skipped = 0 if batch.state or config.munchausen else batch.a_tm1.shape[0]
        features = self.unroll(self.target, batch, skipped, len(batch.obs))
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
