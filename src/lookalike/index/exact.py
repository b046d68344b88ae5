"""Exact search: every vector is compared, by a matrix product, by FAISS, or after a prefilter."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lookalike._ranking import STEPS, Floats, Ints, best_first, cosine_steps, nearest_in_blocks
from lookalike.index.faiss_index import INDEX_FILE
from lookalike.index.storage import map_vectors, write_vectors
from lookalike.types import Vectors

if TYPE_CHECKING:
    from lookalike.index.prefilter import Prefilter

BRUTE_FORCE_MAX = 20_000  # up to this many vectors one matrix product is faster than importing FAISS
PREFILTER_MIN = 100_000  # from this many vectors on a prefilter pays
PREFILTER_AFTER_QUERIES = 1000  # building the prefilter costs about as much as this many unfiltered queries
_EXTRA_HITS = 15  # fetched beyond the requested ones, so that a small tie needs no second search
_GROWTH = 4  # factor by which a search fetches more where ties remain open
_CELLS = 4_000_000  # query x candidate cells in memory at once
_BLOCK = 65_536  # vectors copied at once


class ExactIndex:
    """Unit-length vectors by row, compared exactly; `vectors` may be mapped from disk.

    `prefilter`: whether there is memory for a prefilter; it is built after enough queries.
    """

    key = "Flat"

    def __init__(self, vectors: Vectors, *, prefilter: bool = True) -> None:
        self._vectors = np.array(vectors) if len(vectors) <= BRUTE_FORCE_MAX else vectors
        self.prefilter = prefilter
        self._prefilter: Prefilter | None = None
        self._prefilter_pays = len(vectors) >= PREFILTER_MIN
        self._queries = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return int(self._vectors.shape[1])

    def vectors(self, rows: Ints) -> Vectors:
        """Return the vectors `(n, dim)` of rows."""
        return np.asarray(self._vectors[rows])

    def search(self, queries: Vectors, query_rows: Ints, top_k: int) -> tuple[Ints, Floats]:
        """Return rows and cosines `(n_query, top_k)`, ordered by falling cosine in millionths, then row.

        `query_rows` are the rows of the queries, which are never their own hits; -1 outside the index. Candidates are
        fetched in float32 and compared again in float64. Where a vector that was not fetched could tie with the last
        hit, more are fetched.
        """
        rows = np.empty((len(queries), top_k), dtype=np.int64)
        steps = np.empty((len(queries), top_k), dtype=np.int64)
        pending = np.arange(len(queries))
        fetch = top_k + 1 + _EXTRA_HITS
        while len(pending):
            fetch = min(fetch, len(self))
            chunk = max(1, _CELLS // fetch)
            undecided: list[int] = []
            for start in range(0, len(pending), chunk):
                part = pending[start : start + chunk]
                scores, candidates = self.nearest(queries[part], fetch)
                for query, lowest, fetched in zip(part.tolist(), scores[:, -1].tolist(), candidates, strict=True):
                    others = fetched[fetched != query_rows[query]]
                    other_steps = cosine_steps(queries[query : query + 1], self.vectors, others)
                    rows[query], steps[query] = best_first(other_steps, others, top_k)
                    if fetch < len(self) and lowest >= steps[query, -1] / STEPS - _float32_error(self.dim):
                        undecided.append(query)
            pending = np.array(undecided, dtype=np.int64)
            fetch *= _GROWTH
        return rows, (steps / STEPS).astype(np.float32)

    def nearest(self, queries: Vectors, count: int) -> tuple[Floats, Ints]:
        """Return float32 inner products and rows `(n_query, count)`, best first; `count` is at most the size."""
        if len(self) <= BRUTE_FORCE_MAX:
            return nearest_in_blocks(queries, [self._vectors], count)
        if self._prefilter is None and self.prefilter and self._prefilter_pays:
            with self._lock:
                self._queries += len(queries)
                if self._queries >= PREFILTER_AFTER_QUERIES and self._prefilter is None:
                    from lookalike.index.prefilter import Prefilter

                    self._prefilter = Prefilter(self.vectors, len(self))
        prefilter = self._prefilter
        if prefilter is not None:
            nearest = prefilter.nearest(queries, count)
            if nearest is not None:
                return nearest
            self._prefilter, self._prefilter_pays = None, False
        import faiss

        scores, rows = faiss.knn(np.ascontiguousarray(queries), self._vectors, count, faiss.METRIC_INNER_PRODUCT)
        return scores, rows

    def write(self, folder: Path) -> None:
        """Write the index into a folder."""
        blocks = (self._vectors[start : start + _BLOCK] for start in range(0, len(self), _BLOCK))
        write_vectors(folder / INDEX_FILE, blocks, len(self), self.dim)

    @classmethod
    def read(cls, folder: Path, *, prefilter: bool) -> ExactIndex:
        """Open an index in a folder; more than `BRUTE_FORCE_MAX` vectors stay on disk until they are read."""
        return cls(map_vectors(folder / INDEX_FILE), prefilter=prefilter)


def _float32_error(dim: int) -> float:
    """Return how far the float32 score of a vector can be below a rounded cosine that it ties with.

    A float32 sum of `dim` products of unit vectors is off by at most `dim` roundings, whatever their order (Higham
    2002, section 3.1); half a millionth is due to rounding to millionths, the rest allows for lengths near 1.
    """
    return 1.01 * dim * 2.0**-24 + 1e-6
