"""Runs of several processes: how samples are divided, reductions over all ranks, and what happens when a process fails.

`torchrun --nproc-per-node N -m ptgm_fast train ...` starts N processes; each is a rank of one `ProcessGroup`. CPU tensors are
exchanged through gloo, GPU tensors through NCCL. DistributedDataParallel is not used: docs/distributed.md says why.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ptgm_fast.errors import UserError

T = TypeVar("T")
# How long the other ranks wait for rank 0 to report when all have failed in the same way.
_PATIENCE_SECONDS = 2.0


class LostProcess(Exception):
    """A collective could not complete: another process has ended or is unreachable."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run. All ranks must call each method, in the same order; with one process, methods cost nothing."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run folder, prints and evaluates."""
        return self.rank == 0

    def share(self, count: int) -> tuple[int, int]:
        """This rank's contiguous part of `count` items: (offset, number).

        Ranks 0, 1, ... hold the items in order, without overlap; their numbers differ by at most one.
        """
        first = self.rank * count // self.size
        return first, (self.rank + 1) * count // self.size - first

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place; bitwise equal on every rank. No gradient flows."""
        if self.size > 1:
            with _collective():
                dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> Tensor:
        """The ranks' tensors, all of one shape, stacked in rank order: [size, *shape]. No gradient flows."""
        if self.size == 1:
            return values.unsqueeze(0)
        parts = [torch.empty_like(values) for _ in range(self.size)]
        with _collective():
            dist.all_gather(parts, values)
        return torch.stack(parts)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all ranks, with one all-reduce of a flat bucket per dtype."""
        if self.size == 1:
            return
        buckets: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                buckets.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in buckets.values():
            flat = self.sum(torch.cat([g.reshape(-1) for g in gradients]))
            parts = flat.split([g.numel() for g in gradients])
            torch._foreach_copy_(
                gradients, [p.view(g.shape) for p, g in zip(parts, gradients, strict=True)]
            )

    def any(self, wish: bool) -> bool:
        """Whether `wish` is true on any rank. All ranks get the same answer at the same step."""
        return self.least(int(not wish)) == 0

    def least(self, value: int) -> int:
        """The minimum over all ranks. Exchanged between hosts, without waiting for a GPU."""
        if self.size == 1:
            return value
        values = torch.tensor([value], dtype=torch.int64)
        with _collective():
            dist.all_reduce(values, op=dist.ReduceOp.MIN)
        return int(values)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.least(0)

    def from_first(self, make: Callable[[], T]) -> T:
        """Call `make()` on rank 0 only, and return its result on every rank. It must be picklable."""
        if self.size == 1:
            return make()
        made: list[Any] = [make() if self.is_first else None]
        with _collective():
            dist.broadcast_object_list(made, src=0, device=torch.device("cpu"))
        return made[0]

    def collect(self, value: T) -> list[T]:
        """All ranks' values, in rank order, on every rank. They must be picklable."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _collective():
            dist.all_gather_object(values, value)
        return values

    def check_equal(self, state: Mapping[str, Tensor], what: str) -> None:
        """Raises UserError unless `state` is bitwise equal on every rank."""
        if self.size == 1:
            return
        digest = hashlib.sha256()
        for name, value in state.items():
            digest.update(name.encode())
            digest.update(
                value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            )
        if len(set(self.collect(digest.hexdigest()))) > 1:
            raise UserError(
                f"the processes no longer hold the same {what}: their machines compute differently. "
                "Use the same processors, GPUs and library versions for all of them"
            )


def check_share(batch: int, setting: str, group: ProcessGroup) -> None:
    """Raises UserError unless every process gets at least one sample of each batch."""
    if batch < group.size:
        raise UserError(
            f"{setting} = {batch} is too small for {group.size} processes: each needs a sample of every batch. "
            "Raise it, or start fewer processes"
        )


def several_processes() -> bool:
    """Whether this process was started as one of several (by torchrun, which sets WORLD_SIZE)."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


@contextmanager
def _collective() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostProcess(str(error)) from error


@contextmanager
def joined() -> Iterator[ProcessGroup]:
    """Join the run's process group for the block; a group of one unless torchrun started several processes.

    When the block fails on one rank, its exception propagates unchanged, and the other ranks, which wait for that rank in
    vain, exit silently with SystemExit(2). When all fail, rank 0's exception is shown.
    Raises UserError when a process was lost without reporting an error (killed, out of memory, machine down).
    """
    if not several_processes():
        yield ProcessGroup()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set. Start several processes with "
            "torchrun --nproc-per-node N -m ptgm_fast ..., or unset WORLD_SIZE"
        )
    # On import it stores the current group as its functions' default, and would keep that group alive beyond its end, with
    # threads that sometimes crash the interpreter at exit (torch 2.14; the first optimizer imports it). There is no group yet.
    import torch.distributed.nn  # noqa: F401

    store, rank, size = next(dist.rendezvous("env://"))
    # With GPUs, both backends: decisions go through gloo and never wait for a GPU.
    dist.init_process_group(store=dist.PrefixStore("run", store), rank=rank, world_size=size)
    failures = dist.PrefixStore("failures", store)
    group = ProcessGroup(rank, size)
    try:
        yield group
        # Wait until rank 0 has written everything: until then its failure is everyone's.
        group.barrier()
    except LostProcess as lost:
        if not _speaks(failures):
            raise SystemExit(2) from None
        raise UserError(
            f"another of the {size} processes was lost or cannot be reached: {str(lost).splitlines()[0][:200]}\n"
            "A train run continues from its last checkpoint with --resume"
        ) from lost
    except Exception:
        if rank and _wait_for_the_first(failures):
            raise SystemExit(2) from None
        if not _speaks(failures):
            raise SystemExit(2) from None
        raise
    dist.destroy_process_group()


def _speaks(failures: dist.Store) -> bool:
    """Whether this process is the first to report an error. If the store is gone, nobody can tell, so it reports."""
    try:
        return failures.add("reported", 1) == 1
    except RuntimeError:
        return True


def _wait_for_the_first(failures: dist.Store) -> bool:
    """Whether another process reports within `_PATIENCE_SECONDS`."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            if failures.add("reported", 0):
                return True
        except RuntimeError:
            return False
        time.sleep(0.05)
    return False


def own_device(name: str, group: ProcessGroup) -> None:
    """Select the GPU with this process's local rank, if the run is on GPUs (`name`: as config.device).

    Raises UserError if one GPU is named for all processes, or if this machine has fewer GPUs than processes.
    """
    if group.size == 1 or name == "cpu" or not torch.cuda.is_available():
        return
    if ":" in name:
        raise UserError(
            f'device = {name!r} is one device for {group.size} processes; use "cuda" or "auto": each takes its own'
        )
    local, found = int(os.environ.get("LOCAL_RANK", str(group.rank))), torch.cuda.device_count()
    if local >= found:
        raise UserError(
            f"process {local + 1} on this machine has no GPU of its own: there are {found}. "
            f'Use --nproc-per-node {found}, or device = "cpu"'
        )
    torch.cuda.set_device(local)
