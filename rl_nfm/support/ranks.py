"""The processes that torchrun has started for one run ("ranks"), and what they tell each other.

Each rank owns an equal share of what the run has in total, and all of them hold the same weights.
Gradients, and maxima that belong to an update, meet where they lie: on GPUs by NCCL, whose calls
are captured with a CUDA graph, on CPUs by gloo. What the host decides always goes by gloo.

A process that torchrun did not start is alone: every method then gives back what it was given.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TIME_LIMIT = timedelta(minutes=5)
"""For which a rank waits for the others. A process that ends is noticed at once, by its closed
connections; this is for one that stands still, or whose machine is gone."""


class LostRank(ValueError):
    """Another rank of this run has ended, or does not answer."""


class ToldByFirst(ValueError):
    """Rank 0 has failed with the same words, and tells them."""


class OwnError(ValueError):
    """Something that this rank, which is not the first, must tell."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among the others."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the ranks on this machine."""
    local_size: int = 1

    @classmethod
    def of_torchrun(cls) -> "Ranks":
        """As torchrun says; alone where it did not start this process."""
        if not under_torchrun():
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
        return cls(rank=rank, size=size, local_rank=local_rank, local_size=local_size)

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this rank is the one that names the run, logs and evaluates."""
        return self.rank == 0

    def share(self, name: str, total: int) -> int:
        """This rank's part of a total.

        Raises:
            ValueError: it cannot be split evenly; names the option.
        """
        if total % self.size:
            raise ValueError(
                f"{name}: {total} is not allowed with {self.size} ranks (must be a multiple)"
            )
        return total // self.size

    def seed(self, seed: int) -> int:
        """A seed of this rank's own; that of rank 0 is the run's."""
        if self.first:
            return seed
        digest = hashlib.sha256(f"{seed} rank {self.rank}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % 2**31

    def device(self, chosen: torch.device) -> torch.device:
        """This rank's own device of the kind that the run uses.

        Raises:
            ValueError: there are more ranks than GPUs on this machine.
        """
        if self.alone or chosen.type != "cuda":
            return chosen
        if self.local_size > (count := torch.cuda.device_count()):
            raise ValueError(
                f"nproc-per-node: {self.local_size} is not allowed: this machine has {count} GPUs"
            )
        own = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(own)
        return own

    @contextlib.contextmanager
    def joined(self, device: torch.device, limit: timedelta = TIME_LIMIT) -> Iterator[None]:
        """Inside, the ranks can speak to each other, and only the first prints.

        Args:
            device: of the tensors to reduce.
            limit: for which a rank waits for the others.

        Raises:
            LostRank: a rank does not come, or is not there any more at the end.
            OwnError: what goes wrong on another rank than the first, with its number.
        """
        if self.alone:
            yield
            return
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with self._told():
            dist.init_process_group(backend, timeout=limit)
        try:
            with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.ExitStack() as told:
                if not self.first:
                    told.enter_context(contextlib.redirect_stdout(nowhere))
                yield
            self.agree()  # before this one goes, nobody needs it any more
        except ValueError as error:
            if self.first or isinstance(error, ToldByFirst):
                raise
            raise OwnError(f"rank {self.rank}: {error}") from None
        finally:
            dist.destroy_process_group()

    def agree(self, *values: int) -> tuple[int, ...]:
        """The largest of each value over all ranks; also a barrier.

        Raises:
            LostRank: as its name says; likewise for all below.
        """
        if self.alone:
            return values
        largest = torch.tensor([0, *values])
        with self._told():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return tuple(largest.tolist()[1:])

    def gather(self, value: Any) -> list[Any]:
        """The plain values of all ranks, in their order."""
        if self.alone:
            return [value]
        values = [None] * self.size
        with self._told():
            dist.all_gather_object(values, value)
        return values

    def of_first(self, make: Callable[[], Any]) -> Any:
        """The plain value that rank 0 makes, on all ranks; the others wait for it.

        Raises:
            ValueError: on all ranks what rank 0 has failed with, so that none waits for it.
        """
        if self.alone:
            return make()
        made, failure = [None, None], None
        if self.first:
            try:
                made = [make(), None]
            except ValueError as error:
                made, failure = [None, str(error)], error
        with self._told():
            dist.broadcast_object_list(made, src=0)
        if made[1] is not None:
            raise failure or ToldByFirst(made[1])
        return made[0]

    def copy_first_(self, tensors: Sequence[Tensor]) -> None:
        """Give all ranks the values that rank 0 has, in place."""
        if self.alone:
            return
        for tensor in tensors:
            value = tensor.detach().cpu().contiguous()
            with self._told():
                dist.broadcast(value, src=0)
            tensor.detach().copy_(value)

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Set tensors of one type and device to their means over the ranks, by one all-reduce."""
        if self.alone:
            return
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        with self._told():
            dist.all_reduce(flat)
        flat.div_(self.size)
        own = [tensor.detach() for tensor in tensors]
        parts = zip(own, flat.split([tensor.numel() for tensor in own]), strict=True)
        # few kernels, however many tensors: on a GPU each would cost as much as the all-reduce
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            own, [part.view(tensor.shape) for tensor, part in parts]
        )

    def maximum(self, value: Tensor) -> Tensor:
        """The largest over all ranks, elementwise, on the same device."""
        if self.alone:
            return value
        largest = value.clone()
        with self._told():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong inside because of another rank is told in one line."""
        try:
            yield
        except RuntimeError as error:
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                raise  # this stream's capture failed, which is no fault of another rank
            raise LostRank(
                "another rank of this run has ended or does not answer; go on from the last "
                "checkpoint: the same command with --resume RUN, or torchrun --max-restarts "
                f"({_reason(error)})"
            ) from None


ALONE = Ranks()


def _reason(error: RuntimeError) -> str:
    """The part of gloo's text that says what happened: neither its source line nor its advice."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[[^\]]*\] ", "", first).split(". ")[0]


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def restarts() -> bool:
    """Whether torchrun will repeat the command when a rank fails."""
    return under_torchrun() and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
