"""Data-parallel training in several processes; usually there is only one.

`torchrun` or, on GPUs, `accelerate launch` starts the same command in every process. Each holds a copy of the network
and takes its shard of every batch; gradients are averaged. Embeddings are gathered before the loss, so that losses that
compare images see the whole batch: several processes compute what one would.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from lookalike.errors import ModelError, OptionError

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

# `accelerate launch` sets this variable
_ACCELERATE_VARIABLE = "ACCELERATE_MIXED_PRECISION"


class DistributedContext:
    """The group of processes that train together; this base class is a single process."""

    rank = 0
    world_size = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and reports progress."""
        return self.rank == 0

    @property
    def description(self) -> str:
        """One sentence about the processes for the user; empty for an ordinary single process."""
        if _ACCELERATE_VARIABLE not in os.environ:
            return ""
        return "accelerate started a single process; use torchrun to start several on CPUs"

    def shard(self, rows: np.ndarray) -> np.ndarray:
        """Return this process's contiguous share of some rows; it may be empty."""
        return np.array_split(rows, self.world_size)[self.rank]

    def stride(self, items: Sequence[T]) -> Sequence[T]:
        """Return every n-th item, starting at this process's rank."""
        return items[self.rank :: self.world_size]

    def prepare(self, module: M) -> M:
        """Return the module so that its gradients are averaged over the processes."""
        return module

    def all_reduce_mean(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in place."""

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any]:  # noqa: ARG002
        """Accumulate gradients inside without averaging them over the processes."""
        return contextlib.nullcontext()

    def gather_batch(
        self, projections: torch.Tensor, targets: torch.Tensor, valid: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Concatenate the first `valid` rows of every process in the order of their ranks; gradients flow back."""
        return projections[:valid], targets[:valid]

    def broadcast_from_main(self, make: Callable[[], T]) -> T:
        """Call `make` in the main process; return its result, or raise its exception, in every process."""
        return make()

    def all_gather_object(self, value: T) -> list[T]:
        """Return the value of every process, in the order of their ranks."""
        return [value]

    def close(self) -> None:
        """Leave the group."""


SINGLE_PROCESS = DistributedContext()


class _ProcessGroup(DistributedContext):
    """Several processes, through accelerate."""

    def __init__(self) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
        except ImportError as error:
            raise OptionError(
                "training in several processes needs accelerate, which is not installed; "
                "run: pip install 'lookalike[distributed]'."
            ) from error
        parallel = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=False)
        # the others wait while the main process embeds all images; a process that dies is noticed at once anyway
        patient = InitProcessGroupKwargs(timeout=timedelta(days=7))
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[parallel, patient])
        self.rank = int(self._accelerator.process_index)
        self.world_size = int(self._accelerator.num_processes)

    @property
    def description(self) -> str:
        return f"{self.world_size} processes train together, each on its share of every batch"

    def prepare(self, module: M) -> M:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # accelerate passes deprecated names on to torch
            prepared: M = self._accelerator.prepare_model(module)
        return prepared

    def all_reduce_mean(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            tensor.copy_(self._accelerator.reduce(tensor, reduction="mean"))

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self._accelerator.no_sync(module)
        return context

    def gather_batch(
        self, projections: torch.Tensor, targets: torch.Tensor, valid: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        counts = self.all_gather_object(valid)
        rows = max(counts)
        missing = max(0, rows - len(projections))
        projections = nn.functional.pad(projections, (0, 0, 0, missing))[:rows].contiguous()
        targets = nn.functional.pad(targets, (0, missing))[:rows].contiguous()
        parts = _AllGather.apply(projections), self._accelerator.gather(targets).chunk(self.world_size)
        first, second = (torch.cat([t[:n] for t, n in zip(part, counts, strict=True)]) for part in parts)
        return first, second

    def broadcast_from_main(self, make: Callable[[], T]) -> T:
        from accelerate.utils import broadcast_object_list

        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = make()
            except Exception as error:  # raised in every process below
                outcome[1] = error
        value, failure = broadcast_object_list(outcome)
        if failure is not None:
            raise failure
        return value  # type: ignore[no-any-return]

    def all_gather_object(self, value: T) -> list[T]:
        from accelerate.utils import gather_object

        values: list[T] = gather_object([value])
        return values

    def close(self) -> None:
        self._accelerator.end_training()


class _AllGather(torch.autograd.Function):
    """All-gather with gradients: each process receives the sum of all gradients for its part.

    torch.distributed.nn.functional.all_gather does the same and is deprecated.
    """

    @staticmethod
    def forward(_ctx: Any, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, tensor)
        return tuple(parts)

    @staticmethod
    def backward(_ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        stacked = torch.stack(gradients)
        torch.distributed.all_reduce(stacked)
        return stacked[torch.distributed.get_rank()]


@contextlib.contextmanager
def open_distributed() -> Iterator[DistributedContext]:
    """Join the processes that a launcher started; without one it is a single process.

    Raises `ModelError` if another process dies.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield SINGLE_PROCESS
        return
    group = _ProcessGroup()
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
            group.close()
