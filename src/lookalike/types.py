"""The value objects that packages exchange, such as `Embeddings` and `Hits`."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from lookalike._strings import PackedStrings, first_duplicate
from lookalike.errors import DataError, OptionError

# Float32 array `(n, dim)`.
Vectors = npt.NDArray[np.float32]

# Uint8 RGB array: `(height, width, 3)` of one image, `(n, height, width, 3)` of several images of one size.
Pixels = npt.NDArray[np.uint8]

_UNIT_TOLERANCE = 1e-3
_TINY = 1e-12
_BLOCK = 4096  # vectors whose lengths are computed at once


@dataclass(frozen=True)
class Skipped:
    """A file that was skipped, and why."""

    path: Path
    cause: str
    temporary: bool = False  # not the file's fault, such as too many open files: reading it is tried again

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}"


@dataclass(frozen=True)
class Estimate:
    """A mean over queries and its 95 % interval (see `evaluation.bootstrap.mean_interval`)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two candidates on the same queries: the mean of the first minus that of the second, and its 95 % interval."""

    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        verdict = "significant" if self.significant else "not significant"
        return f"{self.difference:+.4f} (95 % interval {self.low:+.4f} to {self.high:+.4f}), {verdict}"

    @property
    def significant(self) -> bool:
        """Whether 0 lies outside the interval."""
        return not self.low <= 0 <= self.high


def l2_normalize(vectors: npt.ArrayLike) -> Vectors:
    """Scale each row of `(n, dim)` to unit length, as float32; a row of zeros stays zero."""
    array = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(array, axis=-1, keepdims=True)
    if (lengths < _TINY).any():  # squares of numbers this small vanish, so they are enlarged first
        largest = np.abs(array).max(axis=-1, keepdims=True, initial=0)
        array = np.where(lengths < _TINY, array / np.where(largest > 0, largest, 1), array)
        lengths = np.linalg.norm(array, axis=-1, keepdims=True)
    normalized: Vectors = (array / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return normalized


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings of images.

    Attributes:
        ids: sequence of n distinct item ids.
        vectors: `(n, dim)` float32, each row of unit length.
        fingerprint: the fingerprint of the model that computed them.
        skipped: files that could not be read.
        precision: the precision of the computation, as `Encoder.precision`; "auto" if unknown.

    Raises:
        DataError: wrong shape, dtype or length, non-finite values, or duplicate ids.
    """

    ids: Sequence[str]
    vectors: Vectors
    fingerprint: str
    skipped: tuple[Skipped, ...] = field(default=())
    precision: str = "auto"

    def __post_init__(self) -> None:
        _require_vectors(self.vectors)
        object.__setattr__(self, "ids", _checked_ids(self.ids, len(self.vectors)))
        lengths = _lengths(self.vectors)
        errors = np.abs(lengths - 1)
        if len(errors) and not errors.max() <= _UNIT_TOLERANCE:  # written so that nan fails
            row = int(np.argmax(np.where(np.isfinite(errors), errors, np.inf)))
            raise DataError(
                f"embeddings must have unit length, but {self.ids[row]!r} has length {lengths[row]:.4f}.",
                argument="vectors",
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<Embeddings: {len(self)} items, {self.dim} dimensions, fingerprint {self.fingerprint[:12]!r}>"

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return int(self.vectors.shape[1])

    def take(self, ids: Iterable[str]) -> Embeddings:
        """Return the embeddings of these ids, in this order; raise `DataError` if an id has none."""
        rows = {item: row for row, item in enumerate(self.ids)}
        subset = tuple(ids)
        missing = [item for item in subset if item not in rows]
        if missing:
            raise DataError(f"{len(missing)} ids have no embedding (first: {missing[0]!r}).", argument="ids")
        return Embeddings(subset, self.vectors[[rows[i] for i in subset]], self.fingerprint, (), self.precision)


def require_embeddings(value: object, argument: str) -> None:
    """Raise `OptionError` for anything but `Embeddings`."""
    if not isinstance(value, Embeddings):
        raise OptionError(
            f"`{argument}` must be Embeddings, got {type(value).__name__}; "
            "use encoder.embed(images), or Embeddings(ids, vectors, fingerprint).",
            argument=argument,
        )


def take_shared(embeddings: Sequence[Embeddings]) -> list[Embeddings]:
    """Return the embeddings of the ids that all of them have, in the order of the first.

    They differ where a file could be read for one encoder and not for another.
    """
    ids = set.intersection(*(set(e.ids) for e in embeddings))
    shared = [item for item in embeddings[0].ids if item in ids]
    return [e.take(shared) for e in embeddings]


def _require_vectors(vectors: Vectors) -> None:
    is_array = isinstance(vectors, np.ndarray)
    if not is_array or vectors.ndim != 2 or vectors.dtype != np.float32:
        shape = f"{vectors.dtype} of shape {vectors.shape}" if is_array else f"a {type(vectors).__name__}"
        raise DataError(f"embeddings must be a float32 array of shape (n, dim), got {shape}.", argument="vectors")


def _checked_ids(ids: Sequence[str], count: int) -> Sequence[str]:
    """Return the ids as an immutable sequence."""
    if isinstance(ids, str):
        raise DataError(f"`ids` must be a sequence of strings, got the single string {ids!r}.", argument="ids")
    ids = ids if isinstance(ids, PackedStrings) else tuple(ids)
    if len(ids) != count:
        raise DataError(f"embeddings need one id per vector, got {len(ids)} ids for {count} vectors.", argument="ids")
    other = None if isinstance(ids, PackedStrings) else next((i for i in ids if not isinstance(i, str)), None)
    if other is not None:
        raise DataError(f"embedding ids must be strings, got {other!r}; convert them with str().", argument="ids")
    duplicate = first_duplicate(ids)
    if duplicate is not None:
        raise DataError(f"duplicate id {duplicate!r}: embedding ids must be unique.", argument="ids")
    return ids


def _lengths(vectors: Vectors) -> npt.NDArray[np.float32]:
    """Return the length of each row, in blocks whose pages are released if they are mapped from a file.

    They would stay resident otherwise (200 MB for 100,000 embeddings of 512 dimensions).
    """
    lengths = np.empty(len(vectors), np.float32)
    mapping = _read_only_mapping(vectors)
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        lengths[start : start + _BLOCK] = np.sqrt(np.einsum("ij,ij->i", block, block))
        if mapping is not None and hasattr(mapping, "madvise"):
            mapping.madvise(mmap.MADV_DONTNEED)
    return lengths


def _read_only_mapping(vectors: Vectors) -> mmap.mmap | None:
    """Return the file mapping behind an array, if what was read from it can be discarded."""
    array: object = vectors
    while isinstance(array, np.ndarray) and not (isinstance(array, np.memmap) and array.mode != "r"):
        array = array.base
    return array if isinstance(array, mmap.mmap) else None


@dataclass(frozen=True)
class Calibration:
    """The probability that a hit matches its query, by their cosine: `1 / (1 + exp(-(slope * cosine + intercept)))`.

    Fitted on validation by `evaluation.calibration.fit_calibration`. The slope is positive, so that the order of hits
    by probability is that by cosine.

    Attributes:
        slope: of the cosine, above 0.
        intercept: what is added.
        queries: number of validation queries that it was fitted on.
        error: expected calibration error on queries of other classes than those it was fitted on.

    Raises:
        DataError: a value that is not finite, or a slope that is not positive.

    """

    slope: float
    intercept: float
    queries: int
    error: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.slope, self.intercept, self.error]).all() and self.slope > 0):
            raise DataError(f"a calibration needs finite values and a positive slope, got {self}.")

    def probabilities(self, scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the probabilities of cosines of any shape; nan stays nan."""
        logits = self.slope * np.asarray(scores, dtype=np.float64) + self.intercept
        tails = np.exp(-np.abs(logits))  # never overflows
        return np.where(logits >= 0, 1 / (1 + tails), tails / (1 + tails))


@dataclass(frozen=True, slots=True)
class Hit:
    """One item that a search returned.

    Attributes:
        id: the item's id.
        score: its cosine similarity to the query; higher is better.
        path: its file, if known.
        probability: that it matches the query, if the model has a calibration.
        label: its label, if known.
        metadata: text, numbers and booleans by name, if known.
    """

    id: str
    score: float
    path: Path | None = None
    probability: float | None = None
    label: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class QueryHits(Sequence[Hit]):
    """The hits of one query, best first.

    Attributes:
        query_id: the query's id.
        hits: its hits.
    """

    query_id: str
    hits: tuple[Hit, ...]

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, rank: int) -> Hit: ...
    @overload
    def __getitem__(self, rank: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, rank: int | slice) -> Hit | tuple[Hit, ...]:
        """Return the hit at a rank, counted from 0, or a slice of the hits."""
        return self.hits[rank]


@dataclass(frozen=True, eq=False)
class Hits(Sequence[QueryHits]):
    """The hits of all queries of a search, best first; iterate to get the `QueryHits` of each query.

    Attributes:
        query_ids: n_query ids.
        ids: `(n_query, k)` item ids, an object array of str; None after the last hit of a query that has fewer than k.
        scores: `(n_query, k)` float32 cosine similarities; higher is better; nan where there is no hit.
        root: the folder that the item ids are relative to, if known.
        paths: the files of the items whose file is not their id relative to the root, by id.
        probabilities: `(n_query, k)` float64, that hit and query match, nan where there is no hit; None without a
            calibration.
    """

    query_ids: tuple[str, ...]
    ids: npt.NDArray[np.object_]
    scores: npt.NDArray[np.float32]
    root: Path | None = None
    paths: Mapping[str, Path | None] = field(default_factory=dict)
    probabilities: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.probabilities is not None and self.probabilities.shape != self.scores.shape:
            raise DataError(
                f"hits need one probability per score, got {self.probabilities.shape} for {self.scores.shape}."
            )
        if self.ids.ndim != 2 or self.ids.shape != self.scores.shape or len(self.ids) != len(self.query_ids):
            raise DataError(
                f"hits need ids and scores of shape (n_query, k) for {len(self.query_ids)} queries, "
                f"got {self.ids.shape} and {self.scores.shape}."
            )

    def __len__(self) -> int:
        return len(self.query_ids)

    @overload
    def __getitem__(self, query: int) -> QueryHits: ...
    @overload
    def __getitem__(self, query: slice) -> tuple[QueryHits, ...]: ...
    def __getitem__(self, query: int | slice) -> QueryHits | tuple[QueryHits, ...]:
        """Return the hits of the query at a position, or those of a slice of the queries."""
        if isinstance(query, slice):
            return tuple(self[position] for position in range(*query.indices(len(self))))
        probabilities = [None] * self.ids.shape[1] if self.probabilities is None else self.probabilities[query].tolist()
        hits = [
            Hit(str(item), score, self._path(item), probability)
            for item, score, probability in zip(
                self.ids[query].tolist(), self.scores[query].tolist(), probabilities, strict=True
            )
            if item is not None
        ]
        return QueryHits(self.query_ids[query], tuple(hits))

    def _path(self, item: str) -> Path | None:
        if item in self.paths:
            return self.paths[item]
        return None if self.root is None else self.root / str(item)

    def with_probabilities(self, calibration: Calibration, min_probability: float = 0.0) -> Hits:
        """Return the hits with their probabilities, without those below `min_probability`."""
        probabilities = calibration.probabilities(self.scores)
        is_hit = probabilities >= min_probability  # false for nan
        ids = self.ids.copy()
        ids[~is_hit] = None
        return replace(
            self,
            ids=ids,
            scores=np.where(is_hit, self.scores, np.float32(np.nan)),
            probabilities=np.where(is_hit, probabilities, np.nan),
        )

    def __repr__(self) -> str:
        at_most = "at most " if np.isnan(self.scores).any() else ""
        return f"<Hits: {len(self)} queries, {at_most}{self.ids.shape[1]} hits each>"

    def to_dict(self) -> dict[str, Any]:
        """Return `{query_id: [{"id", "score"}, ...]}` for JSON."""
        return {row.query_id: [{"id": hit.id, "score": round(hit.score, 6)} for hit in row] for row in self}
