"""The exact index: all vectors are compared (FAISS's IndexFlatIP; Douze et al. 2024, "The Faiss library")."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lookalike.index.flat_file import FAISS_FILE, Rows, map_flat, write_flat
from lookalike.types import Vectors

if TYPE_CHECKING:
    from lookalike.index.prefilter import Prefilter

FEW = 20_000
"""So few vectors are compared by one matrix product, before FAISS would be imported."""
_BLOCK = 65_536
"""Vectors copied at once."""
MANY = 100_000
"""From so many vectors on, most are ruled out before they are compared in full."""
_PAYS = 1000
"""Making what they are ruled out by costs about as much as so many searches without it."""
_CELLS = 4_000_000
"""Products in memory at once."""


def spare_bytes(dim: int) -> int:
    """Return what a vector of so many dimensions takes besides, where most are ruled out before they are compared."""
    return dim + 8


class FlatIndex:
    """Unit-length vectors by row number.

    Args:
        vectors: `(n, dim)` float32; they may be mapped from disk.
        spare: whether there is memory for `spare_bytes` of each, which many searches of many vectors are made quicker
            by.

    Attributes:
        key: FAISS's own name for the kind.

    """

    key = "Flat"

    def __init__(self, vectors: Vectors, *, spare: bool = True) -> None:
        self._vectors = np.array(vectors) if len(vectors) <= FEW else vectors
        self._spare = spare
        self._asked, self._useful = 0, True
        self._prefilter: Prefilter | None = None
        self._building = threading.Lock()

    @classmethod
    def of(cls, vectors: Vectors, order: Rows, *, spare: bool = True) -> FlatIndex:
        """Take the vectors `(n, dim)` float32 in this order; those that are in it stay where they are."""
        return cls(vectors if (order == np.arange(len(vectors))).all() else vectors[order], spare=spare)

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return int(self._vectors.shape[1])

    def nearest(self, queries: Vectors, count: int) -> tuple[npt.NDArray[np.float32], Rows]:
        """Return float32 inner products and rows `(n_query, count)`, best first; `count` is at most the size."""
        if len(self) <= FEW:
            return _by_products(self._vectors, queries, count)
        quick = self._quick(len(queries))
        if quick is not None:
            found = quick.nearest(queries, count)
            if found is not None:
                return found
            self._prefilter, self._useful = None, False  # so few are ruled out that comparing all is quicker
        import faiss

        scores, rows = faiss.knn(np.ascontiguousarray(queries), self._vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
        return scores, rows

    def _quick(self, queries: int) -> Prefilter | None:
        """Return what rules most vectors out, once so much was asked that making it has cost less than it saves."""
        if self._prefilter is None and self._spare and self._useful and len(self) >= MANY:
            with self._building:
                self._asked += queries
                if self._asked >= _PAYS and self._prefilter is None:
                    from lookalike.index.prefilter import Prefilter

                    self._prefilter = Prefilter(self.vectors, len(self), self.dim)
        return self._prefilter

    def vectors(self, rows: Rows) -> Vectors:
        """Return the vectors `(n, dim)` of these rows."""
        return np.asarray(self._vectors[rows])

    @property
    def facts(self) -> dict[str, Any]:
        """What the index's description says of it besides the key."""
        return {} if self._spare else {"spare": False}

    def versions(self) -> dict[str, str]:
        """Return what its file was made with, besides this version: nothing."""
        return {}

    def write(self, folder: Path) -> None:
        """Write the index into a folder.

        Raises:
            StorageError: when the disk does not take all of it.

        """
        blocks = (self._vectors[start : start + _BLOCK] for start in range(0, len(self), _BLOCK))
        write_flat(folder / FAISS_FILE, blocks, len(self), self.dim)

    @classmethod
    def read(cls, folder: Path, *, spare: bool = True) -> FlatIndex:
        """Open an index in a folder; more than a few vectors stay on disk until they are looked at.

        Raises:
            StorageError: missing, damaged, or of another kind.

        """
        return cls(map_flat(folder / FAISS_FILE), spare=spare)


def _by_products(vectors: Vectors, queries: Vectors, count: int) -> tuple[npt.NDArray[np.float32], Rows]:
    found_scores = np.empty((len(queries), count), dtype=np.float32)
    found_rows = np.empty((len(queries), count), dtype=np.int64)
    step = max(1, _CELLS // max(1, len(vectors)))
    for start in range(0, len(queries), step):
        scores = queries[start : start + step] @ vectors.T
        rows = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        best = np.take_along_axis(scores, rows, axis=1)
        order = np.argsort(-best, axis=1)
        found_rows[start : start + step] = np.take_along_axis(rows, order, axis=1)
        found_scores[start : start + step] = np.take_along_axis(best, order, axis=1)
    return found_scores, found_rows
