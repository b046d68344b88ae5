"""Data-parallel training in several processes; usually there is only one.

`torchrun` or, on GPUs, `accelerate launch` starts the same command in every process. Each holds a copy of the network
and takes its shard of every batch; gradients are averaged. Embeddings are gathered before the loss, so that losses that
compare images see the whole batch: several processes compute what one would.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lookalike.errors import ModelError

T = TypeVar("T")

# `accelerate launch` sets this variable
_ACCELERATE_VARIABLE = "ACCELERATE_MIXED_PRECISION"


@dataclass(frozen=True)
class DistributedContext:
    """The group of processes that train together, seen from one of them."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and reports progress."""
        return self.rank == 0

    @property
    def description(self) -> str:
        """One sentence about the processes for the user; empty for an ordinary single process."""
        if self.world_size > 1:
            return f"{self.world_size} processes train together, each on its share of every batch"
        if _ACCELERATE_VARIABLE in os.environ:
            return "accelerate started a single process; use torchrun to start several on CPUs"
        return ""

    def shard(self, rows: np.ndarray) -> np.ndarray:
        """Return this process's contiguous share of some rows; it may be empty."""
        return np.array_split(rows, self.world_size)[self.rank]

    def prepare(self, module: nn.Module) -> nn.Module:
        """Return the module so that its gradients are averaged over the processes."""
        if self.world_size == 1:
            return module
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the option's new name is unknown to older torch
            return DistributedDataParallel(module, broadcast_buffers=False)

    def all_reduce_mean(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)
                tensor.div_(self.world_size)

    def gather_batch(
        self, projections: torch.Tensor, targets: torch.Tensor, valid: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Concatenate the first `valid` rows of every process in the order of their ranks; gradients flow back."""
        if self.world_size == 1:
            return projections[:valid], targets[:valid]
        counts = self.all_gather_object(valid)
        rows = max(counts)
        missing = max(0, rows - len(projections))
        projections = nn.functional.pad(projections, (0, 0, 0, missing))[:rows].contiguous()
        targets = nn.functional.pad(targets, (0, missing))[:rows].contiguous()
        parts = (_AllGather.apply(tensor) for tensor in (projections, targets))
        first, second = (torch.cat([t[:n] for t, n in zip(part, counts, strict=True)]) for part in parts)
        return first, second

    def broadcast_from_main(self, make: Callable[[], T]) -> T:
        """Call `make` in the main process; return its result, or raise its exception, in every process."""
        if self.world_size == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = make()
            except Exception as error:  # raised in every process below
                outcome[1] = error
        distributed.broadcast_object_list(outcome)
        value, failure = outcome
        if failure is not None:
            raise failure
        return value  # type: ignore[no-any-return]

    def all_gather_object(self, value: T) -> list[T]:
        """Return the value of every process, in the order of their ranks."""
        values = [value] * self.world_size
        if self.world_size > 1:
            distributed.all_gather_object(values, value)
        return values


SINGLE_PROCESS = DistributedContext()


class _AllGather(torch.autograd.Function):
    """All-gather with gradients: each process receives the sum of all gradients for its part.

    torch.distributed.nn.functional.all_gather does the same and is deprecated.
    """

    @staticmethod
    def forward(_ctx: Any, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, tensor)
        return tuple(parts)

    @staticmethod
    def backward(_ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        stacked = torch.stack(gradients)
        distributed.all_reduce(stacked)
        return stacked[distributed.get_rank()]


@contextlib.contextmanager
def open_distributed() -> Iterator[DistributedContext]:
    """Join the processes that a launcher started; without one it is a single process.

    Raises `ModelError` if another process dies.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield SINGLE_PROCESS
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # the others wait while the main process embeds all images; a process that dies is noticed at once anyway
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=7))
    group = DistributedContext(distributed.get_rank(), distributed.get_world_size())
    try:
        yield group
    except RuntimeError as error:
        if not any(word in str(error) for word in ("Connection", "gloo", "NCCL", "peer", "Timed out")):
            raise
        raise ModelError(
            f"process {group.rank + 1} of {group.world_size} lost its connection because another process died; "
            "start all of them again with `resume`.",
            argument="resume",
        ) from error
    finally:
        with contextlib.suppress(RuntimeError):
            distributed.destroy_process_group()
