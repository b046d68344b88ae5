"""Building an index block by block, in bounded memory; what a killed run had built is gone on with."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lookalike._files import digest, write_file, write_json
from lookalike._versions import versions_of
from lookalike.errors import StorageError
from lookalike.index.faiss_index import FaissIndex, faiss_version
from lookalike.index.flat_file import Rows
from lookalike.index.kinds import TRAINING_PER_LIST, Kind, lists
from lookalike.index.tuning import Point
from lookalike.progress import SILENT, Progress
from lookalike.types import Vectors

_BLOCK = 65_536
_EVERY_S = 60.0
"""Seconds between two copies of an unfinished index."""
_TRAINED_ON = 10_000
"""Vectors that ranges of 8 bits are learnt from at least."""
_MARK = "building.json"
_TRIED = "tried.json"


class Kept:
    """A folder for what is under way: which kinds were tried, and the indexes that are being built.

    Args:
        folder: beside the index, made when there is something to keep; None keeps nothing.

    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._vectors = ""

    def begin(self, vectors: Callable[[], str]) -> None:
        """Say which vectors these will be of, by their digest; what was made of others is passed over.

        Raises:
            StorageError: the folder holds something else, or cannot be written.

        """
        folder = self._folder
        if folder is None:
            return
        if folder.exists() and not (folder / _MARK).is_file():
            raise StorageError(f"{folder} already exists and was not made for building an index; rename or remove it.")
        self._vectors = digest(vectors(), str(versions_of("lookalike")), faiss_version())
        write_json(folder / _MARK, {"vectors": self._vectors})

    def tried(self, budget: str) -> list[Point]:
        """Return what trying kinds for a budget gave so far."""
        if self._folder is None:
            return []
        try:
            found = json.loads((self._folder / _TRIED).read_text(encoding="utf-8"))
            return [Point(**p) for p in found["points"]] if found["key"] == digest(self._vectors, budget) else []
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def keep_tried(self, budget: str, points: list[Point]) -> None:
        """Keep what trying kinds gave."""
        if self._folder is not None:
            found = {"key": digest(self._vectors, budget), "points": [p.to_dict() for p in points]}
            write_json(self._folder / _TRIED, found)

    def index(self, key: str) -> FaissIndex | None:
        """Return the unfinished index of this factory string, if there is one."""
        place = self._place(key)
        if place is None or not place.is_file():
            return None
        try:
            return FaissIndex.read(place, key, {}, changed=True)
        except StorageError:
            return None

    def keep(self, made: FaissIndex) -> None:
        """Keep an unfinished index in the place of what there was of it."""
        place = self._place(made.key)
        if place is not None:
            write_file(place, made.write)

    def remove(self) -> None:
        """Remove what was kept, and nothing else."""
        if self._folder is None or not (self._folder / _MARK).is_file():
            return
        with contextlib.suppress(OSError):  # what cannot be removed does no harm
            for file in [*self._folder.glob("*.faiss"), self._folder / _TRIED, self._folder / _MARK]:
                file.unlink(missing_ok=True)
            self._folder.rmdir()

    def _place(self, key: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{digest(self._vectors, key)}.faiss"


NOTHING_KEPT = Kept(None)


def remove_work(folder: Path | str) -> None:
    """Remove what building an index kept in a folder, and the folder if nothing else is in it."""
    Kept(Path(folder)).remove()


def build(
    kind: Kind,
    take: Callable[[Rows], Vectors],
    rows: Rows,
    dim: int,
    *,
    kept: Kept = NOTHING_KEPT,
    progress: Progress = SILENT,
) -> FaissIndex:
    """Build an index of these rows in their order.

    Args:
        kind: of index.
        take: returns the vectors `(n, dim)` of rows.
        rows: which.
        dim: dimensions of a vector.
        kept: is gone on with, and written to once the index has learnt, and from time to time.
        progress: told the number of vectors done.

    """
    key = kind.key(len(rows), dim)
    made = kept.index(key)
    if made is None:
        made = FaissIndex.new(key, dim)
        most = max(TRAINING_PER_LIST * lists(len(rows)), _TRAINED_ON)
        progress.step(f"building {key}", 0, len(rows))
        made.train(np.ascontiguousarray(take(evenly(rows, most))))
        kept.keep(made)
    clock = time.monotonic()
    for start in range(len(made), len(rows), _BLOCK):
        made.index.add(np.ascontiguousarray(take(rows[start : start + _BLOCK])))
        progress.step(f"building {key}", len(made), len(rows))
        if time.monotonic() - clock > _EVERY_S:
            kept.keep(made)
            clock = time.monotonic()
    return made


def evenly(rows: Rows, most: int) -> Rows:
    """Return at most so many rows, evenly spaced from the first to the last."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most, dtype=np.int64)]
