"""One state of a changed index: a snapshot, which of its items still exist, and the items that came after it.

A view never changes, so that any number of threads search it without a lock. The next view shares what stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lookalike._strings import PackedStrings
from lookalike._top_k import STEPS, Floats, Ints, cosine_steps, nearest_in_blocks
from lookalike.index.exact import float32_error
from lookalike.index.faiss_index import require_cosines
from lookalike.index.filters import ID, LABEL, Column, Filter, IdColumn, Mask, Value, ValueColumn
from lookalike.index.snapshot import Snapshot
from lookalike.index.store import Ids, IndexedItem, ItemMetadata
from lookalike.types import Vectors

_EXTRA_HITS = 15  # fetched beyond the requested ones, so that ties at the last place are noticed
_GROWTH = 4  # factor by which a search fetches more where ties remain open
_GATHERED = 10_000  # items up to which a filter's items are compared one by one, not by inverted lists
_DEAD = 0.05  # share of removed items in a snapshot above which they are filtered out, not dropped from what is fetched
_CHUNK = 256  # items of a delta whose values are made ready for filters together
_CAPACITY = 64  # vectors that a delta has room for at first


class Delta:
    """The items that were added after a snapshot; append-only, so that views of different ages share it."""

    def __init__(self, dim: int) -> None:
        self.ids: list[str] = []
        self.labels: list[str | None] = []
        self.metadata: list[ItemMetadata] = []
        self.rows: dict[int, int] = {}  # by rid
        self._buffer: Vectors = np.empty((_CAPACITY, dim), np.float32)
        self._columns: dict[tuple[str, int], Column] = {}  # of full chunks, by name and first row

    def __len__(self) -> int:
        return len(self.ids)

    def vectors(self, count: int) -> Vectors:
        """Return the first vectors."""
        return self._buffer[:count]

    def append(self, rids: Sequence[int], items: Sequence[IndexedItem], vectors: Vectors) -> None:
        """Add items; a view of before keeps the old buffer."""
        start, end = len(self), len(self) + len(items)
        if end > len(self._buffer):
            larger = np.empty((max(end, 2 * len(self._buffer)), self._buffer.shape[1]), np.float32)
            larger[:start] = self._buffer[:start]
            self._buffer = larger
        self._buffer[start:end] = vectors
        self.rows.update(zip(rids, range(start, end), strict=True))
        self.labels += [item.label for item in items]
        self.metadata += [item.metadata for item in items]
        self.ids += [item.id for item in items]

    def columns(self, name: str, count: int) -> list[Column]:
        """Return the values of the first items under a name, in chunks."""
        if name == ID:
            return [IdColumn(self.ids[:count], lambda item: self._find(item, count))]
        chunks = []
        for start in range(0, count, _CHUNK):
            chunk = self._columns.get((name, start))
            if chunk is None:
                stop = min(start + _CHUNK, count)
                values = self.labels[start:stop] if name == LABEL else [m.get(name) for m in self.metadata[start:stop]]
                chunk = ValueColumn(values, stop - start)
                if stop - start == _CHUNK:
                    self._columns[name, start] = chunk
            chunks.append(chunk)
        return chunks

    def _find(self, item: str, count: int) -> int:
        """Return the last row of an id: earlier ones were replaced."""
        return next((row for row in range(count - 1, -1, -1) if self.ids[row] == item), -1)


class _JoinedColumn:
    """The values of consecutive groups of items."""

    def __init__(self, parts: Sequence[Column]) -> None:
        self._parts = parts

    def present(self) -> Mask:
        return np.concatenate([part.present() for part in self._parts])

    def equals_any(self, values: Sequence[Value]) -> Mask:
        return np.concatenate([part.equals_any(values) for part in self._parts])

    def compares(self, compare: Callable[[Any, Any], Any], value: str | float) -> Mask:
        return np.concatenate([part.compares(compare, value) for part in self._parts])


class _Part(Protocol):
    """Items whose nearest can be found: those of the snapshot, or those of the delta."""

    size: int  # how many can be fetched
    error: float  # how far a score can be below the exact one
    ids: Sequence[str]  # by row
    alive: Mask  # by row

    def nearest(self, queries: Vectors, count: int) -> tuple[Floats, Ints]: ...

    def take(self, rows: Ints) -> Vectors: ...


@dataclass(frozen=True, eq=False)
class View:
    """One state of the items.

    Rows number the items of the snapshot, then those of the delta.

    Attributes:
        number: of the snapshot, which grows with each one; 0 without a snapshot.
        seq: number of the last change that the view knows.
        snapshot: the snapshot, or None.
        alive: `(n,)` whether a row of the snapshot exists.
        delta: the items that came later, of which the view has `len(delta_alive)`.
        delta_alive: whether they exist.
        paths: files of the items whose file is not their id relative to the root, by id.
        columns: the values of the items of the snapshot, by name, as far as filters have compared them.
    """

    dim: int
    number: int
    seq: int
    snapshot: Snapshot | None
    alive: Mask
    delta: Delta
    delta_alive: Mask
    paths: Mapping[str, Path | None] = field(default_factory=dict)
    columns: Mapping[str, ValueColumn] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.live + int(np.count_nonzero(self.delta_alive))

    @cached_property
    def live(self) -> int:
        """Items of the snapshot that exist."""
        return int(np.count_nonzero(self.alive))

    @property
    def pending(self) -> int:
        """Rows that make searches slower until a new snapshot: those of the delta, and removed ones."""
        return len(self.delta_alive) + len(self.alive) - self.live

    def rows_of(self, rids: Sequence[int]) -> list[int]:
        """Return the rows of row numbers in SQLite, -1 for those that the view does not have."""
        old = [-1] * len(rids) if self.snapshot is None else self.snapshot.rows_of(np.array(rids, np.int64)).tolist()
        size, new = len(self.alive), self.delta.rows
        return [row if row >= 0 else new[rid] + size if rid in new else -1 for rid, row in zip(rids, old, strict=True)]

    @cached_property
    def ids(self) -> PackedStrings:
        """The ids of all items, sorted."""
        old: Iterable[str] = (
            [] if self.snapshot is None else map(self.snapshot.ids.__getitem__, np.flatnonzero(self.alive).tolist())
        )
        new = sorted(self.delta.ids[row] for row in np.flatnonzero(self.delta_alive).tolist())
        return PackedStrings(sorted([*old, *new]) if new else old)

    def search(
        self, queries: Vectors, query_ids: Sequence[str], top_k: int, where: Filter | None = None
    ) -> tuple[Ids, Floats]:
        """Return ids and cosines `(n_query, top_k)` of the nearest items, of those that fit a filter.

        Cosines are those of the exact vectors, rounded to 6 decimals; ties are broken by id. A query is never its own
        hit. Where there are fewer items, ids are None and cosines nan.
        """
        ids = np.full((len(queries), top_k), None, dtype=object)
        scores = np.full((len(queries), top_k), np.nan, dtype=np.float32)
        parts = self._parts(None if where is None else where.mask(_Columns(self)))
        fetch = top_k + 1 + _EXTRA_HITS
        pending = list(range(len(queries)))
        while pending and parts:
            fetched = [part.nearest(queries[pending], min(fetch, part.size)) for part in parts]
            for part_scores, _ in fetched:
                require_cosines(part_scores)
            undecided = []
            for number, query in enumerate(pending):
                rows = [part_rows[number] for _, part_rows in fetched]
                hits = _rank(queries[query], query_ids[query], parts, rows, top_k)
                kth = hits[-1][0] / STEPS if len(hits) == top_k else -np.inf
                if any(
                    fetch < part.size and part_scores[number, -1] + part.error >= kth
                    for part, (part_scores, _) in zip(parts, fetched, strict=True)
                ):
                    undecided.append(query)
                    continue
                ids[query, : len(hits)] = [item for _, item in hits]
                scores[query, : len(hits)] = [step / STEPS for step, _ in hits]
            pending = undecided
            fetch *= _GROWTH
        return ids, scores

    def _parts(self, mask: Mask | None) -> list[_Part]:
        """Plan the search of the snapshot and of the delta."""
        parts: list[_Part] = []
        if self.snapshot is not None and (live := self.live):
            allowed = self.alive if mask is None else self.alive & mask[: len(self.alive)]
            if mask is None and live >= (1 - _DEAD) * len(self.alive):
                parts.append(_SnapshotPart(self.snapshot, self.alive, None))
            elif allowed.any():
                parts.append(_SnapshotPart(self.snapshot, self.alive, allowed))
        allowed = self.delta_alive if mask is None else self.delta_alive & mask[len(self.alive) :]
        if allowed.any():
            parts.append(_DeltaPart(self.delta, self.delta_alive, allowed))
        return parts


class _Columns:
    """The values of the items of a view, for filters."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __len__(self) -> int:
        return len(self._view.alive) + len(self._view.delta_alive)

    def column(self, name: str) -> Column | None:
        view = self._view
        parts: list[Column] = []
        if view.snapshot is not None:
            ids = view.snapshot.ids
            parts.append(IdColumn(ids, ids.find) if name == ID else view.columns[name])
        parts += view.delta.columns(name, len(view.delta_alive))
        return parts[0] if len(parts) == 1 else _JoinedColumn(parts) if parts else None


