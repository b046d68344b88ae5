"""Exact search: every vector is compared, by a matrix product, by FAISS, or after a prefilter.

The prefilter saves time: 8-bit products, whose error is bounded, rule out most vectors. Vectors are projected on the
directions that hold nearly all of their length, rotated at random, which spreads them evenly over these dimensions, and
rounded to 8 bits. By Cauchy-Schwarz the product of a query and a vector differs from that of their rounded forms by at
most a bound that follows from the lengths of what projection and rounding drop. A vector whose rounded product plus
that bound is below the k-th best lower bound is not among the k nearest; the others are compared in full.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike._system import cpu_count
from lookalike._top_k import STEPS, Floats, Ints, best_first, cosine_steps, nearest_in_blocks, take_allowed
from lookalike.index.faiss_index import INDEX_FILE, require_cosines
from lookalike.index.filters import Mask
from lookalike.index.storage import map_vectors, spaced, write_vectors
from lookalike.types import Vectors

BRUTE_FORCE_MAX = 20_000  # up to this many vectors one matrix product is faster than importing FAISS
PREFILTER_MIN = 100_000  # from this many vectors on a prefilter pays
PREFILTER_AFTER_QUERIES = 1000  # building the prefilter costs about as much as this many unfiltered queries
_EXTRA_HITS = 15  # fetched beyond the requested ones, so that a small tie needs no second search
_GROWTH = 4  # factor by which a search fetches more where ties remain open
_GATHERED_SHARE = 0.25  # a filter that allows a smaller share of the vectors is searched by comparing only these
_MARGIN = 1.5  # a wider filter fetches this much more than it needs if what it allows is spread evenly
_CELLS = 4_000_000  # query x candidate cells in memory at once

# of the prefilter
_BLOCK = 8192  # vectors whose products with a group of queries are in memory at once
_GROUP = 128  # queries
_RUN = 64  # vectors whose largest product is checked before each of them is
_ROUNDING = 1e-5  # allows for the rounding of float32 sums
_SAMPLE = 10_000  # vectors that the directions are estimated from
_DIRECTIONS_STEP = 64  # the number of directions is a multiple of it
_OUTSIDE = 0.02  # share of the squared length that may be outside the directions
# the prefilter gives up where more pairs of query and vector are left than this and than this share of all
_MAX_PAIRS = 1_000_000
_MAX_SHARE = 1 / 50


class ExactIndex:
    """Unit-length vectors by row, compared exactly; `vectors` may be mapped from disk.

    `prefilter`: whether there is memory for a prefilter; it is built after enough queries.
    """

    key = "Flat"

    def __init__(self, vectors: Vectors, *, prefilter: bool = True) -> None:
        self._vectors = np.array(vectors) if len(vectors) <= BRUTE_FORCE_MAX else vectors
        self.prefilter = prefilter
        self._prefilter: Prefilter | None = None
        self._prefilter_pays = prefilter and len(vectors) >= PREFILTER_MIN
        self._queries = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._vectors)

    def __reduce__(self) -> tuple[Any, ...]:  # a lock cannot be pickled
        return partial(ExactIndex, prefilter=self.prefilter), (self._vectors,)

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return int(self._vectors.shape[1])

    def vectors(self, rows: Ints) -> Vectors:
        """Return the vectors `(n, dim)` of rows."""
        return np.asarray(self._vectors[rows])

    def search(
        self, queries: Vectors, query_rows: Ints, top_k: int, allowed: Mask | None = None
    ) -> tuple[Ints, Floats]:
        """Return rows and cosines `(n_query, top_k)`, ordered by descending cosine in millionths, then row.

        `query_rows` are the rows of the queries, which are never their own hits; -1 outside the index. Only `allowed`
        rows are hits, `(n,)`; where a query has fewer than `top_k`, the last rows are -1 and their cosines nan.

        Candidates are fetched in float32 and compared again in float64. Where a vector that was not fetched could tie
        with the last hit, more are fetched; with a filter, then only from the allowed vectors.
        """
        rows = np.full((len(queries), top_k), -1, dtype=np.int64)
        steps = np.zeros((len(queries), top_k), dtype=np.int64)
        among = None if allowed is None else np.flatnonzero(allowed)
        share = 1.0 if among is None else len(among) / len(self)
        gathered = share < _GATHERED_SHARE
        fetch = math.ceil((top_k + 1 + _EXTRA_HITS) / (1 if gathered else share))
        pending = np.arange(len(queries) if share else 0)
        while len(pending):
            source = among if gathered else None
            size = len(self) if source is None else len(source)
            fetch = min(fetch, size)
            chunk = max(1, _CELLS // fetch)
            undecided: list[int] = []
            for start in range(0, len(pending), chunk):
                part = pending[start : start + chunk]
                scores, candidates = self._nearest_among(source, queries[part], fetch)
                require_cosines(scores)
                for query, lowest, fetched in zip(part.tolist(), scores[:, -1].tolist(), candidates, strict=True):
                    others = fetched[fetched != query_rows[query]]
                    if allowed is not None:
                        others = others[allowed[others]]
                    hits = min(top_k, len(others))
                    other_steps = cosine_steps(queries[query : query + 1], self.vectors, others)
                    rows[query, :hits], steps[query, :hits] = best_first(other_steps, others, hits)
                    certain = hits == top_k and lowest < steps[query, -1] / STEPS - float32_error(self.dim)
                    if fetch < size and not certain:
                        undecided.append(query)
            pending = np.array(undecided, dtype=np.int64)
            fetch *= _GROWTH
            gathered = among is not None
        return rows, np.where(rows < 0, np.nan, steps / STEPS).astype(np.float32)

    def nearest_allowed(self, queries: Vectors, count: int, allowed: Mask) -> tuple[Floats, Ints]:
        """Do `nearest` among the rows that are allowed, `(n,)`, of which there are at least `count`."""
        number = int(np.count_nonzero(allowed))
        fetch = math.ceil(_MARGIN * count * len(self) / number)
        if number >= _GATHERED_SHARE * len(self) and fetch < len(self):
            scores, rows = take_allowed(*self.nearest(queries, fetch), allowed, count)
            if (rows[:, -1] >= 0).all():
                return scores, rows
        return self._nearest_among(np.flatnonzero(allowed), queries, count)

    def _nearest_among(self, rows: Ints | None, queries: Vectors, count: int) -> tuple[Floats, Ints]:
        """Do `nearest` among some rows; None for all."""
        if rows is None:
            return self.nearest(queries, count)
        blocks = (self.vectors(rows[start : start + _BLOCK]) for start in range(0, len(rows), _BLOCK))
        scores, positions = nearest_in_blocks(queries, blocks, count)
        return scores, rows[positions]

    def nearest(self, queries: Vectors, count: int) -> tuple[Floats, Ints]:
        """Return float32 inner products and rows `(n_query, count)`, best first; `count` is at most the size."""
        if len(self) <= BRUTE_FORCE_MAX:
            return nearest_in_blocks(queries, [self._vectors], count)
        if self._prefilter is None and self._prefilter_pays and self._lock.acquire(blocking=False):
            try:  # other threads search without it meanwhile
                self._queries += len(queries)
                if self._queries >= PREFILTER_AFTER_QUERIES and self._prefilter is None:
                    self._prefilter = Prefilter(self.vectors, len(self))
            finally:
                self._lock.release()
        prefilter = self._prefilter  # another thread may drop it
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
        write_vectors(folder / INDEX_FILE, self._vectors)

    @classmethod
    def read(cls, folder: Path, *, prefilter: bool) -> ExactIndex:
        """Open an index in a folder; more than `BRUTE_FORCE_MAX` vectors stay on disk until they are read."""
        return cls(map_vectors(folder / INDEX_FILE), prefilter=prefilter)


def float32_error(dim: int) -> float:
    """Return how far the float32 score of a vector can be below a rounded cosine that it ties with.

    A float32 sum of `dim` products of unit vectors is off by at most `dim` roundings, whatever their order (Higham
    2002, section 3.1); half a millionth is due to rounding to millionths, the rest allows for lengths near 1.
    """
    return 1.01 * dim * 2.0**-24 + 1e-6


@dataclass(frozen=True)
class _Rounded:
    """Projected and rounded vectors, and the lengths that bound the error of their products."""

    codes: npt.NDArray[np.int8]  # (n, directions)
    step: Floats  # value of 1 in `codes`: (1, 1) for all vectors, or (n, 1)
    length: Floats  # (n,) of the projected vectors
    residual: Floats  # (n,) length of what rounding dropped
    outside: Floats  # (n,) length of what projection dropped


@dataclass(frozen=True)
class _Block:
    """Consecutive rounded vectors, packed for products; see `_Rounded`."""

    start: int
    packed: Any
    step: float
    residual: Floats
    outside: Floats


class Prefilter:
    """Rounded vectors that rule out most of what cannot be among the nearest; `take` returns the vectors of rows."""

    def __init__(self, take: Callable[[Ints], Vectors], count: int) -> None:
        import numkong

        self._take, self._count = take, count
        rows = np.arange(count, dtype=np.int64)
        self._directions = _directions(take(spaced(rows, _SAMPLE)))
        self._blocks: list[_Block] = []
        self._max_length = 0.0
        for start in range(0, count, _BLOCK):
            part = self._round(take(rows[start : start + _BLOCK]), step_per_vector=False)
            packed = numkong.dots_pack(part.codes)
            self._blocks.append(_Block(start, packed, float(part.step[0, 0]), part.residual, part.outside))
            self._max_length = max(self._max_length, float(part.length.max()))

    def nearest(self, queries: Vectors, count: int) -> tuple[Floats, Ints] | None:
        """Return float32 inner products and rows `(n_query, count)`, best first; `count` is at most the size.

        None if too few vectors can be ruled out to save time, as where nearly all are alike.
        """
        scores = np.empty((len(queries), count), dtype=np.float32)
        rows = np.empty((len(queries), count), dtype=np.int64)
        threads = cpu_count()
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(queries), _GROUP):
                group = queries[start : start + _GROUP]
                max_pairs = max(_MAX_PAIRS, int(len(group) * self._count * _MAX_SHARE))
                scan = _Scan(self._round(group, step_per_vector=True), self._max_length, count, max_pairs)
                if not all(pool.map(scan.scan, [self._blocks[n::threads] for n in range(threads)])):
                    return None
                candidates = scan.candidates()
                parts = [slice(n, None, threads) for n in range(threads)]
                jobs = [group[part] for part in parts], [candidates[part] for part in parts], repeat(count)
                for part, compared in zip(parts, pool.map(self._compare, *jobs), strict=True):
                    scores[start : start + _GROUP][part], rows[start : start + _GROUP][part] = compared
        return scores, rows

    def _compare(self, queries: Vectors, candidates: Sequence[Ints], count: int) -> tuple[Floats, Ints]:
        scores = np.empty((len(queries), count), dtype=np.float32)
        nearest = np.empty((len(queries), count), dtype=np.int64)
        for n, rows in enumerate(candidates):
            blocks = (self._take(rows[start : start + _BLOCK]) for start in range(0, len(rows), _BLOCK))
            scores[n], best = nearest_in_blocks(queries[n : n + 1], blocks, count)
            nearest[n] = rows[best[0]]
        return scores, nearest

    def _round(self, vectors: Vectors, *, step_per_vector: bool) -> _Rounded:
        """Project and round vectors, with a step per vector or one for all."""
        projected = vectors @ self._directions
        step = np.abs(projected).max(axis=1 if step_per_vector else None, keepdims=True) / 127
        step[step == 0] = 1
        codes = np.rint(projected / step)
        length = np.linalg.norm(projected, axis=1)
        outside = np.zeros(len(vectors), dtype=np.float32)
        if self._directions.shape[1] < vectors.shape[1]:
            # the difference of squares is only accurate to about their rounding
            squares = np.einsum("ij,ij->i", vectors, vectors) - length**2
            outside = np.sqrt(np.maximum(squares, 0) + _ROUNDING)
        residual = np.linalg.norm(projected - codes * step, axis=1)
        return _Rounded(codes.astype(np.int8), step, length, residual, outside)


class _Scan:
    """Finds the candidates of a group of queries, in several threads at once; gives up at `max_pairs` of them."""

    def __init__(self, queries: _Rounded, max_length: float, count: int, max_pairs: int) -> None:
        self._queries = queries
        # |q·x - q'·x'| <= |q - q'| |x| + |q'| |x - x'| + |q outside the directions| |x outside them|
        self._fixed_error = queries.residual * np.float32(max_length) + np.float32(_ROUNDING)
        self._error_per_residual = queries.length + queries.residual
        self._lower_bounds = np.full((len(queries.codes), count), -np.inf, dtype=np.float32)  # the best of each query
        self._kth_bound = self._lower_bounds.min(axis=1)
        self._recorded: list[tuple[Ints, Ints, Floats]] = []  # query, row, upper bound of their product
        self._pairs, self._max_pairs = 0, max_pairs
        self._lock = threading.Lock()

    def scan(self, blocks: Sequence[_Block]) -> bool:
        """Record the candidates in blocks; return False where there are too many."""
        import numkong

        outputs: dict[int, Any] = {}  # for the products, by size of the block
        for block in blocks:
            size = len(block.residual)
            if size not in outputs:
                outputs[size] = numkong.empty((len(self._queries.codes), size), dtype="int32")
            products = numkong.dots_packed(self._queries.codes, block.packed, out=outputs[size])
            self._scan_block(block, np.asarray(products))
            if self._pairs > self._max_pairs:
                return False
        return True

    def _scan_block(self, block: _Block, products: npt.NDArray[np.int32]) -> None:
        """Record the candidates in a block, by its products `(n_query, size)`."""
        unit = self._queries.step[:, 0] * np.float32(block.step)
        error = self._error(slice(None), block.residual.max(), block.outside.max())
        queries, size = products.shape
        whole = size - size % _RUN
        runs = products[:, :whole].reshape(queries, _RUN, -1)  # strided, which is faster to reduce
        largest = runs.max(axis=1)
        bound = self._kth_bound
        if not np.isfinite(bound).all():  # start with the k-th largest of some of the block's products
            count = self._lower_bounds.shape[1]
            some = largest if largest.shape[1] >= count else products
            kth = some.shape[1] - min(count, some.shape[1])
            bound = np.maximum(bound, np.partition(some, kth, axis=1)[:, kth] * unit - error)
        # compared as int32, rounded down, so that no candidate is lost
        floor = np.floor((bound.astype(np.float64) - error) / unit)
        threshold = np.clip(floor, -(2**31), 2**31 - 1).astype(np.int32)[:, None]
        query, run = np.nonzero(largest >= threshold)
        hit, position = np.nonzero(runs[query, :, run] >= threshold[query])
        rest_query, rest = np.nonzero(products[:, whole:] >= threshold)
        columns = np.concatenate([position * runs.shape[2] + run[hit], whole + rest])
        query = np.concatenate([query[hit], rest_query])
        if len(query):
            product = products[query, columns] * unit[query]
            error = self._error(query, block.residual[columns], block.outside[columns])
            self._record(query, columns + block.start, product - error, product + error)

    def _error(self, query: Ints | slice, residual: Floats, outside: Floats) -> Floats:
        error = self._fixed_error[query] + self._error_per_residual[query] * residual
        error += self._queries.outside[query] * outside
        return error

    def _record(self, query: Ints, rows: Ints, low: Floats, high: Floats) -> None:
        """Record candidates, with a lower and an upper bound of their product with the query."""
        with self._lock:
            order = np.flatnonzero(high >= self._kth_bound[query])
            if not len(order):
                return
            order = order[np.argsort(query[order], kind="stable")]
            query, rows, low, high = query[order], rows[order], low[order], high[order]
            self._recorded.append((query, rows, high))
            self._pairs += len(query)
            first = np.flatnonzero(np.diff(query, prepend=-1))  # of each query that changes
            changed, sizes = query[first], np.diff(first, append=len(query))
            line = np.repeat(np.arange(len(changed)), sizes)
            count, width = self._lower_bounds.shape[1], int(sizes.max())
            bounds = np.full((len(changed), count + width), -np.inf, dtype=np.float32)
            bounds[:, :count] = self._lower_bounds[changed]
            bounds[line, count + np.arange(len(query)) - first[line]] = low
            best = np.partition(bounds, width, axis=1)[:, width:]
            self._lower_bounds[changed] = best
            self._kth_bound[changed] = best[:, 0]
            if self._pairs > self._max_pairs:  # the bounds have risen since the first were recorded
                self._recorded = [self._remaining()]
                self._pairs = len(self._recorded[0][0])

    def candidates(self) -> list[Ints]:
        """Return the rows that may be among the nearest of each query, ascending."""
        query, rows, _ = self._remaining()
        order = np.lexsort((rows, query))
        return np.split(rows[order], np.searchsorted(query[order], np.arange(1, len(self._kth_bound))))

    def _remaining(self) -> tuple[Ints, Ints, Floats]:
        query, rows, high = (np.concatenate(part) for part in zip(*self._recorded, strict=True))
        near = high >= self._kth_bound[query]
        return query[near], rows[near], high[near]


def _directions(sample: Vectors) -> Floats:
    """Return randomly rotated directions `(dim, n)` that hold nearly all of the squared length of vectors."""
    dim = sample.shape[1]
    energy, axes = np.linalg.eigh(np.asarray(sample.T @ sample, dtype=np.float64))
    outside = np.cumsum(energy) / max(energy.sum(), np.finfo(np.float64).tiny)  # of the smallest axes
    number = dim - int((outside <= _OUTSIDE).sum())
    number = min(dim, -(-max(1, number) // _DIRECTIONS_STEP) * _DIRECTIONS_STEP)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((number, number)))[0]
    directions: Floats = (axes[:, dim - number :] @ rotation).astype(np.float32)
    return directions
