"""Exact search in less time: most vectors are ruled out by 8-bit products, whose error is known.

A vector is turned by a random rotation, which spreads it evenly over its dimensions, and rounded to 8 bits. What
rounding leaves is measured: the product of a query and a vector cannot differ from that of their rounded forms by more
than `error(query)` (Cauchy-Schwarz). So a vector whose rounded product is further than that below the k-th best exact
product is not among the k nearest; the others are compared in full.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.cores import cores
from lookalike.types import Vectors

Rows = npt.NDArray[np.int64]

_BLOCK = 16_384
"""Vectors whose products with a group of queries are in memory at once."""
_QUERIES = 128
"""Queries in a group."""
_RUN = 128
"""Vectors whose largest product is looked at before each of them is."""
_SLACK = 1e-5
"""For the rounding of float32 sums themselves."""


@dataclass(frozen=True)
class _Block:
    """Rounded vectors from a row on, packed for products: what 1 stands for in them, the longest rest and vector."""

    start: int
    size: int
    packed: Any
    step: float
    left: float
    longest: float


class Prefilter:
    """Rounded vectors, by which those that cannot be among the nearest are ruled out.

    Args:
        take: returns the vectors `(n, dim)` float32, unit length, of rows.
        count: number of vectors.
        dim: their dimensions.
        seed: of the rotation.

    """

    def __init__(self, take: Callable[[Rows], Vectors], count: int, dim: int, *, seed: int = 0) -> None:
        self._take = take
        self._rotation = _rotation(dim, seed)
        self._blocks: list[_Block] = []
        for start in range(0, count, _BLOCK):
            turned = take(np.arange(start, min(count, start + _BLOCK), dtype=np.int64)) @ self._rotation
            rounded, step, left = _rounded(turned)
            longest = float(np.linalg.norm(turned, axis=1).max())
            self._blocks.append(_Block(start, len(turned), _pack(rounded), step, float(left.max()), longest))

    def nearest(self, queries: Vectors, count: int) -> tuple[npt.NDArray[np.float32], Rows]:
        """Return float32 inner products and rows `(n_query, count)` of the nearest of all, best first."""
        if not len(queries):
            return np.zeros((0, count), np.float32), np.zeros((0, count), np.int64)
        parts = [self._group(queries[start : start + _QUERIES], count) for start in range(0, len(queries), _QUERIES)]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _group(self, queries: Vectors, count: int) -> tuple[npt.NDArray[np.float32], Rows]:
        rounded, step, left = _rounded(queries @ self._rotation)
        lengths = np.linalg.norm(queries, axis=1)
        threads = min(len(self._blocks), cores())
        shares = [self._blocks[n::threads] for n in range(threads)]

        def search(blocks: list[_Block]) -> _Best:
            best = _Best(queries, count, self._take)
            rooms: dict[int, Any] = {}  # for the products of a block, used again by the next one of its size
            for block in blocks:
                if block.size not in rooms:
                    rooms[block.size] = _room(len(rounded), block.size)
                products = _products(rounded, block.packed, rooms[block.size])
                # |q·x - q'·x'| <= |q - q'| |x| + |q'| |x - x'|
                error = left * block.longest + (lengths + left) * block.left + _SLACK
                best.add(*_candidates(products, best.worst, error, step * block.step, count), block.start)
            return best

        with ThreadPoolExecutor(threads) as pool:
            first, *others = pool.map(search, shares)
        for other in others:
            first.join(other)
        return first.scores, first.rows


class _Best:
    """The nearest so far of a group of queries, by exact products."""

    def __init__(self, queries: Vectors, count: int, take: Callable[[Rows], Vectors]) -> None:
        self._queries, self._take = queries, take
        self.scores = np.full((len(queries), count), -np.inf, dtype=np.float32)
        self.rows = np.full((len(queries), count), -1, dtype=np.int64)

    @property
    def worst(self) -> npt.NDArray[np.float32]:
        """The last score of each query `(n_query,)`."""
        found: npt.NDArray[np.float32] = self.scores[:, -1]
        return found

    def add(self, query: Rows, place: Rows, start: int) -> None:
        """Compare pairs of a query and a vector in full, and keep the best."""
        if not len(query):
            return
        rows = place + start
        scores = np.einsum("ij,ij->i", self._queries[query], self._take(rows))
        self._merge(query, rows, scores)

    def join(self, other: _Best) -> None:
        """Take over what another found among other vectors."""
        query = np.repeat(np.arange(len(self.rows)), self.rows.shape[1])
        self._merge(query, other.rows.ravel(), other.scores.ravel())

    def _merge(self, query: Rows, rows: Rows, scores: npt.NDArray[np.float32]) -> None:
        """Keep the best of what is there and of further rows, given with the query that each is for."""
        queries, count = self.rows.shape
        query = np.concatenate([np.repeat(np.arange(queries), count), query])
        rows = np.concatenate([self.rows.ravel(), rows])
        scores = np.concatenate([self.scores.ravel(), scores])
        order = np.lexsort((-scores, query))
        starts = np.searchsorted(query[order], np.arange(queries))
        kept = order[starts[:, None] + np.arange(count)]
        self.rows, self.scores = rows[kept], scores[kept]


def _candidates(
    products: npt.NDArray[np.int32],
    worst: npt.NDArray[np.float32],
    error: npt.NDArray[np.floating[Any]],
    unit: float,
    count: int,
) -> tuple[Rows, Rows]:
    """Return query and place of the vectors of a block that may be among the nearest.

    Most of a block is passed over by the largest product of each run of vectors.

    Args:
        products: `(n_query, size)` of rounded vectors.
        worst: `(n_query,)` the k-th best exact score so far, minus infinity where there are not k yet.
        error: `(n_query,)` how far a rounded product may be from the exact one.
        unit: what a product of 1 stands for.
        count: k.

    """
    queries, size = products.shape
    whole = size - size % _RUN
    runs = products[:, :whole].reshape(queries, whole // _RUN, _RUN)
    largest = runs.max(axis=2)
    floor = (worst - error) / unit
    begun = np.isfinite(floor)
    if not begun.all():
        # the k-th largest of some products is no more than the k-th of all, and that less the error no more than the
        # k-th exact one
        few = largest if largest.shape[1] >= count else products
        last = few.shape[1] - min(count, few.shape[1])
        kth = np.partition(few, last, axis=1)[:, last]
        floor = np.where(begun, floor, kth - 2 * error / unit)
    # clipped, so that it can be compared as the products' own type: rounded down, nothing is lost
    least = np.floor(np.clip(floor.astype(np.float64), -(2**31), 2**31 - 1)).astype(np.int32)
    query, run = np.nonzero(largest >= least[:, None])
    found, place = np.nonzero(runs[query, run] >= least[query, None])
    rest, end = np.nonzero(products[:, whole:] >= least[:, None])
    return np.concatenate([query[found], rest]), np.concatenate([run[found] * _RUN + place, end + whole])


def _rounded(turned: Vectors) -> tuple[npt.NDArray[np.int8], float, Vectors]:
    """Round vectors to 8 bits: the whole numbers, what 1 stands for, and the length of what is left of each."""
    step = (float(np.abs(turned).max()) or 1.0) / 127
    rounded = np.rint(turned / step)
    left: Vectors = np.linalg.norm(turned - rounded * step, axis=1).astype(np.float32)
    return rounded.astype(np.int8), step, left


def _rotation(dim: int, seed: int) -> Vectors:
    random = np.random.default_rng(seed).standard_normal((dim, dim))
    turned: Vectors = np.linalg.qr(random)[0].astype(np.float32)
    return turned


def _pack(rounded: npt.NDArray[np.int8]) -> Any:
    import numkong

    return numkong.dots_pack(rounded)


def _room(queries: int, size: int) -> Any:
    import numkong

    return numkong.empty((queries, size), dtype="int32")


def _products(queries: npt.NDArray[np.int8], packed: Any, room: Any) -> npt.NDArray[np.int32]:
    import numkong

    return np.asarray(numkong.dots_packed(queries, packed, out=room))
