"""The vectors of a gallery, augmented by their neighbours, and for leave-one-out without the query's own part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lookalike._top_k import LAST, STEPS, Ints, cosine_steps
from lookalike.reranking.neighbours import SparseRows, Values, blocks, identity, nearest
from lookalike.reranking.steps import GalleryAugmentation
from lookalike.types import Vectors, l2_normalize


@dataclass(frozen=True, eq=False)
class QueryVectors:
    """Gallery vectors that are different for one query, ordered by query and row."""

    positions: Ints  # of the query in its block
    rows: Ints  # of the gallery
    vectors: Vectors


class Gallery:
    """Gallery vectors `(n, dim)`, each augmented by its neighbours if there is a step for it.

    Where queries are gallery items, as in leave-one-out, a query's part in the items that it is a neighbour of would
    make these more similar to it. It is therefore subtracted there, for this query only.
    """

    def __init__(self, vectors: Vectors, step: GalleryAugmentation | None) -> None:
        self.vectors = self._sums = self._original = vectors
        self._items_by_neighbour: SparseRows | None = None
        if step is None or len(vectors) < 2:
            return
        count = len(vectors)
        neighbours, cosines = nearest(vectors, vectors, min(step.k, count - 1), identity(count))
        weights = powers(cosines, step.alpha)
        self._sums = vectors.copy()
        for block in blocks(count, neighbours.shape[1] * vectors.shape[1]):
            self._sums[block] += weighted_sums(weights[block], vectors[neighbours[block]])
        self.vectors = l2_normalize(self._sums)
        items = np.repeat(np.arange(count), neighbours.shape[1])
        self._items_by_neighbour = SparseRows.of((count, count), neighbours.ravel(), items, weights.ravel())

    def __len__(self) -> int:
        return len(self.vectors)

    def without(self, position: Ints, row: Ints) -> QueryVectors | None:
        """Return the vectors without the part of excluded items; None if there are none.

        Args:
            position: `(n,)`, positions of the queries in their block.
            row: `(n,)`, gallery rows of the items that are excluded for them.
        """
        if self._items_by_neighbour is None or not len(row):
            return None
        pair, item, weight = self._items_by_neighbour.entries(row)
        keys, pair_of_entry = np.unique(position[pair] * len(self) + item, return_inverse=True)
        positions, rows = np.divmod(keys, len(self))
        parts = np.zeros((len(keys), self.vectors.shape[1]), dtype=np.float32)
        np.add.at(parts, pair_of_entry, weight[:, None].astype(np.float32) * self._original[row[pair]])
        return QueryVectors(positions, rows, l2_normalize(self._sums[rows] - parts))

    def millionths(self, queries: Vectors, excluded: tuple[Ints, Ints], other: QueryVectors | None) -> Ints:
        """Return the cosines `(n_query, n)` of a block of queries in millionths.

        Args:
            queries: `(n_query, dim)`.
            excluded: positions of queries and gallery rows, whose pairs get the lowest value.
            other: the gallery vectors that are different for a query.
        """
        millionths = cosine_steps(queries, self.vectors.__getitem__, np.arange(len(self)))
        if other is not None:
            pairs = queries[other.positions].astype(np.float64), other.vectors.astype(np.float64)
            cosines = np.einsum("ij,ij->i", *pairs)
            millionths[other.positions, other.rows] = np.rint(cosines * STEPS)
        millionths[excluded] = LAST
        return millionths

    def take(self, rows: Ints, other: QueryVectors | None) -> Vectors:
        """Return the vectors `(n_query, k, dim)` of rows `(n_query, k)` for a block of queries."""
        vectors: Vectors = self.vectors[rows]
        if other is not None and len(other.rows):
            keys = np.arange(len(rows))[:, None] * len(self) + rows
            stored = other.positions * len(self) + other.rows
            index = np.searchsorted(stored, keys).clip(max=len(stored) - 1)
            differs = stored[index] == keys
            vectors[differs] = other.vectors[index[differs]]
        return vectors


def powers(cosines: Values, alpha: float) -> Values:
    """Return the weights of neighbours by their cosines; negative cosines have the weight 0."""
    weights: Values = np.where(cosines > 0, cosines.clip(min=0) ** alpha, 0)
    return weights


def weighted_sums(weights: Values, vectors: Vectors) -> Vectors:
    """Return the sums `(n, dim)` of vectors `(n, k, dim)` with weights `(n, k)`."""
    sums: Vectors = np.matmul(weights[:, None, :].astype(np.float32), vectors)[:, 0]
    return sums
