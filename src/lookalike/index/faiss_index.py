"""Approximate search with FAISS (Douze et al. 2024, "The Faiss library"); vectors stay on disk until they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lookalike._files import require_regular, storage_errors
from lookalike._top_k import LAST, STEPS, Floats, Ints, best_first, nearest_in_blocks
from lookalike.errors import StorageError
from lookalike.types import Vectors

# HNSW's efConstruction: with FAISS's default of 40 a graph misses the neighbours of some of a million vectors, and more
# than 64 takes longer to build than it saves (docs/log.md)
EF_CONSTRUCTION = 64
EXTRA_HITS = 5  # fetched beyond the requested ones, so that ties at the last place are noticed
_GROWTH = 4  # factor by which a search fetches more where ties remain open
_MAX_SCORE = 1.5  # of a cosine; above 1 only by the rounding of an index that stores vectors in few bits
_BLOCK = 16_384  # vectors reconstructed at once
INDEX_FILE = "index.faiss"
ROWS_FILE = "rows.npy"


def _faiss() -> Any:  # imported late, and untyped: its type hints are incomplete
    import faiss

    return faiss


class FaissIndex:
    """A FAISS index with its factory string and search depth; safe to search from several threads."""

    def __init__(self, index: Any, key: str, parameters: Mapping[str, int]) -> None:
        self.index = index
        self.key = key
        self.set_parameters(parameters)

    @classmethod
    def create(cls, key: str, dim: int) -> FaissIndex:
        """Create an empty index from a factory string."""
        faiss = _faiss()
        index = faiss.index_factory(dim, key, faiss.METRIC_INNER_PRODUCT)
        for part in _parts(index):
            if isinstance(part, faiss.IndexHNSW):
                part.hnsw.efConstruction = EF_CONSTRUCTION
        return cls(index, key, {})

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def __reduce__(self) -> tuple[Any, ...]:  # FAISS's search parameters cannot be pickled
        return FaissIndex, (self.index, self.key, self.parameters)

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return int(self.index.d)

    @property
    def size(self) -> int:
        """Bytes in memory and in a file."""
        faiss = _faiss()
        size = 0

        def count(part: bytes) -> None:
            nonlocal size
            size += len(part)

        faiss.write_index(self.index, faiss.PyCallbackIOWriter(count, 1 << 20))
        return size

    def set_parameters(self, parameters: Mapping[str, int]) -> None:
        """Set the search depth; parameters that the index does not have are ignored."""
        self.parameters = dict(parameters)
        self._search_parameters = _search_parameters(self.index, self.parameters)

    def train(self, vectors: Vectors) -> None:
        """Train the index on vectors `(n, dim)`, before any is added."""
        faiss = _faiss()
        for part in _parts(self.index):
            if not isinstance(part, faiss.IndexPreTransform):
                continue
            transform = faiss.downcast_VectorTransform(part.chain.at(0))
            if isinstance(transform, faiss.PCAMatrix):
                # FAISS centres before it projects, which inner products do not allow for: make the mean zero
                transform.train(np.concatenate([vectors, -vectors]))
        self.index.train(vectors)

    def add(self, vectors: Vectors) -> None:
        """Append vectors `(n, dim)`."""
        self.index.add(np.ascontiguousarray(vectors))

    def nearest(self, queries: Vectors, count: int) -> tuple[Floats, Ints]:
        """Return inner products and positions `(n_query, count)`, best first; `count` is at most the number of vectors.

        Products are as exact as the index stores vectors. Where the search depth yields fewer than `count` vectors, all
        inverted lists are searched; where that is not enough, or in a graph, all vectors are compared.
        """
        faiss = _faiss()
        queries = np.ascontiguousarray(queries)
        scores, positions = self.index.search(queries, count, params=self._search_parameters)
        short = positions[:, -1] < 0  # FAISS fills up with -1 at the end
        if short.any() and (ivf := faiss.try_extract_index_ivf(self.index)) is not None:
            all_lists = _search_parameters(self.index, {**self.parameters, "nprobe": int(ivf.nlist)})
            scores[short], positions[short] = self.index.search(queries[short], count, params=all_lists)
            short = positions[:, -1] < 0
        if short.any():
            sizes = ((start, min(_BLOCK, len(self) - start)) for start in range(0, len(self), _BLOCK))
            blocks = (self.index.reconstruct_n(start, size) for start, size in sizes)
            scores[short], positions[short] = nearest_in_blocks(queries[short], blocks, count)
        return scores, positions

    def write(self, path: Path) -> None:
        """Write the index to a file."""
        faiss = _faiss()
        try:
            faiss.write_index(self.index, str(path))
        except RuntimeError as error:
            raise StorageError(f"{path} cannot be written; free some space or choose another path.") from error
        # on a full disk the end can get lost when the file is closed, which FAISS does not report
        if path.stat().st_size < self.size:
            raise StorageError(f"{path} cannot be written in full; free some space or choose another path.")

    @classmethod
    def read(cls, path: Path, key: str, parameters: Mapping[str, int], *, writable: bool = False) -> FaissIndex:
        """Open an index file: mapped from disk, or read into memory to be extended where it is `writable`."""
        faiss = _faiss()
        try:
            flags = 0 if writable else faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY
            require_regular(path)
            read = cls(faiss.read_index(str(path), flags), key, parameters)
            if _kind(read.index) != _kind(faiss.index_factory(read.dim, key, faiss.METRIC_INNER_PRODUCT)):
                raise ValueError(f"it is not a {key} index")
            return read
        except (OSError, RuntimeError, MemoryError, TypeError, ValueError, KeyError) as error:
            raise StorageError(f"{path} is missing or damaged; build the index again.", argument="path") from error


def require_cosines(scores: Floats) -> None:
    """Raise `StorageError` for scores that no unit-length vectors have."""
    if not (np.abs(scores) <= _MAX_SCORE).all():  # written so that nan fails
        raise StorageError("the vectors of the index are damaged (a score is not a cosine); build the index again.")


class ApproximateIndex:
    """Unit-length vectors of which a search finds most of the nearest; `rows` maps positions in `index` to rows."""

    prefilter = False

    def __init__(self, index: FaissIndex, rows: Ints) -> None:
        self._index = index
        self._rows = rows

    def __len__(self) -> int:
        return len(self._index)

    @property
    def key(self) -> str:
        """FAISS factory string."""
        return self._index.key

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return self._index.dim

    def search(self, queries: Vectors, query_rows: Ints, top_k: int) -> tuple[Ints, Floats]:
        """Rank as `ExactIndex.search`, among what the index finds and by the vectors as it stores them.

        Where the last vector that was fetched ties with the last hit, more are fetched.
        """
        rows = np.empty((len(queries), top_k), dtype=np.int64)
        steps = np.empty((len(queries), top_k), dtype=np.int64)
        pending = np.arange(len(queries))
        fetch = top_k + bool((query_rows >= 0).any()) + EXTRA_HITS
        while len(pending):
            fetch = min(fetch, len(self))
            scores, positions = self._index.nearest(queries[pending], fetch)
            require_cosines(scores)
            near = self._rows[positions]
            near_steps = np.rint(np.multiply(scores, STEPS, dtype=np.float64)).astype(np.int64)
            lowest = near_steps[:, -1].copy()
            near_steps[near == query_rows[pending, None]] = LAST
            rows[pending], steps[pending] = best_first(near_steps, near, top_k)
            pending = pending[(lowest >= steps[pending, -1]) & (fetch < len(self))]
            fetch *= _GROWTH
        return rows, (steps / STEPS).astype(np.float32)

    def write(self, folder: Path) -> None:
        """Write the index into a folder."""
        self._index.write(folder / INDEX_FILE)
        with storage_errors(folder):
            np.save(folder / ROWS_FILE, self._rows)

    @classmethod
    def read(cls, folder: Path, key: str, parameters: Mapping[str, int]) -> ApproximateIndex:
        """Open an index in a folder."""
        index = FaissIndex.read(folder / INDEX_FILE, key, parameters)
        try:
            mapped = np.load(folder / ROWS_FILE, mmap_mode="r", allow_pickle=False)
            rows = np.asarray(mapped)  # an array of the base class is faster to index
            valid = rows.shape == (len(index),) and rows.dtype == np.int64
            valid = valid and rows.min() >= 0 and rows.max() < len(index) and np.bincount(rows).max() == 1
        except (OSError, EOFError, ValueError, TypeError) as error:
            raise StorageError(
                f"the index in {folder} is missing or damaged; build the index again.", argument="path"
            ) from error
        if not valid:
            raise StorageError(
                f"the rows of the index in {folder} do not match its vectors; build the index again.", argument="path"
            )
        return cls(index, rows)


def _kind(index: Any) -> list[tuple[object, ...]]:
    """Return what a factory string decides of an index and the indexes nested in it."""
    names = ("d", "metric_type", "nlist", "code_size")
    return [(type(part), *(getattr(part, name, None) for name in names)) for part in _parts(index)]


def _parts(index: Any) -> Iterator[Any]:
    """Yield an index and the indexes nested in it."""
    faiss = _faiss()
    part: Any = faiss.downcast_index(index)
    while True:
        yield part
        if isinstance(part, faiss.IndexRefine):
            part = faiss.downcast_index(part.base_index)
        elif isinstance(part, faiss.IndexPreTransform):
            part = faiss.downcast_index(part.index)
        else:
            return


def _search_parameters(index: Any, parameters: Mapping[str, int]) -> Any:
    """Return FAISS's search parameters for an index and the indexes nested in it."""
    faiss = _faiss()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        inner = _search_parameters(index.base_index, parameters)
        return faiss.IndexRefineSearchParameters(k_factor=parameters.get("k_factor_rf", 1), base_index_params=inner)
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_search_parameters(index.index, parameters))
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=parameters.get("efSearch", 16))
    return faiss.SearchParametersIVF(nprobe=parameters.get("nprobe", 1))
