"""Nearest neighbours by the ranking rule, a block of queries at a time, and sparse matrices of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lookalike._top_k import LAST, STEPS, Ints, best_first, cosine_steps
from lookalike.types import Vectors

Values = npt.NDArray[np.float64]

_CELLS = 4_000_000  # query x gallery cells in memory at once
_MAX_BLOCK = 1024


def blocks(count: int, width: int) -> Iterator[Ints]:
    """Yield the numbers below `count` in blocks, so that few rows of `width` cells are in memory at once."""
    step = max(1, min(_MAX_BLOCK, _CELLS // max(1, width)))
    for start in range(0, count, step):
        yield np.arange(start, min(start + step, count))


@dataclass(frozen=True, eq=False)
class SparseRows:
    """A sparse matrix by row: row r has the entries from `starts[r]` to `starts[r + 1]`, ordered by column."""

    starts: Ints  # (rows + 1,)
    columns: Ints
    values: Values

    @classmethod
    def of(cls, shape: tuple[int, int], rows: Ints, columns: Ints, values: Values) -> SparseRows:
        """Build a matrix; values of the same row and column are added."""
        keys, cell = np.unique(rows * shape[1] + columns, return_inverse=True)
        sums: Values = np.bincount(cell, values, len(keys)).astype(np.float64)
        starts = np.searchsorted(keys, np.arange(shape[0] + 1) * shape[1])
        return cls(starts, keys % shape[1], sums)

    def entries(self, rows: Ints) -> tuple[Ints, Ints, Values]:
        """Return the entries of rows: position in `rows`, column and value."""
        sizes = self.starts[rows + 1] - self.starts[rows]
        positions = np.repeat(np.arange(len(rows)), sizes)
        first = np.repeat(self.starts[rows] - (np.cumsum(sizes) - sizes), sizes)
        index = first + np.arange(len(positions))
        return positions, self.columns[index], self.values[index]

    def transposed(self, columns: int) -> SparseRows:
        """Return the matrix with its first `columns` columns as rows."""
        rows = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        among = self.columns < columns
        return SparseRows.of((columns, len(self.starts) - 1), self.columns[among], rows[among], self.values[among])


def nearest(queries: Vectors, gallery: Vectors, k: int, excluded: SparseRows) -> tuple[Ints, Values]:
    """Return rows and cosines `(n_query, k)` of the nearest gallery vectors, best first, ties by row.

    Where `excluded` leaves fewer than k, the last cosines are -10.
    """
    rows = np.empty((len(queries), k), dtype=np.int64)
    steps = np.empty((len(queries), k), dtype=np.int64)
    everything = np.arange(len(gallery))
    for block in blocks(len(queries), len(gallery)):
        products = cosine_steps(queries[block], gallery.__getitem__, everything)
        position, column, _ = excluded.entries(block)
        products[position, column] = LAST
        rows[block], steps[block] = best_first(products, everything, k)
    return rows, steps / STEPS


def identity(count: int) -> SparseRows:
    """Return the pairs of each row with itself."""
    return SparseRows(np.arange(count + 1), np.arange(count), np.ones(count))
