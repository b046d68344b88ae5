"""Exact search in less time: most vectors are ruled out by short 8-bit products, whose error is known.

Vectors are projected on the directions that hold nearly all of their length, turned by a random rotation, which spreads
them evenly over these dimensions, and rounded to 8 bits. What the projection and rounding leave of each vector is
measured: the product of a query and a vector cannot differ from that of their rounded forms by more than an error that
follows from it (Cauchy-Schwarz). So a vector whose rounded product is further than that below what the k-th best is
certain to reach is not among the k nearest; the others are compared in full.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike._cores import cores
from lookalike.index.building import evenly
from lookalike.index.flat_file import Rows
from lookalike.types import Vectors

_BLOCK = 8192
"""Vectors whose products with a group of queries are in memory at once."""
_QUERIES = 128
"""Queries in a group."""
_RUN = 64
"""Vectors whose largest product is looked at before each of them is."""
_SLACK = 1e-5
"""For the rounding of float32 sums themselves."""
_SAMPLE = 10_000
"""Vectors that the directions are learnt from."""
_DIRECTIONS = 64
"""Their number is a multiple of it."""
_BEYOND = 0.02
"""Share of the squared length that may lie beyond them."""
_PAIRS = 1_000_000
_SHARE = 50
"""More pairs of a query and a vector than so many, and than one in so many of all, are too many to compare in full."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Rounded:
    """Projected and rounded vectors, and what bounds the error of their products.

    Attributes:
        numbers: `(n, directions)` int8.
        step: what 1 stands for in them, `(1, 1)` or `(n, 1)`.
        length: of each projected vector, `(n,)`.
        left: length of what rounding left of it.
        beyond: length of what projecting left of the vector.

    """

    numbers: npt.NDArray[np.int8]
    step: Floats
    length: Floats
    left: Floats
    beyond: Floats


@dataclass(frozen=True)
class _Block:
    """Rounded vectors from a row on, packed for products; see `_Rounded`."""

    start: int
    packed: Any
    step: float
    left: Floats
    beyond: Floats


