"""How deep an index has to look, and what that costs: measured with vectors that are not in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lookalike.indexing.budget import Budget, size_words
from lookalike.indexing.faiss_index import FaissIndex
from lookalike.indexing.flat_file import Rows
from lookalike.indexing.kinds import Kind, lists
from lookalike.progress import SILENT, Progress
from lookalike.types import Vectors

RECALL_AT = 10
MARGIN = 0.003
"""Recall beyond what is asked for, as the held-out vectors are a sample."""
_BLOCK = 65_536
_SINGLES = 100


@dataclass(frozen=True)
class Point:
    """An operating point of an index, measured with held-out vectors as queries.

    Attributes:
        kind: of `KINDS`.
        key: FAISS's factory string.
        vectors: in the index.
        parameters: how deep it looks.
        recall: index recall@10.
        queries_per_second: many at once.
        single_ms: of one query, the median.
        bytes: that it takes, of its file.

    """

    kind: str
    key: str
    vectors: int
    parameters: dict[str, int]
    recall: float
    queries_per_second: float
    single_ms: float
    bytes: int

    def __str__(self) -> str:
        return (
            f"{self.key}, {self.kind}: recall@{RECALL_AT} {self.recall:.3f}, {self.single_ms:.2f} ms a query, "
            f"{self.queries_per_second:.0f}/s together, {size_words(self.bytes)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Probe:
    """Queries that are not in an index, and their exact neighbours there: places `(n_query, RECALL_AT)`."""

    queries: Vectors
    truth: Rows

    def recall(self, index: FaissIndex) -> float:
        """Return the share of the exact neighbours that an index finds."""
        return recall_of(index.nearest(self.queries, RECALL_AT)[1], self.truth)


def nearest_exactly(take: Callable[[Rows], Vectors], rows: Rows, queries: Vectors, progress: Progress = SILENT) -> Rows:
    """Return the places in `rows` `(n_query, RECALL_AT)` of the exact nearest, comparing block by block."""
    best = np.full((len(queries), RECALL_AT), -np.inf, dtype=np.float32)
    places = np.full((len(queries), RECALL_AT), -1, dtype=np.int64)
    for start in range(0, len(rows), _BLOCK):
        scores = queries @ take(rows[start : start + _BLOCK]).T
        few = min(RECALL_AT, scores.shape[1])
        top = np.argpartition(-scores, few - 1, axis=1)[:, :few]
        best = np.concatenate([best, np.take_along_axis(scores, top, axis=1)], axis=1)
        places = np.concatenate([places, top + start], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :RECALL_AT]
        best, places = np.take_along_axis(best, order, axis=1), np.take_along_axis(places, order, axis=1)
        progress.step("exact neighbours of held-out vectors", min(start + _BLOCK, len(rows)), len(rows))
    return places


def recall_of(found: Rows, truth: Rows) -> float:
    """Return the share of the exact neighbours that were found."""
    return float(np.mean([len(np.intersect1d(f, t)) / len(t) for f, t in zip(found, truth, strict=True)]))


def tuned(kind: Kind, index: FaissIndex, probe: Probe, budget: Budget) -> Point:
    """Let an index look as deep as the budget's recall takes, and no deeper; measure it there."""
    grids = {"efSearch": _grid(16, 1024), "nprobe": _grid(1, lists(len(index))), "k_factor_rf": _grid(1, 64)}
    wanted = min(1.0, budget.min_recall + MARGIN)
    index.set({knob: grids[knob][-1] for knob in kind.knobs})
    for knob in kind.knobs:
        _make_shallow(index, knob, grids[knob], probe, wanted)
    return _measured(kind, index, probe)


def _grid(low: int, high: int) -> tuple[int, ...]:
    """Return powers of two and the values half way between them."""
    values = [low]
    while values[-1] < high:
        step = values[-1]
        values += [step * 3 // 2, step * 2] if step > 1 else [2]
    return tuple(v for v in values if v <= high)


def _make_shallow(index: FaissIndex, knob: str, grid: Sequence[int], probe: Probe, wanted: float) -> None:
    """Turn a knob to the smallest value that reaches a recall, or the largest: recall rises with it."""
    others = dict(index.parameters)
    low, high = 0, len(grid) - 1
    while low < high:
        middle = (low + high) // 2
        index.set({**others, knob: grid[middle]})
        if probe.recall(index) >= wanted:
            high = middle
        else:
            low = middle + 1
    index.set({**others, knob: grid[high]})


def _measured(kind: Kind, index: FaissIndex, probe: Probe) -> Point:
    clock = time.perf_counter()
    _, found = index.nearest(probe.queries, RECALL_AT)
    together = time.perf_counter() - clock
    single = []
    for query in probe.queries[:_SINGLES]:
        clock = time.perf_counter()
        index.nearest(query[None], RECALL_AT)
        single.append(time.perf_counter() - clock)
    return Point(
        kind=kind.name,
        key=index.key,
        vectors=len(index),
        parameters=dict(index.parameters),
        recall=recall_of(found, probe.truth),
        queries_per_second=len(probe.queries) / together,
        single_ms=1e3 * float(np.median(single)),
        bytes=index.size,
    )
