"""Building an index block by block, in bounded memory; what a killed run had built is gone on with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lookalike.errors import StorageError
from lookalike.files import digest, write_file, write_json
from lookalike.indexing.faiss_index import FaissIndex
from lookalike.indexing.flat_file import Rows
from lookalike.indexing.kinds import TRAINING_PER_LIST, Kind, lists
from lookalike.indexing.tuning import Point
from lookalike.progress import SILENT, Progress
from lookalike.types import Vectors

_BLOCK = 65_536
_EVERY_S = 60.0
"""Seconds between two copies of an unfinished index: the most that a killed run loses."""
_TRAINED_ON = 10_000
"""Vectors that ranges of 8 bits are learnt from at least."""


class Kept:
    """A folder for what is under way: which kinds were tried, and the index that is being built.

    Args:
        folder: beside the index; None keeps nothing.
        key: of the vectors and the budget; what another left there is passed over.

    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._folder, self._key = folder, key

    def tried(self) -> list[Point] | None:
        """Return what trying the kinds gave, if that was done."""
        if self._folder is None:
            return None
        try:
            found = json.loads((self._folder / "tried.json").read_text(encoding="utf-8"))
            return [Point(**p) for p in found["points"]] if found["key"] == self._key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep_tried(self, points: Sequence[Point]) -> None:
        """Keep what trying the kinds gave."""
        if self._folder is not None:
            write_json(self._folder / "tried.json", {"key": self._key, "points": [p.to_dict() for p in points]})

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

    def _place(self, key: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{digest(self._key, key)}.faiss"


NOTHING_KEPT = Kept(None, "")


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
        kept: is gone on with, and written to from time to time.
        progress: told the number of vectors done.

    """
    key = kind.key(len(rows))
    made = kept.index(key)
    if made is None:
        made = FaissIndex.new(key, dim)
        step = max(1, len(rows) // max(TRAINING_PER_LIST * lists(len(rows)), _TRAINED_ON))
        made.index.train(np.ascontiguousarray(take(rows[::step])))
    clock = time.monotonic()
    for start in range(len(made), len(rows), _BLOCK):
        made.index.add(np.ascontiguousarray(take(rows[start : start + _BLOCK])))
        progress.step(f"building {key}", len(made), len(rows))
        if time.monotonic() - clock > _EVERY_S:
            kept.keep(made)
            clock = time.monotonic()
    return made