class _SnapshotPart:
    """The allowed items of a snapshot; None for all."""

    def __init__(self, snapshot: Snapshot, alive: Mask, allowed: Mask | None) -> None:
        self.ids: Sequence[str] = snapshot.ids
        self.alive = alive
        self._exact, self._allowed = snapshot.exact, allowed
        self.size = len(alive) if allowed is None else int(np.count_nonzero(allowed))
        by_lists = allowed is None or self.size > _GATHERED
        self._lists = snapshot.approximate if by_lists else None
        self.error = float32_error(snapshot.exact.dim) if self._lists is None else 0.0

    def nearest(self, queries: Vectors, count: int) -> tuple[Floats, Ints]:
        if self._lists is not None:
            return self._lists.nearest(queries, count, self._allowed)
        if self._allowed is not None:
            return self._exact.nearest_allowed(queries, count, self._allowed)
        return self._exact.nearest(queries, count)

    def take(self, rows: Ints) -> Vectors:
        return self._exact.vectors(rows)


class _DeltaPart:
    """The allowed items of a delta."""

    def __init__(self, delta: Delta, alive: Mask, allowed: Mask) -> None:
        self.ids: Sequence[str] = delta.ids
        self.alive = alive
        self._rows = np.flatnonzero(allowed)
        vectors = delta.vectors(len(alive))
        self._vectors = vectors if len(self._rows) == len(alive) else vectors[self._rows]
        self._all = vectors
        self.size, self.error = len(self._rows), float32_error(vectors.shape[1])

    def nearest(self, queries: Vectors, count: int) -> tuple[Floats, Ints]:
        scores, rows = nearest_in_blocks(queries, [self._vectors], count)
        return scores, self._rows[rows]

    def take(self, rows: Ints) -> Vectors:
        return self._all[rows]


def _rank(
    query: Vectors, query_id: str, parts: Sequence[_Part], fetched: Sequence[Ints], top_k: int
) -> list[tuple[int, str]]:
    """Return steps and ids of the best of the fetched rows, without the query itself and what was removed."""
    candidates: list[tuple[int, str]] = []
    for part, rows in zip(parts, fetched, strict=True):
        steps = cosine_steps(query[None], part.take, rows)[0].tolist()
        for step, row in zip(steps, rows.tolist(), strict=True):
            if part.alive[row] and (item := part.ids[row]) != query_id:
                candidates.append((-step, item))
    return [(-step, item) for step, item in sorted(candidates)[:top_k]]
