"""Approximate search with FAISS (Douze et al. 2024, "The Faiss library"); vectors stay on disk until they are read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lookalike._files import require_regular, storage_errors
from lookalike._top_k import LAST, STEPS, Floats, Ints, best_first, nearest_in_blocks, take_allowed
from lookalike.errors import StorageError
from lookalike.index.filters import Mask
from lookalike.types import Vectors

# HNSW's efConstruction: with FAISS's default of 40 a graph misses the neighbours of some of a million vectors, and more
# than 64 takes longer to build than it saves (docs/log.md)
EF_CONSTRUCTION = 64
EXTRA_HITS = 5  # fetched beyond the requested ones, so that ties at the last place are noticed
_GROWTH = 4  # factor by which a search fetches more where ties remain open
_MAX_SCORE = 1.5  # of a cosine; above 1 only by the rounding of an index that stores vectors in few bits
_BLOCK = 16_384  # vectors reconstructed at once
_WIDE_SHARE = 0.05  # where a filter allows a smaller share of the vectors, all of these are compared
_WIDE_MARGIN = 1.5  # a wider filter fetches this much more than it needs if what it allows is spread evenly
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

    def nearest(self, queries: Vectors, count: int, allowed: Mask | None = None) -> tuple[Floats, Ints]:
        """Return inner products and positions `(n_query, count)`, best first; `count` is at most the number of vectors.

        Only `allowed` positions are returned, `(n,)`, of which there are at least `count`. Products are as exact as the
        index stores vectors. Where the search depth yields fewer than `count` vectors, all inverted lists are searched;
        where that is not enough, or in a graph, all vectors that are allowed are compared.
        """
        faiss = _faiss()
        queries = np.ascontiguousarray(queries)
        ivf = faiss.try_extract_index_ivf(self.index)
        if allowed is None:
            scores, positions = self.index.search(queries, count, params=self._search_parameters)
        else:
            scores, positions = self._search_wide(queries, count, allowed)
        short = positions[:, -1] < 0  # at the end where there are too few
        if short.any() and ivf is not None:
            parameters = {**self.parameters, "nprobe": int(ivf.nlist)}
            all_lists = _search_parameters(self.index, parameters, _selector(allowed))
            scores[short], positions[short] = self.index.search(queries[short], count, params=all_lists)
            short = positions[:, -1] < 0
        if short.any():
            among = np.arange(len(self)) if allowed is None else np.flatnonzero(allowed)
            blocks = (self.vectors(among[start : start + _BLOCK]) for start in range(0, len(among), _BLOCK))
            scores[short], best = nearest_in_blocks(queries[short], blocks, count)
            positions[short] = among[best]
        return scores, positions

    def _search_wide(self, queries: Vectors, count: int, allowed: Mask) -> tuple[Floats, Ints]:
        """Fetch more the fewer vectors a filter allows, and drop the others; none where it allows few of all.

        A graph that is itself searched with a filter, and the inverted lists near a query, miss most of what a filter
        allows where that is far from the query. Here a query is short of hits then, at position -1.
        """
        share = float(allowed.mean())
        if share < _WIDE_SHARE:
            shape = len(queries), count
            return np.full(shape, -np.inf, dtype=np.float32), np.full(shape, -1, dtype=np.int64)
        fetch = min(len(self), math.ceil(_WIDE_MARGIN * count / share))
        deeper = {
            "efSearch": max(fetch, math.ceil(self.parameters.get("efSearch", 16) / share)),
            "nprobe": math.ceil(self.parameters.get("nprobe", 1) / share),
        }
        parameters = _search_parameters(self.index, {**self.parameters, **deeper})
        scores, positions = self.index.search(queries, fetch, params=parameters)
        return take_allowed(scores, positions, allowed, count)

    def vectors(self, positions: Ints) -> Vectors:
        """Return the vectors `(n, dim)` at positions, as the index stores them."""
        faiss = _faiss()
        vectors = np.empty((len(positions), self.dim), dtype=np.float32)
        is_refined = isinstance(faiss.downcast_index(self.index), faiss.IndexRefine)
        if is_refined or faiss.try_extract_index_ivf(self.index) is None:
            vectors[:] = self.index.reconstruct_batch(positions)
            return vectors
        # inverted lists have no order of positions: each call looks through all, for a range of them
        blocks = positions // _BLOCK
        for block in np.unique(blocks):
            inside = np.flatnonzero(blocks == block)
            first, last = int(positions[inside].min()), int(positions[inside].max())
            vectors[inside] = self.index.reconstruct_n(first, last - first + 1)[positions[inside] - first]
        return vectors

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


def nearest_by_faiss(queries: Vectors, blocks: Iterable[Vectors], count: int) -> tuple[Floats, Ints]:
    """Do `nearest_in_blocks` with FAISS: large products of NumPy keep those of searches in other threads waiting."""
    faiss = _faiss()
    best, start = faiss.ResultHeap(len(queries), count, keep_max=True), 0
    for block in blocks:
        scores, rows = faiss.knn(queries, block, count, faiss.METRIC_INNER_PRODUCT)
        best.add_result(scores, rows + start)
        start += len(block)
    best.finalize()
    return best.D, best.I


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

    def vectors(self, rows: Ints) -> Vectors:
        """Return the vectors `(n, dim)` of rows, as the index stores them."""
        positions = np.empty(len(self), dtype=np.int64)
        positions[self._rows] = np.arange(len(self))
        return self._index.vectors(positions[rows])

    def blocks(self) -> Iterator[tuple[Ints, Vectors]]:
        """Yield all rows and their vectors, as the index stores them."""
        for start in range(0, len(self), _BLOCK):
            size = min(_BLOCK, len(self) - start)
            yield self._rows[start : start + size], self._index.index.reconstruct_n(start, size)

    def nearest(self, queries: Vectors, count: int, allowed: Mask | None = None) -> tuple[Floats, Ints]:
        """Do `FaissIndex.nearest` by rows instead of positions."""
        at_positions = None if allowed is None else allowed[self._rows]
        scores, positions = self._index.nearest(queries, count, at_positions)
        return scores, self._rows[positions]

    def search(
        self, queries: Vectors, query_rows: Ints, top_k: int, allowed: Mask | None = None
    ) -> tuple[Ints, Floats]:
        """Rank as `ExactIndex.search`, among what the index finds and by the vectors as it stores them.

        Where the last vector that was fetched ties with the last hit, more are fetched.
        """
        size = len(self) if allowed is None else int(allowed.sum())
        at_positions = None if allowed is None else allowed[self._rows]
        rows = np.full((len(queries), top_k), -1, dtype=np.int64)
        steps = np.full((len(queries), top_k), LAST, dtype=np.int64)
        pending = np.arange(len(queries) if size else 0)
        fetch = top_k + bool((query_rows >= 0).any()) + EXTRA_HITS
        while len(pending):
            fetch = min(fetch, size)
            scores, positions = self._index.nearest(queries[pending], fetch, at_positions)
            require_cosines(scores)
            near = self._rows[positions]
            near_steps = np.rint(np.multiply(scores, STEPS, dtype=np.float64)).astype(np.int64)
            lowest = near_steps[:, -1].copy()
            near_steps[near == query_rows[pending, None]] = LAST
            hits = min(top_k, fetch)
            rows[pending, :hits], steps[pending, :hits] = best_first(near_steps, near, hits)
            pending = pending[(lowest >= steps[pending, -1]) & (fetch < size)]
            fetch *= _GROWTH
        rows[steps == LAST] = -1  # a query among its own hits
        return rows, np.where(rows < 0, np.nan, steps / STEPS).astype(np.float32)

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


def _selector(allowed: Mask | None) -> Any:
    """Return FAISS's form of a mask."""
    return None if allowed is None else _faiss().IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


def _search_parameters(index: Any, parameters: Mapping[str, int], selector: Any = None) -> Any:
    """Return FAISS's search parameters for an index and the indexes nested in it; a graph needs no selector."""
    faiss = _faiss()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        inner = _search_parameters(index.base_index, parameters, selector)
        return faiss.IndexRefineSearchParameters(k_factor=parameters.get("k_factor_rf", 1), base_index_params=inner)
    if isinstance(index, faiss.IndexPreTransform):
        inner = _search_parameters(index.index, parameters, selector)
        return faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=parameters.get("efSearch", 16))
    return faiss.SearchParametersIVF(nprobe=parameters.get("nprobe", 1), sel=selector)
