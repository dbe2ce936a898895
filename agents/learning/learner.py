"""The update: from a batch to new weights, without host synchronisation.

`agents.learning.objective` says what is minimised; this file steps the optimiser, keeps the target
network and the sums for the metrics. Where batches come from, and where the TD errors go, is not
its business: `agents.training.step` composes it with a replay.

Shapes: T positions, B batch.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from agents.learning.compiling import Compile, Compiling
from agents.learning.config import LearnerConfig, autocast_dtype
from agents.learning.narrow import narrow_
from agents.learning.network import QNetwork
from agents.learning.objective import LossTerms, Objective
from agents.replay.batch import Batch
from rl_nfm.support.optimizer import load_optimizer_state, optimizer_state
from rl_nfm.support.ranks import ALONE, Ranks

_Losses = tuple[Tensor, LossTerms, list[Tensor]]
_Loss = Callable[[Batch], _Losses]


class Learner:
    """Owns the training state of both networks; `update(batch)` is one gradient step."""

    def __init__(
        self,
        config: LearnerConfig,
        online: QNetwork,
        target: QNetwork,
        *,
        device: torch.device,
        ranks: Ranks = ALONE,
    ):
        if config.target_tau is not None and any(map(is_parametrized, online.modules())):
            raise ValueError(
                "learner.target_tau: not allowed with spectral norm, whose vectors are no weights "
                "to mix; copy the target instead (none)"
            )
        self.config, self.online, self.target, self.device = config, online, target, device
        self.ranks = ranks
        ranks.copy_first_(list(online.state_dict().values()))
        target.load_state_dict(online.state_dict())
        target.requires_grad_(False)
        self.learning_rate = torch.tensor(config.learning_rate, device=device)
        cuda = device.type == "cuda"
        if cuda:
            _ = self.optimizer
        self._names = [name for name, _ in online.named_parameters()]
        self.updates = 0
        self.dtype = autocast_dtype(config.precision, device)
        if cuda and self.dtype is not None:
            # Products that stay float32 beside half precision, a recurrent core's above all: TF32,
            # 10 bits of mantissa (bf16: 7), as JAX has it by default, at several times the speed.
            torch.set_float32_matmul_precision("high")
        self.objective = Objective(config, online, target, device=device, dtype=self.dtype)
        self.compiling = Compiling(self._total_loss)
        auxiliary = (f"loss/{name}" for name in online.auxiliary)
        self._metrics = ("loss", "td_error", "q_value", "grad_norm", *auxiliary)
        self._sums = torch.zeros(len(self._metrics), dtype=torch.float64, device=device)
        self._summed_updates = 0
        target.eval()
        # Only what a copy replaces as a whole; an auxiliary loss may use the target in its own way.
        self._may_narrow = (
            self.dtype is not None and config.target_tau is None and not online.auxiliary
        )

    @cached_property
    def optimizer(self) -> torch.optim.Adam:
        """Adam; on a CPU made when first needed, since with it PyTorch imports its compiler.

        That takes as long as to import PyTorch, and the environments need not wait for it.
        """
        cuda = self.device.type == "cuda"
        return torch.optim.Adam(
            self.online.parameters(),
            lr=self.learning_rate if cuda else self.config.learning_rate,
            eps=self.config.adam_eps,
            fused=True,
            capturable=cuda,
        )

    def compile(self, how: Compile, *, about: str = "") -> None:
        """Let `torch.compile` make the loss: see `agents.learning.compiling`.

        Args:
            how: always, never, or where that is measured to be quicker.
            about: what the time of an update depends on, beside the learner and its networks.
        """
        # Numbers such as a learning rate do not matter, so that a search measures once.
        options = {
            name: type(value) if isinstance(value, float) else value
            for name, value in dataclasses.asdict(self.config).items()
            if name not in ("compile", "steps_per_update")
        }
        about = f"{self.dtype} {options} {self.online} {about}"
        self.compiling = Compiling(self._total_loss, how, about=about)

    def set_schedule(self, progress: float) -> None:
        """Set the learning rate for this share of training done, in [0, 1]."""
        config = self.config
        final = config.learning_rate_final
        if final is not None:
            rate = config.learning_rate + progress * (final - config.learning_rate)
            self.learning_rate.fill_(rate)
            if self.device.type != "cuda":
                self.optimizer.param_groups[0]["lr"] = rate

    def update(self, batch: Batch) -> Float[Tensor, "T B"]:
        """One gradient step.

        Returns:
            What the priority of each position is made of: |TD error|, or the loss where the option
            `priority` says so.
        """
        error = self.gradient_step(batch)
        self.count_update()
        return error

    def gradient_step(self, batch: Batch) -> Float[Tensor, "T B"]:
        """The part of `update` that runs on the device alone, and so can be captured as a graph."""
        if self._may_narrow:
            self._narrow_target(batch)
        total, terms, means = self.compiling(lambda loss: self._differentiated(loss, batch))
        if not self.ranks.alone:
            self._average_gradients()
        norm = self._clip_gradients()
        self.optimizer.step()
        if self.config.target_tau is not None:
            self._mix_target(self.config.target_tau)
        self._sums.add_(torch.stack([total.detach(), *means[:2], norm, *means[2:]]).double())
        return terms.loss.detach() if self.config.priority == "loss" else terms.td_error

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
        """Means since the last call; docs/metrics.md says of what.

        With several ranks all of them call it, for the means of what each of them has.
        """
        count, self._summed_updates = self._summed_updates, 0
        if count == 0:
            return {}
        sums = self._sums.cpu()
        self.ranks.average_([sums])
        values = (sums / count).tolist()
        self._sums.zero_()
        return dict(zip(self._metrics, values, strict=True))

    def _narrow_target(self, batch: Batch) -> None:
        """From now on a copy to the target casts what autocast would cast at every update."""
        assert self.dtype is not None
        self._may_narrow = False
        # a fake GPU, of which operations are counted, has no generator
        real = self.device.type == "cuda" and torch.cuda.is_available()
        devices = [self.device] if real else []
        with torch.random.fork_rng(devices), torch.no_grad():
            narrow_(self.target, self.dtype, lambda: self.objective.use_target(batch))

    def _clip_gradients(self) -> Tensor:
        """Clip the norm of all gradients, and return what it was."""
        limit = self.config.max_grad_norm or float("inf")
        parameters = list(self.online.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        # To multiply all by 1 takes a fortieth of an update on a CPU, where looking costs nothing.
        if self.device.type != "cpu" or not norm < limit - 1e-5:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm, foreach=True)
        return norm

    def _average_gradients(self) -> None:
        """What one process with the batches of all ranks would have.

        The statistics of batch norm go along: each rank saw those of its own batch.
        """
        gradients = []
        for parameter in self.online.parameters():
            if parameter.grad is None:  # unused in this batch, but perhaps not in another's
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        parameter_names = {name for name, _ in self.online.named_parameters()}
        statistics = [
            value
            for name, value in self.online.state_dict().items()
            if name not in parameter_names and value.is_floating_point()
        ]
        self.ranks.average_([*gradients, *statistics])

    def _differentiated(self, loss: _Loss, batch: Batch) -> _Losses:
        """What the loss gives; its gradients are those of the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = loss(batch)
        losses[0].backward()
        return losses

    def _total_loss(self, batch: Batch) -> _Losses:
        """What is minimised, its terms, and means of them for the metrics."""
        terms = self.objective(batch)
        mask, auxiliary = batch.mask, terms.auxiliary.values()
        loss = sum(auxiliary, start=terms.loss)
        per_sequence = (loss * mask).sum(0)
        if self.config.sequence_loss == "mean":
            per_sequence = per_sequence / mask.sum(0).clamp(min=1)
        total = (per_sequence * batch.weight).mean()
        count = mask.sum().clamp(min=1)
        recorded = (terms.td_error, terms.q_value, *auxiliary)
        return total, terms, [(term.detach() * mask).sum() / count for term in recorded]

    @torch.no_grad()
    def _mix_target(self, share: float) -> None:
        """Target += share * (online - target), parameters and floating buffers alike."""
        online, target = self.online.state_dict(), self.target.state_dict()
        for name, value in target.items():
            if value.is_floating_point() and share < 1:
                value.lerp_(online[name], share)
            else:
                value.copy_(online[name])


def with_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin so, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
