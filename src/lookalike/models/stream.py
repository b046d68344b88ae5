"""Decoding ahead of the model: threads fill a short queue of batches, so memory stays bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, overload

import numpy as np

from lookalike._cores import cores
from lookalike._strings import PackedStrings
from lookalike.data.images import read_scaled
from lookalike.errors import OptionError, UnreadableImage
from lookalike.models.preprocessing import Preprocessing
from lookalike.types import Pixels, Skipped

BATCH_SIZE = 16
_TOGETHER = 4
"""Files that a thread takes at once, where there are many: handing over each costs a tenth of decoding it."""
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


class Files(Sequence[File]):
    """Image files below a folder, kept as text: a file takes some thirty bytes, where paths take hundreds.

    Args:
        root: the folder.
        names: paths relative to it, with forward slashes; they are the ids.

    """

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.root = root
        self._names = names if isinstance(names, PackedStrings) else PackedStrings(names)

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, place: int) -> File: ...
    @overload
    def __getitem__(self, place: slice) -> Files: ...
    def __getitem__(self, place: int | slice) -> File | Files:
        """Return a file, or some of the files; these share the text."""
        if isinstance(place, slice):
            return Files(self.root, self._names[place])
        name = self._names[place]
        return File(name, self.root / name)


@dataclass(frozen=True)
class Batch:
    """Decoded images: `pixels[m]` is `(n, h, w, 3)` uint8 for preprocessing `m`."""

    ids: tuple[str, ...]
    pixels: tuple[Pixels, ...]
    skipped: tuple[Skipped, ...]
    done: int


def batches(
    groups: Sequence[Sequence[Source]], wanted: Sequence[Preprocessing], batch_size: int = BATCH_SIZE
) -> Generator[Batch, None, None]:
    """Decode each file and prepare it for every preprocessing; unreadable files are reported in their batch.

    Args:
        groups: of files; a batch is of one of them.
        wanted: what each member sees.
        batch_size: files a batch.

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
    with closing(map_groups_ahead(groups, prepare, batch_size)) as found:
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
    sources: Sequence[S], prepare: Callable[[S], T], batch_size: int, *, ahead: int = 3
) -> Generator[list[tuple[S, T | Skipped]], None, None]:
    """Run `prepare` in threads, a few batches in advance, and yield each batch in order.

    An `UnreadableImage` becomes a `Skipped`; any other error is raised.

    Raises:
        OptionError: for a batch size under one.

    """
    return map_groups_ahead([sources], prepare, batch_size, ahead=ahead)


def map_groups_ahead(
    groups: Sequence[Sequence[S]], prepare: Callable[[S], T], batch_size: int, *, ahead: int = 3
) -> Generator[list[tuple[S, T | Skipped]], None, None]:
    """Do the same for several groups without a pause between them; a batch is of one of them."""
    if batch_size < 1:
        raise OptionError(f"the batch size must be at least 1, got {batch_size}.")

    def guarded(source: S) -> T | Skipped:
        try:
            return prepare(source)
        except UnreadableImage as error:
            return Skipped(error.path, error.cause)

    cuts = (group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size))
    queue: deque[tuple[Sequence[S], list[Future[list[T | Skipped]]]]] = deque()
    workers = max(2, cores())
    together = max(1, min(_TOGETHER, sum(map(len, groups)) // (4 * workers)))
    ahead = max(ahead, -(-2 * workers // batch_size))  # every thread has something to do
    pool = ThreadPoolExecutor(workers)
    try:

        def submit() -> None:
            cut = next(cuts, None)
            if cut is not None:
                parts = [cut[start : start + together] for start in range(0, len(cut), together)]
                queue.append((cut, [pool.submit(lambda some: [guarded(s) for s in some], part) for part in parts]))

        for _ in range(ahead):
            submit()
        while queue:
            cut, futures = queue.popleft()
            found = [one for future in futures for one in future.result()]
            submit()
            yield list(zip(cut, found, strict=True))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
