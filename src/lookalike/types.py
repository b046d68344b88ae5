"""The value objects in the middle: `Embeddings` go in, `Hits` come out."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike._names import repeated
from lookalike.errors import DataError

Vectors = npt.NDArray[np.float32]
"""Float32 array `(n, dim)`."""

Pixels = npt.NDArray[np.uint8]
"""Uint8 array, RGB: `(height, width, 3)` of a picture, `(n, height, width, 3)` of several of one size."""

_UNIT_TOLERANCE = 1e-3
_BLOCK = 4096
"""Rows that are checked at once."""


@dataclass(frozen=True)
class Skipped:
    """One file that was left out, and why."""

    path: Path
    cause: str

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}"


def unit(vectors: npt.ArrayLike) -> Vectors:
    """Scale each row of `(n, dim)` to length one, as float32; a row of zeros stays zero."""
    array = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(array, axis=-1, keepdims=True)
    scaled: Vectors = (array / np.maximum(lengths, 1e-12)).astype(np.float32)
    return scaled


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings of images.

    Attributes:
        ids: `n` distinct item ids, a tuple; where they were read from a file `Names`, which are looked at like one:
            for JSON, or to be joined, take `list(ids)`.
        vectors: `(n, dim)` float32, each row of unit length.
        fingerprint: the fingerprint of the model that made them.
        skipped: files that could not be read, with their causes.
        precision: that the model computed in, as `Encoder.precision`; auto where that is not known.

    Raises:
        DataError: on a wrong shape, dtype or length, non-finite values, or repeated ids.

    """

    ids: Sequence[str]
    vectors: Vectors
    fingerprint: str
    skipped: tuple[Skipped, ...] = field(default=())
    precision: str = "auto"

    def __post_init__(self) -> None:
        v = self.vectors
        if v.ndim != 2 or v.dtype != np.float32:
            raise DataError(f"embeddings must be a float32 array of shape (n, dim), got {v.dtype} of shape {v.shape}.")
        if len(self.ids) != len(v):
            raise DataError(f"embeddings need one id a row: got {len(self.ids)} ids for {len(v)} rows.")
        twice = repeated(lambda: self.ids)
        if twice is not None:
            raise DataError(f"embeddings need distinct ids, but {twice!r} stands more than once.")
        if not len(v):
            return
        lengths = _lengths(v)
        if np.abs(lengths - 1).max() <= _UNIT_TOLERANCE:
            return
        worst = int(np.argmax(np.where(np.isfinite(lengths), np.abs(lengths - 1), np.inf)))
        name = self.ids[worst]
        raise DataError(f"embeddings must have unit length, but {name!r} has length {lengths[worst]:.4f}.")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        """Number of dimensions of one embedding."""
        return int(self.vectors.shape[1])

    def take(self, ids: Iterable[str]) -> Embeddings:
        """Return the rows with these ids, in their order; ids that are not here raise `DataError`."""
        rows = {item: row for row, item in enumerate(self.ids)}
        wanted = tuple(ids)
        missing = [i for i in wanted if i not in rows]
        if missing:
            raise DataError(f"{len(missing)} ids have no embedding, the first is {missing[0]!r}.")
        return Embeddings(wanted, self.vectors[[rows[i] for i in wanted]], self.fingerprint, (), self.precision)


def _lengths(vectors: Vectors) -> npt.NDArray[np.float32]:
    """Return the rows' lengths without a copy; of a mapped file no more stays in memory than a block."""
    lengths = np.empty(len(vectors), np.float32)
    whole = vectors if isinstance(vectors, np.memmap) else vectors.base
    mapped = getattr(whole, "_mmap", None) if not vectors.flags.writeable else None
    for start in range(0, len(vectors), _BLOCK):
        part = vectors[start : start + _BLOCK]
        lengths[start : start + _BLOCK] = np.sqrt(np.einsum("ij,ij->i", part, part))
        if mapped is not None and hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_DONTNEED)
    return lengths


@dataclass(frozen=True, eq=False)
class Hits:
    """What a search found, best first.

    Attributes:
        query_ids: `n_query` ids.
        ids: `(n_query, k)` item ids as an object array of str.
        scores: `(n_query, k)` float32 cosine, higher is better.

    """

    query_ids: tuple[str, ...]
    ids: npt.NDArray[np.object_]
    scores: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape != self.scores.shape or len(self.ids) != len(self.query_ids):
            raise DataError(
                f"hits need ids and scores of one shape (n_query, k) for {len(self.query_ids)} queries, "
                f"got {self.ids.shape} and {self.scores.shape}."
            )

    def __len__(self) -> int:
        return len(self.query_ids)

    def rows(self) -> Iterable[tuple[str, Sequence[tuple[str, float]]]]:
        """Yield each query id with its `(item id, score)` pairs."""
        for query, ids, scores in zip(self.query_ids, self.ids, self.scores, strict=True):
            yield query, [(str(i), float(s)) for i, s in zip(ids, scores, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        return {q: [{"id": i, "score": round(s, 6)} for i, s in found] for q, found in self.rows()}
