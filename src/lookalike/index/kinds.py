"""The kinds of approximate index that are tried, as rows of data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

LINKS = 32
"""Of a vector in the graph's lower level, HNSW's M."""
TRAINING_PER_LIST = 40
"""Vectors that a list's centre is learnt from; FAISS warns below 39."""
_LIST = 8
_GRAPH = LINKS * 2 * 4 + 12
ROW = 8
"""Bytes that the number of each vector takes beside the index."""


@dataclass(frozen=True)
class Kind:
    """A kind of index.

    Attributes:
        name: for people.
        key: FAISS's factory string for so many vectors of so many dimensions.
        bytes_each: of a vector of so many dimensions, about.
        shared: bytes that all vectors share, of so many vectors of so many dimensions: a rotation, centres of lists.
        knobs: what decides how deep a search looks.
        last_resort: tried only where nothing else is small enough: it costs much to learn.

    """

    name: str
    key: Callable[[int, int], str]
    bytes_each: Callable[[int], float]
    knobs: tuple[str, ...]
    shared: Callable[[int, int], float] = lambda *_: 0
    last_resort: bool = False

    def size(self, count: int, dim: int) -> float:
        """Return about how many bytes so many vectors of so many dimensions take, their numbers included."""
        return (self.bytes_each(dim) + ROW) * count + self.shared(count, dim)


def lists(count: int) -> int:
    """Return the number of inverted lists for so many vectors: near 4 √n, a power of two, few enough to be learnt."""
    most = math.floor(math.log2(max(1, count // TRAINING_PER_LIST)))
    return int(2 ** min(most, round(math.log2(4 * math.sqrt(count)))))


def codes(dim: int) -> int:
    """Return the parts that a product quantiser cuts so many dimensions into: of 16 or a little more."""
    return next(parts for parts in range(max(1, dim // 16), 0, -1) if dim % parts == 0)


def _bits(count: int, dim: int, code: str) -> str:
    # the rotation spreads what there is to tell evenly over the dimensions, which so few bits of each suppose; those of
    # a head that began as principal components differ much
    return f"RR{dim},IVF{lists(count)},{code}"


def _rotation(dim: int) -> int:
    return 4 * dim * dim


def _components(_: int, dim: int) -> float:
    """Half of all principal components; FAISS keeps the whole of them beside it, with means and variances."""
    return 4 * (1.5 * dim * dim + 2.5 * dim)


def _centres(count: int, dim: int) -> int:
    return 4 * dim * lists(count)


def _rotated_lists(count: int, dim: int) -> int:
    return _rotation(dim) + _centres(count, dim)


def _reduced(dim: int) -> str:
    return f"PCA{-(-dim // 2)},HNSW{LINKS}_SQ8"


KINDS = (
    Kind("graph over whole vectors", lambda *_: f"HNSW{LINKS},Flat", lambda d: 4 * d + _GRAPH, ("efSearch",)),
    Kind("graph over vectors in 8 bits", lambda *_: f"HNSW{LINKS},SQ8", lambda d: d + _GRAPH, ("efSearch",)),
    Kind(
        "graph over the main half of the dimensions in 8 bits",
        lambda _, d: _reduced(d),
        lambda d: d / 2 + _GRAPH,
        ("efSearch",),
        _components,
    ),
    Kind(
        "graph over the main half of the dimensions in 8 bits, refined by whole vectors",
        lambda _, d: f"{_reduced(d)},RFlat",
        lambda d: d / 2 + _GRAPH + 4 * d,
        ("efSearch", "k_factor_rf"),
        _components,
    ),
    Kind("lists of whole vectors", lambda n, _: f"IVF{lists(n)},Flat", lambda d: 4 * d + _LIST, ("nprobe",), _centres),
    Kind(
        "lists of one bit a dimension, refined by 8 bits",
        lambda n, d: f"{_bits(n, d, 'RaBitQ')},Refine(SQ8)",
        lambda d: d + d / 8 + 8 + _LIST,
        ("nprobe", "k_factor_rf"),
        _rotated_lists,
    ),
    Kind("lists of vectors in 8 bits", lambda n, _: f"IVF{lists(n)},SQ8", lambda d: d + _LIST, ("nprobe",), _centres),
    Kind(
        "lists of 4 bits a dimension",
        lambda n, d: _bits(n, d, "RaBitQ4"),
        lambda d: d / 2 + 16 + _LIST,
        ("nprobe",),
        _rotated_lists,
    ),
    Kind(
        "lists of one bit a dimension",
        lambda n, d: _bits(n, d, "RaBitQ"),
        lambda d: d / 8 + 8 + _LIST,
        ("nprobe",),
        _rotated_lists,
    ),
    Kind(
        "lists of product codes",
        lambda n, d: _bits(n, d, f"PQ{codes(d)}"),
        lambda d: codes(d) + _LIST,
        ("nprobe",),
        lambda n, d: _rotated_lists(n, d) + 4 * 256 * d,
        last_resort=True,
    ),
)


def fitting(count: int, dim: int, most: float | None) -> list[Kind]:
    """Return the kinds that take at most so many bytes; those of last resort only where no other does."""
    small = [k for k in KINDS if most is None or k.size(count, dim) <= most]
    return [k for k in small if not k.last_resort] or small
