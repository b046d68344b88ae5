"""The kinds of approximate index that are tried, as rows of data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

LINKS = 32
"""Of a vector in the graph's lower level, HNSW's M."""
TRAINING_PER_LIST = 40
"""Vectors that a list's centre is learnt from; FAISS warns below 39."""


@dataclass(frozen=True)
class Kind:
    """A kind of index.

    Attributes:
        name: for people.
        key: FAISS's factory string for so many vectors.
        bytes_each: of a vector of so many dimensions, about.
        knobs: what decides how deep a search looks.

    """

    name: str
    key: Callable[[int], str]
    bytes_each: Callable[[int], float]
    knobs: tuple[str, ...]


def lists(count: int) -> int:
    """Return the number of inverted lists for so many vectors: near 4 √n, a power of two, few enough to be learnt."""
    most = max(1, count // TRAINING_PER_LIST)
    return int(2 ** round(math.log2(min(4 * math.sqrt(count), most)))) if count > TRAINING_PER_LIST else 1


_GRAPH = LINKS * 2 * 4 + 12
_LIST = 8

KINDS = (
    Kind("graph over whole vectors", lambda _: f"HNSW{LINKS},Flat", lambda d: 4 * d + _GRAPH, ("efSearch",)),
    Kind("graph over vectors in 8 bits", lambda _: f"HNSW{LINKS},SQ8", lambda d: d + _GRAPH, ("efSearch",)),
    Kind("lists of whole vectors", lambda n: f"IVF{lists(n)},Flat", lambda d: 4 * d + _LIST, ("nprobe",)),
    Kind(
        "lists of one bit a dimension, refined by 8 bits",
        lambda n: f"IVF{lists(n)},RaBitQ,Refine(SQ8)",
        lambda d: d + d / 8 + 8 + _LIST,
        ("nprobe", "k_factor_rf"),
    ),
    Kind("lists of vectors in 8 bits", lambda n: f"IVF{lists(n)},SQ8", lambda d: d + _LIST, ("nprobe",)),
    Kind("lists of 4 bits a dimension", lambda n: f"IVF{lists(n)},RaBitQ4", lambda d: d / 2 + 16 + _LIST, ("nprobe",)),
    Kind("lists of one bit a dimension", lambda n: f"IVF{lists(n)},RaBitQ", lambda d: d / 8 + 8 + _LIST, ("nprobe",)),
)
