"""Decoding ahead of the model: threads fill a short queue of batches, so memory stays bounded."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from lookalike.cores import cores
from lookalike.data.images import read_scaled
from lookalike.encoding.preprocessing import Preprocessing
from lookalike.errors import OptionError, UnreadableImage
from lookalike.types import Pixels, Skipped

BATCH_SIZE = 16
S = TypeVar("S")
T = TypeVar("T")


class Source(Protocol):
    """Anything with an id and a path: an `Item`, or a `File`."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def path(self) -> Path: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class File:
    """An image file outside any catalogue; its id is its path as given."""

    id: str
    path: Path


@dataclass(frozen=True)
class Batch:
    """Decoded images: `pixels[m]` is `(n, h, w, 3)` uint8 for preprocessing `m`."""

    ids: tuple[str, ...]
    pixels: tuple[Pixels, ...]
    skipped: tuple[Skipped, ...]
    done: int


def batches(
    sources: Sequence[Source],
    wanted: Sequence[Preprocessing],
    batch_size: int = BATCH_SIZE,
    *,
    ends: Sequence[int] = (),
) -> Generator[Batch, None, None]:
    """Decode each file and prepare it for every preprocessing; unreadable files are reported in their batch.

    Args:
        sources: the files.
        wanted: what each member sees.
        batch_size: files a batch.
        ends: numbers of files, rising, at which a batch ends however few it has.

    Raises:
        OptionError: for a batch size under one.

    """
    distinct = tuple(dict.fromkeys(wanted))
    slot = [distinct.index(p) for p in wanted]
    at_least = [p.at_least for p in distinct]

    def prepare(source: Source) -> tuple[Pixels, ...]:
        pictures = read_scaled(source.path, at_least)
        return tuple(p.pixels(picture) for p, picture in zip(distinct, pictures, strict=True))

    done = 0
    with closing(map_ahead(sources, prepare, batch_size, ends=ends)) as found:
        for results in found:
            good = [(s.id, r) for s, r in results if not isinstance(r, Skipped)]
            stacked = tuple(np.stack([r[i] for _, r in good]) for i in range(len(distinct))) if good else ()
            done += len(results)
            yield Batch(
                tuple(name for name, _ in good),
                tuple(stacked[i] for i in slot) if good else (),
                tuple(r for _, r in results if isinstance(r, Skipped)),
                done,
            )


def map_ahead(
    sources: Sequence[S], prepare: Callable[[S], T], batch_size: int, *, ahead: int = 3, ends: Sequence[int] = ()
) -> Generator[list[tuple[S, T | Skipped]], None, None]:
    """Run `prepare` in threads, a few batches in advance, and yield each batch in order.

    An `UnreadableImage` becomes a `Skipped`; any other error is raised. No batch goes beyond one of `ends`.

    Raises:
        OptionError: for a batch size under one.

    """
    if batch_size < 1:
        raise OptionError(f"the batch size must be at least 1, got {batch_size}.")

    def guarded(source: S) -> T | Skipped:
        try:
            return prepare(source)
        except UnreadableImage as error:
            return Skipped(error.path, error.cause)

    borders = sorted({0, *ends, len(sources)})
    cuts = (
        (start, min(start + batch_size, last))
        for first, last in itertools.pairwise(borders)
        for start in range(first, last, batch_size)
    )
    queue: deque[list[tuple[S, Future[T | Skipped]]]] = deque()
    workers = max(2, cores())
    ahead = max(ahead, -(-2 * workers // batch_size))  # every thread has something to do
    pool = ThreadPoolExecutor(workers)
    try:

        def submit() -> None:
            cut = next(cuts, None)
            if cut is not None:
                queue.append([(s, pool.submit(guarded, s)) for s in sources[slice(*cut)]])

        for _ in range(ahead):
            submit()
        while queue:
            results = [(s, future.result()) for s, future in queue.popleft()]
            submit()
            yield results
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
