"""The store of an index that was never changed: the files that `Index.save` wrote, or the same in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from lookalike._strings import PackedStrings
from lookalike._top_k import Floats
from lookalike.index.exact import ExactIndex
from lookalike.index.faiss_index import ApproximateIndex
from lookalike.index.filters import Filter, ItemColumns
from lookalike.index.storage import Labels, Metadata
from lookalike.index.store import Ids, IndexedItem, unknown_ids
from lookalike.types import Vectors

VectorIndex = ExactIndex | ApproximateIndex


@dataclass(frozen=True, eq=False)
class FolderStore:
    """Items in the order of their ids, and their vectors.

    Attributes:
        vector_index: the vectors.
        ids: sorted.
        labels: by item id.
        metadata: by item id.

    """

    vector_index: VectorIndex
    ids: PackedStrings
    labels: Labels
    metadata: Metadata
    other_paths: ClassVar[Mapping[str, Path | None]] = {}
    pending: ClassVar[int] = 0

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, item: object) -> bool:
        return isinstance(item, str) and self.ids.find(item) >= 0

    @property
    def key(self) -> str:
        """How vectors are searched: a FAISS factory string, Flat for exact search."""
        return self.vector_index.key

    def search(
        self, queries: Vectors, query_ids: Sequence[str], top_k: int, where: Filter | None = None
    ) -> tuple[Ids, Floats]:
        """Return ids and cosines `(n_query, top_k)`, filled up with None and nan; a query is never its own hit."""
        allowed = None if where is None else where.mask(self._columns)
        query_rows = np.fromiter(map(self.ids.find, query_ids), dtype=np.int64)
        rows, scores = self.vector_index.search(queries, query_rows, top_k, allowed)
        ids = self.ids.take(np.maximum(rows, 0))
        ids[rows < 0] = None
        return ids, scores

    @cached_property
    def _columns(self) -> ItemColumns:
        return ItemColumns(self.ids, self.ids.find, self.labels, self.metadata)

    def get(self, ids: Sequence[str]) -> list[IndexedItem | None]:
        """Return items by id, None for an id that has no item."""
        return [self._item(item) if item in self else None for item in ids]

    def items(self, after: str | None, limit: int) -> list[IndexedItem]:
        """Return the first items in the order of their ids, after an id."""
        start = 0 if after is None else bisect_right(self.ids, after)
        return [self._item(item) for item in self.ids[start : start + limit]]

    def vectors_of(self, ids: Sequence[str]) -> Vectors:
        """Return the vectors `(n, dim)` of items; `OptionError` for an id that has no item."""
        rows = np.fromiter(map(self.ids.find, ids), dtype=np.int64, count=len(ids))
        if (rows < 0).any():
            raise unknown_ids([item for item, row in zip(ids, rows.tolist(), strict=True) if row < 0])
        return self.vector_index.vectors(rows)

    def refresh(self) -> bool:
        """Return False: it does not change."""
        return False

    def close(self) -> None:
        """Do nothing: files that are mapped are closed when they are not used any more."""

    def _item(self, item: str) -> IndexedItem:
        return IndexedItem(item, self.labels.get(item), self.metadata.get(item, {}), Path(item))