class Prefilter:
    """Rounded vectors, by which those that cannot be among the nearest are ruled out.

    Args:
        take: returns the vectors `(n, dim)` float32, unit length, of rows.
        count: number of vectors.
        dim: their dimensions.
        seed: of the rotation.

    """

    def __init__(self, take: Callable[[Rows], Vectors], count: int, dim: int, *, seed: int = 0) -> None:
        self._take, self._count = take, count
        self._directions = _directions(take(evenly(np.arange(count, dtype=np.int64), _SAMPLE)), dim, seed)
        self._blocks: list[_Block] = []
        self._longest = 0.0
        for start in range(0, count, _BLOCK):
            rounded = self._rounded(take(np.arange(start, min(count, start + _BLOCK), dtype=np.int64)), each=False)
            packed, step = _pack(rounded.numbers), float(rounded.step[0, 0])
            self._blocks.append(_Block(start, packed, step, rounded.left, rounded.beyond))
            self._longest = max(self._longest, float(rounded.length.max()))

    def nearest(self, queries: Vectors, count: int) -> tuple[Floats, Rows] | None:
        """Return float32 inner products and rows `(n_query, count)` of the nearest of all, best first.

        None where too few vectors can be ruled out for this to be worth it, as where nearly all of them are alike.
        """
        scores = np.empty((len(queries), count), dtype=np.float32)
        rows = np.empty((len(queries), count), dtype=np.int64)
        threads = cores()
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(queries), _QUERIES):
                group = queries[start : start + _QUERIES]
                most = max(_PAIRS, len(group) * self._count // _SHARE)
                search = _Search(self._rounded(group, each=True), self._longest, count, most)
                shares = [self._blocks[n::threads] for n in range(min(threads, len(self._blocks)))]
                if not all(pool.map(search.look_at, shares)):
                    return None
                candidates = search.candidates()

                def compare(
                    part: range, group: Vectors = group, found: list[Rows] = candidates, at: int = start
                ) -> None:
                    for query in part:
                        scores[at + query], rows[at + query] = self._best(group[query], found[query], count)

                list(pool.map(compare, [range(n, len(group), threads) for n in range(threads)]))
        return scores, rows

    def _best(self, query: Vectors, rows: Rows, count: int) -> tuple[Floats, Rows]:
        """Compare with the vectors of rows in full; return scores and rows of the best."""
        parts = [self._take(rows[start : start + _BLOCK]) @ query for start in range(0, len(rows), _BLOCK)]
        exact = np.concatenate(parts)
        best = np.argsort(-exact, kind="stable")[:count]
        return exact[best], rows[best]

    def _rounded(self, vectors: Vectors, *, each: bool) -> _Rounded:
        """Project and round vectors, each in steps of its own or all in the same."""
        projected = vectors @ self._directions
        step = np.abs(projected).max(axis=1 if each else None, keepdims=True) / 127
        step[step == 0] = 1
        numbers = np.rint(projected / step)
        length = np.linalg.norm(projected, axis=1)
        beyond = np.zeros(len(vectors), dtype=np.float32)
        if self._directions.shape[1] < vectors.shape[1]:
            # a difference of squares is known to about their rounding, no better
            squares = np.einsum("ij,ij->i", vectors, vectors) - length**2
            beyond = np.sqrt(np.maximum(squares, 0) + _SLACK)
        left = np.linalg.norm(projected - numbers * step, axis=1)
        return _Rounded(numbers.astype(np.int8), step, length, left, beyond)


class _Search:
    """A group of queries under way: which vectors may be among their nearest; by several threads at once.

    Args:
        queries: the group.
        longest: length that no projected vector exceeds.
        count: how many nearest each shall have.
        most: pairs of a query and a vector that may be left.

    """

    def __init__(self, queries: _Rounded, longest: float, count: int, most: int) -> None:
        self._queries = queries
        # |q·x - q'·x'| <= |q - q'| |x| + |q'| |x - x'| + |what is beyond of q| |what is beyond of x|
        self._constant = queries.left * np.float32(longest) + np.float32(_SLACK)
        self._by_left = queries.length + queries.left
        self._certain = np.full((len(queries.numbers), count), -np.inf, dtype=np.float32)
        self._worst = self._certain.min(axis=1)
        self._found: list[tuple[Rows, Rows, Floats]] = []
        self._most, self._pairs = most, 0
        self._merging = threading.Lock()

    def look_at(self, blocks: list[_Block]) -> bool:
        """Look for candidates in blocks; return whether they are few enough."""
        rooms: dict[int, Any] = {}  # for the products of a block, used again by the next one of its size
        for block in blocks:
            size = len(block.left)
            if size not in rooms:
                rooms[size] = _room(len(self._queries.numbers), size)
            self._sift(block, _products(self._queries.numbers, block.packed, rooms[size]))
            if self._pairs > self._most:
                return False
        return True

    def _sift(self, block: _Block, products: npt.NDArray[np.int32]) -> None:
        """Note the vectors of a block that may be among the nearest, by their products `(n_query, size)`."""
        unit = self._queries.step[:, 0] * np.float32(block.step)
        error = self._constant + self._by_left * block.left.max() + self._queries.beyond * block.beyond.max()
        queries, size = products.shape
        whole = size - size % _RUN
        runs = products[:, :whole].reshape(queries, _RUN, whole // _RUN)
        largest = runs.max(axis=1)
        worst = self._worst
        if not np.isfinite(worst).all():
            # the k-th largest of some products is no more than that of all
            some = largest if largest.shape[1] >= self._certain.shape[1] else products
            last = some.shape[1] - min(self._certain.shape[1], some.shape[1])
            worst = np.maximum(worst, np.partition(some, last, axis=1)[:, last] * unit - error)
        # clipped, so that it can be compared as the products' own type: rounded down, nothing is lost
        floor = np.floor((worst.astype(np.float64) - error) / unit)
        least = np.clip(floor, -(2**31), 2**31 - 1).astype(np.int32)
        query, run = np.nonzero(largest >= least[:, None])
        found, place = np.nonzero(runs[query, :, run] >= least[query, None])
        rest, end = np.nonzero(products[:, whole:] >= least[:, None])
        query = np.concatenate([query[found], rest])
        place = np.concatenate([place * runs.shape[2] + run[found], whole + end])
        if len(query):
            near = products[query, place] * unit[query]
            error = self._constant[query] + self._by_left[query] * block.left[place]
            error += self._queries.beyond[query] * block.beyond[place]
            self._note(query, place + block.start, near - error, near + error)

    def _note(self, query: Rows, rows: Rows, low: Floats, high: Floats) -> None:
        """Keep rows that may be among the nearest of a query, given how near they are at least and at most."""
        with self._merging:
            kept = high >= self._worst[query]
            query, rows, low, high = query[kept], rows[kept], low[kept], high[kept]
            self._found.append((query, rows, high))
            self._pairs += len(query)
            if not len(query):
                return
            asked, place, times = np.unique(query, return_inverse=True, return_counts=True)
            count, width = self._certain.shape[1], int(times.max())
            room = np.full((len(asked), count + width), -np.inf, dtype=np.float32)
            room[:, :count] = self._certain[asked]
            room[place, count + _before(place, times)] = low
            best = np.partition(room, width, axis=1)[:, width:]
            self._certain[asked] = best
            self._worst[asked] = best[:, 0]
            if self._pairs > self._most:  # some of them were noted when less was known
                self._found = [self._still_possible()]
                self._pairs = len(self._found[0][0])

    def candidates(self) -> list[Rows]:
        """Return the rows that may be among the nearest, by query, rising."""
        query, rows, _ = self._still_possible()
        order = np.lexsort((rows, query))
        return np.split(rows[order], np.searchsorted(query[order], np.arange(1, len(self._worst))))

    def _still_possible(self) -> tuple[Rows, Rows, Floats]:
        """Return what was noted and may still be among the nearest: query, row, and how near it is at most."""
        query, rows, high = (np.concatenate(part) for part in zip(*self._found, strict=True))
        kept = high >= self._worst[query]
        return query[kept], rows[kept], high[kept]


def _before(number: Rows, times: Rows) -> Rows:
    """Return how often each number stands before itself, given how often each of them stands there at all."""
    found = np.empty(len(number), dtype=np.int64)
    found[np.argsort(number, kind="stable")] = np.arange(len(number)) - np.repeat(np.cumsum(times) - times, times)
    return found


def _directions(sample: Vectors, dim: int, seed: int) -> Floats:
    """Return orthogonal directions `(dim, directions)` that hold nearly all of the squared length of vectors."""
    energy, axes = np.linalg.eigh(np.asarray(sample.T @ sample, dtype=np.float64))
    beyond = np.cumsum(energy) / max(energy.sum(), np.finfo(np.float64).tiny)  # of the smallest, so many of them
    number = dim - int((beyond <= _BEYOND).sum())
    number = min(dim, -(-max(1, number) // _DIRECTIONS) * _DIRECTIONS)
    turned = np.linalg.qr(np.random.default_rng(seed).standard_normal((number, number)))[0]
    found: Floats = (axes[:, dim - number :] @ turned).astype(np.float32)
    return found


def _pack(rounded: npt.NDArray[np.int8]) -> Any:
    import numkong

    return numkong.dots_pack(rounded)


def _room(queries: int, size: int) -> Any:
    import numkong

    return numkong.empty((queries, size), dtype="int32")


def _products(queries: npt.NDArray[np.int8], packed: Any, room: Any) -> npt.NDArray[np.int32]:
    import numkong

    return np.asarray(numkong.dots_packed(queries, packed, out=room))
