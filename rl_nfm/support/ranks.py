"""The processes that torchrun starts for one run ("ranks"), and how they communicate.

Each rank has an equal share of the run's environments, replay and batch, and all ranks hold the
same weights. Gradients, and maxima that an update needs, are reduced on the device that holds them:
on GPUs by NCCL, whose calls are captured in a CUDA graph, and on CPUs by gloo. Decisions of the
host always go through gloo.

A process that torchrun did not start is alone; every method then returns its argument.
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
from torch.distributed.rendezvous import rendezvous

from rl_nfm.support.errors import first_line

TIME_LIMIT = timedelta(minutes=5)
"""How long a rank waits for the others. The end of a process is noticed at once, by its closed
connections; the limit is for a process that hangs, or whose machine is gone."""


class LostRank(ValueError):
    """Another rank of this run has ended or does not answer."""


class FirstRankError(ValueError):
    """The error of rank 0 as the other ranks see it; only rank 0 prints it."""


class OtherRankError(ValueError):
    """The error of a rank other than the first, which nobody else would print."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process and its place among the ranks."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Number of this rank among those on its machine."""
    local_size: int = 1

    @classmethod
    def of_torchrun(cls) -> "Ranks":
        """The ranks that torchrun describes; alone if it did not start this process."""
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
            ValueError: it cannot be split evenly; the message names the option.
        """
        if total % self.size:
            raise ValueError(
                f"{name}: {total} is not allowed with {self.size} ranks (must be a multiple)"
            )
        return total // self.size

    def seed(self, seed: int) -> int:
        """The seed of this rank; that of rank 0 is the run's seed."""
        if self.first:
            return seed
        digest = hashlib.sha256(f"{seed} rank {self.rank}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % 2**31

    def device(self, chosen: torch.device) -> torch.device:
        """The device of this rank, of the kind that the run uses.

        Raises:
            ValueError: there are more ranks than GPUs on this machine.
        """
        if self.alone or chosen.type != "cuda":
            return chosen
        if self.local_size > (count := torch.cuda.device_count()):
            raise ValueError(
                f"nproc-per-node: {self.local_size} is not allowed: this machine has {count} GPUs"
            )
        device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        return device

    @contextlib.contextmanager
    def joined(self, device: torch.device, limit: timedelta = TIME_LIMIT) -> Iterator[None]:
        """A block in which the ranks can communicate and only the first one prints.

        Args:
            device: holds the tensors to reduce.
            limit: how long a rank waits for the others.

        Raises:
            LostRank: a rank does not join, or has gone before the end.
            OtherRankError: a ValueError on a rank other than the first, with the rank's number.
        """
        if self.alone:
            yield
            return
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with self._naming_lost_ranks():
            self._init_process_group(backend, limit)
        try:
            with (
                open(os.devnull, "w", encoding="utf-8") as nowhere,
                contextlib.ExitStack() as redirects,
            ):
                if not self.first:
                    redirects.enter_context(contextlib.redirect_stdout(nowhere))
                yield
            self.agree()  # leave only when no rank needs this one any more
        except ValueError as error:
            if self.first or isinstance(error, FirstRankError):
                raise
            raise OtherRankError(f"rank {self.rank}: {error}") from None
        finally:
            dist.destroy_process_group()

    def _init_process_group(self, backend: str, limit: timedelta) -> None:
        """Begin PyTorch's process group, apart from what earlier tries have left in the store.

        By default torchrun keeps one store over its restarts. A rank that is quick to come back
        would find the address there at which another one listened before, and fail. The ranks of
        several machines may count their restarts differently; they need a rendezvous like c10d,
        which makes a store for each try.
        """
        # Its functions keep, as a default argument, the group that there is at the first import,
        # which Adam makes if no one else. The threads of a kept group would live on until Python
        # ends, and now and then abort it.
        import torch.distributed.nn  # noqa: F401

        if self.local_size < self.size:
            dist.init_process_group(backend, timeout=limit)
            return
        store, rank, size = next(rendezvous("env://", timeout=limit))
        count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(  # pyright: ignore[reportPrivateImportUsage]
            f"restart-{count}", store
        )
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)

    def agree(self, *values: int) -> tuple[int, ...]:
        """The largest of each value over all ranks; also a barrier.

        Raises:
            LostRank: another rank is gone; so do all methods below.
        """
        if self.alone:
            return values
        largest = torch.tensor([0, *values])
        with self._naming_lost_ranks():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return tuple(largest.tolist()[1:])

    def gather(self, value: Any) -> list[Any]:
        """The plain values of all ranks, in their order."""
        if self.alone:
            return [value]
        values = [None] * self.size
        with self._naming_lost_ranks():
            dist.all_gather_object(values, value)
        return values

    def of_first(self, make: Callable[[], Any]) -> Any:
        """The plain value that rank 0 makes, on all ranks; the others wait for it.

        Raises:
            ValueError: `make` failed on rank 0; raised on all ranks, so that none waits for it.
        """
        if self.alone:
            return make()
        made, failure = [None, None], None
        if self.first:
            try:
                made = [make(), None]
            except ValueError as error:
                made, failure = [None, str(error)], error
        with self._naming_lost_ranks():
            dist.broadcast_object_list(made, src=0)
        if made[1] is not None:
            raise failure or FirstRankError(made[1])
        return made[0]

    def copy_first_(self, tensors: Sequence[Tensor]) -> None:
        """Set tensors on all ranks to the values of rank 0, in place."""
        if self.alone:
            return
        for tensor in tensors:
            value = tensor.detach().cpu().contiguous()
            with self._naming_lost_ranks():
                dist.broadcast(value, src=0)
            tensor.detach().copy_(value)

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Set tensors of one type and device to their means over the ranks, by one all-reduce."""
        if self.alone:
            return
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        with self._naming_lost_ranks():
            dist.all_reduce(flat)
        flat.div_(self.size)
        detached = [tensor.detach() for tensor in tensors]
        parts = zip(detached, flat.split([tensor.numel() for tensor in detached]), strict=True)
        # one call for all tensors: on a GPU a kernel for each would cost as much as the all-reduce
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            detached, [part.view(tensor.shape) for tensor, part in parts]
        )

    def maximum(self, value: Tensor) -> Tensor:
        """The largest over all ranks, elementwise, on the same device."""
        if self.alone:
            return value
        largest = value.clone()
        with self._naming_lost_ranks():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest

    @contextlib.contextmanager
    def _naming_lost_ranks(self) -> Iterator[None]:
        """Turn an error that another rank caused into a LostRank with a message of one line."""
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
    return re.sub(r"^\[[^\]]*\] ", "", first_line(error)).split(". ")[0]


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def restarts() -> bool:
    """Whether torchrun will repeat the command when a rank fails."""
    return under_torchrun() and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
