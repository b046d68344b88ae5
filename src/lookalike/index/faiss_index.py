"""FAISS's approximate indexes, by factory string (Douze et al. 2024, "The Faiss library")."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.errors import StorageError
from lookalike.index.flat_file import Rows
from lookalike.types import Vectors

CANDIDATES = 64
"""Neighbours that are looked at for each vector while a graph is built, HNSW's efConstruction: with FAISS's own 40 some
of a million vectors are hardly found, and more than this takes longer to build than it gives (docs/log.md)."""
_BLOCK = 16_384
"""Vectors put together again at once."""


class FaissIndex:
    """Unit-length vectors by row number, searched approximately; by several threads at once if need be.

    Attributes:
        index: FAISS's own.
        key: FAISS's factory string.
        parameters: how deep a search looks, by FAISS's names.

    """

    def __init__(self, faiss_index: Any, key: str, parameters: Mapping[str, int]) -> None:
        self.index = faiss_index
        self.key = key
        self.set(parameters)

    @classmethod
    def new(cls, key: str, dim: int) -> FaissIndex:
        """Return an empty one."""
        import faiss

        made = faiss.index_factory(dim, key, faiss.METRIC_INNER_PRODUCT)
        for part in _parts(made):
            if isinstance(part, faiss.IndexHNSW):
                part.hnsw.efConstruction = CANDIDATES
        ivf = faiss.try_extract_index_ivf(made)
        if isinstance(ivf, faiss.IndexIVFPQ):
            ivf.pq.cp.min_points_per_centroid = 1  # says no word, on stderr, where there are few
        return cls(made, key, {})

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return int(self.index.d)

    @property
    def size(self) -> int:
        """Bytes that it takes, in memory and in a file."""
        import faiss

        size = 0

        def count(part: bytes) -> None:
            nonlocal size
            size += len(part)

        by: Any = faiss  # its type hints know less than it has
        by.write_index(self.index, by.PyCallbackIOWriter(count, 1 << 20))
        return size

    def train(self, vectors: Vectors) -> None:
        """Learn from vectors `(n, dim)` what has to be known before any is added."""
        import faiss

        by: Any = faiss  # as above
        for part in _parts(self.index):
            first = by.downcast_VectorTransform(part.chain.at(0)) if isinstance(part, by.IndexPreTransform) else None
            if isinstance(first, by.PCAMatrix):  # their mean is nought so: inner products do not allow for another
                first.train(np.concatenate([vectors, -vectors]))
        self.index.train(vectors)

    def set(self, parameters: Mapping[str, int]) -> None:
        """Look as deep as this."""
        self.parameters = dict(parameters)
        self._how = _depth(self.index, self.parameters)

    def nearest(self, queries: Vectors, count: int) -> tuple[npt.NDArray[np.float32], Rows]:
        """Return float32 inner products, as exact as the vectors are kept, and rows `(n_query, count)`, best first.

        Where what is looked at holds fewer, all vectors are looked at. `count` is at most their number.
        """
        queries = np.ascontiguousarray(queries)
        scores, rows = self.index.search(queries, count, params=self._how)
        for further in (self._in_all_lists, self._among_all):
            short = rows[:, -1] < 0  # what is missing is missing at the end
            if not short.any():
                break
            scores[short], rows[short] = further(queries[short], count)
        return scores, rows

    def _in_all_lists(self, queries: Vectors, count: int) -> tuple[npt.NDArray[np.float32], Rows]:
        """Look into every list; a graph has none, and is searched as it was."""
        import faiss

        ivf = faiss.try_extract_index_ivf(self.index)
        every = {"nprobe": int(ivf.nlist)} if ivf is not None else {}
        found: tuple[npt.NDArray[np.float32], Rows] = self.index.search(
            queries, count, params=_depth(self.index, {**self.parameters, **every})
        )
        return found

    def _among_all(self, queries: Vectors, count: int) -> tuple[npt.NDArray[np.float32], Rows]:
        """Compare with every vector, as it is kept."""
        scores = np.empty((len(queries), 0), dtype=np.float32)
        rows = np.empty((len(queries), 0), dtype=np.int64)
        for start in range(0, len(self), _BLOCK):
            size = min(_BLOCK, len(self) - start)
            found = queries @ self.index.reconstruct_n(start, size).T
            places = np.broadcast_to(np.arange(start, start + size, dtype=np.int64), found.shape)
            scores, rows = np.concatenate([scores, found], axis=1), np.concatenate([rows, places], axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
            scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
        return scores, rows

    def write(self, path: Path) -> None:
        """Write the index to a file.

        Raises:
            StorageError: when the disk does not take all of it.

        """
        import faiss

        try:
            faiss.write_index(self.index, str(path))
        except RuntimeError as error:
            raise StorageError(f"{path} cannot be written; free some space or choose another place.") from error
        # on a full disk the last part can get lost when the file is closed, which FAISS does not report
        if path.stat().st_size < self.size:
            raise StorageError(f"{path} cannot be written in full; free some space or choose another place.")

    @classmethod
    def read(cls, path: Path, key: str, parameters: Mapping[str, int], *, changed: bool = False) -> FaissIndex:
        """Open an index file; its vectors stay on disk until they are looked at, unless it is to be `changed`.

        Raises:
            StorageError: missing, damaged, or of another kind.

        """
        import faiss

        try:
            flags = 0 if changed else faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY
            index = faiss.read_index(str(path), flags)
            return cls(index, key, parameters)
        except (RuntimeError, MemoryError, TypeError, ValueError, KeyError) as error:
            raise StorageError(f"{path} is missing or damaged; make the index again.") from error


def _parts(index: Any) -> Iterator[Any]:
    """Yield an index and those that it is made of."""
    import faiss

    part: Any = faiss.downcast_index(index)
    while True:
        yield part
        if isinstance(part, faiss.IndexRefine):
            part = faiss.downcast_index(part.base_index)
        elif isinstance(part, faiss.IndexPreTransform):
            part = faiss.downcast_index(part.index)
        else:
            return


def _depth(index: Any, parameters: Mapping[str, int]) -> Any:
    """Return FAISS's description of how deep a search looks, for an index and those that it is made of."""
    import faiss

    by: Any = faiss  # as above
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        inner = _depth(index.base_index, parameters)
        return by.IndexRefineSearchParameters(k_factor=parameters.get("k_factor_rf", 1), base_index_params=inner)
    if isinstance(index, faiss.IndexPreTransform):
        return by.SearchParametersPreTransform(index_params=_depth(index.index, parameters))
    if isinstance(index, faiss.IndexHNSW):
        return by.SearchParametersHNSW(efSearch=parameters.get("efSearch", 16))
    return by.SearchParametersIVF(nprobe=parameters.get("nprobe", 1))


def faiss_version() -> str:
    """Version of the library."""
    import faiss

    return str(faiss.__version__)
