"""The processes that train one network together, each on its share of every batch; usually there is one.

Started with `torchrun` or, on GPUs, `accelerate launch`, every process runs the same command. The network is copied to
all of them and its gradients are averaged; the embeddings of a batch are gathered before the loss, so that losses which
compare images, and a neck's batch statistics, see the whole batch: two processes compute what one would.
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
from lookalike.progress import Progress

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


class Team:
    """One process that trains alone."""

    rank = 0
    size = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and talks."""
        return self.rank == 0

    def share(self, rows: np.ndarray) -> np.ndarray:
        """Return this process's share of some rows, in their order; it may be empty."""
        return np.array_split(rows, self.size)[self.rank]

    def prepare(self, module: M) -> M:
        """Return the module so that its gradients are those of all processes."""
        return module

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Put the mean of all processes' tensors in their place."""

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any]:  # noqa: ARG002
        """Inside, gradients are added up without being exchanged."""
        return contextlib.nullcontext()

    def gather(self, projected: torch.Tensor, targets: torch.Tensor, present: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Join the first `present` rows of every process, in the order of the processes."""
        return projected[:present], targets[:present]

    def agree(self, make: Callable[[], T]) -> T:
        """Let the leading process make something, and return what it made, or raise what it raised, everywhere."""
        return make()

    def collect(self, part: T) -> list[T]:
        """Return what each process has, in their order."""
        return [part]

    @property
    def described(self) -> str:
        """What to say of it before training; nothing of a process that was meant to train alone."""
        if _LAUNCHER not in os.environ:
            return ""
        return "accelerate has started one process, which trains alone; on CPUs torchrun starts several"

    def introduce(self, progress: Progress) -> None:
        """Say what it is, if there is something to say."""
        if self.described:
            progress.info(self.described)

    def close(self) -> None:
        """Leave the team."""


_LAUNCHER = "ACCELERATE_MIXED_PRECISION"
"""Set by `accelerate launch`."""

ALONE = Team()


class _Processes(Team):
    """Several processes, through accelerate."""

    def __init__(self) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
        except ImportError as error:
            raise OptionError(
                "training with several processes needs accelerate, which is not installed; "
                "run: pip install 'lookalike[distributed]'."
            ) from error
        ours = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=False)
        # the others wait while the leading process goes through all images; one that has ended is noticed at once
        patient = InitProcessGroupKwargs(timeout=timedelta(days=7))
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[ours, patient])
        self.rank = int(self._accelerator.process_index)
        self.size = int(self._accelerator.num_processes)

    @property
    def described(self) -> str:
        return f"{self.size} processes train together, each on its share of every batch"

    def prepare(self, module: M) -> M:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of names that accelerate passes on to torch
            prepared: M = self._accelerator.prepare_model(module)
        return prepared

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)
            tensor.div_(self.size)

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        quiet: AbstractContextManager[Any] = self._accelerator.no_sync(module)
        return quiet

    def gather(self, projected: torch.Tensor, targets: torch.Tensor, present: int) -> tuple[torch.Tensor, torch.Tensor]:
        counts = [int(n) for n in _all_of(torch.tensor([present], device=projected.device))]
        most = max(counts)
        padding = most - len(projected)
        if padding > 0:
            projected = torch.cat([projected, projected.new_zeros(padding, *projected.shape[1:])])
            targets = torch.cat([targets, targets.new_zeros(padding, *targets.shape[1:])])
        every = _Gathered.apply(projected[:most].contiguous())
        theirs = _all_of(targets[:most].contiguous())
        joined = [torch.cat([t[:n] for t, n in zip(parts, counts, strict=True)]) for parts in (every, theirs)]
        return joined[0], joined[1]

    def agree(self, make: Callable[[], T]) -> T:
        box: list[Any] = [None]
        if self.leads:
            try:
                box = [(make(), None)]
            except Exception as error:  # is raised in every process
                box = [(None, error)]
        torch.distributed.broadcast_object_list(box, src=0)
        made, failure = box[0]
        if failure is not None:
            raise failure
        return made  # type: ignore[no-any-return]

    def collect(self, part: T) -> list[T]:
        parts: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(parts, part)
        return parts

    def close(self) -> None:
        self._accelerator.end_training()


class _Gathered(torch.autograd.Function):
    """What all processes have, in their order; backwards, each gets the sum of what all found for its part."""

    @staticmethod
    def forward(_ctx: Any, own: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(_all_of(own))

    @staticmethod
    def backward(_ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        joined = torch.stack(gradients)
        torch.distributed.all_reduce(joined)
        return joined[torch.distributed.get_rank()]


def _all_of(own: torch.Tensor) -> list[torch.Tensor]:
    out = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(out, own)
    return out


@contextlib.contextmanager
def open_team() -> Iterator[Team]:
    """Join the processes that were started together, if there are several.

    Raises:
        OptionError: accelerate is not installed.
        ModelError: another process ended.

    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield ALONE
        return
    team = _Processes()
    try:
        yield team
    except RuntimeError as error:
        if not any(word in str(error) for word in ("Connection", "gloo", "NCCL", "peer", "Timed out")):
            raise
        raise ModelError(
            f"process {team.rank + 1} of {team.size} lost the others, one of them has ended; "
            "start all of them again with --resume."
        ) from error
    finally:
        with contextlib.suppress(RuntimeError):
            team.close()


def split_evenly(items: Sequence[T], team: Team) -> list[T]:
    """Return every n-th item, beginning with the process's own number."""
    return list(items[team.rank :: team.size])
