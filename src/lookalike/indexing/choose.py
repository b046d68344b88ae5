"""Choosing an index by what it may cost: kinds are tried on a part of the vectors, the quickest is built and measured.

Recall is measured with vectors that are held out: they are searched for before they are added, so that none finds
itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lookalike.errors import OptionError
from lookalike.indexing.budget import Budget, size_words
from lookalike.indexing.faiss_flat import Rows
from lookalike.indexing.faiss_index import FaissIndex
from lookalike.indexing.kinds import KINDS, TRAINING_PER_LIST, Kind, lists
from lookalike.progress import SILENT, Progress
from lookalike.types import Vectors

RECALL_AT = 10
EXACT_UNTIL = 20_000
"""So few vectors are compared one by one in less than a millisecond or two; no other kind pays."""
HELD_OUT = 1000
TRIAL = 50_000
_BLOCK = 65_536
_SINGLES = 100
MARGIN = 0.003
"""Recall beyond what is asked for, as the held-out vectors are a sample."""


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


@dataclass(frozen=True)
class Choice:
    """The index that was built, why, and what else was looked at.

    Attributes:
        index: of all vectors.
        rows: which of the given rows stands at each of its places.
        point: as it was measured, without the vectors that were held out.
        tried: the kinds on a part of the vectors.
        why: in words.

    """

    index: FaissIndex
    rows: Rows
    point: Point
    tried: tuple[Point, ...]
    why: str


def choose(
    take: Callable[[Rows], Vectors], count: int, dim: int, budget: Budget, progress: Progress = SILENT
) -> Choice:
    """Build the quickest index within a budget.

    Args:
        take: returns the vectors `(n, dim)` of rows; they may lie on disk.
        count: number of vectors.
        dim: their dimensions.
        budget: with a recall below 1.
        progress: is told what happens.

    Raises:
        OptionError: no kind of index stays within the budget; the sentence says what the nearest does.

    """
    fitting = [k for k in KINDS if budget.max_memory is None or k.bytes_each(dim) * count <= budget.max_memory]
    if not fitting:
        least = min(KINDS, key=lambda k: k.bytes_each(dim))
        raise OptionError(
            f"{count} vectors of {dim} dimensions take at least {size_words(least.bytes_each(dim) * count)}, "
            f"max_memory is {size_words(budget.max_memory or 0)}; allow more."
        )
    held, rest = _held_out(count)
    queries = take(held)
    part = rest[:: max(1, len(rest) // TRIAL)][:TRIAL]
    probe = Probe(queries, nearest_exactly(take, part, queries))
    tried = []
    for kind in fitting:
        tried.append(_tuned(kind, _built(kind, take, part, dim), probe, budget))
        progress.say(f"  tried on {len(part)} vectors: {tried[-1]}")
    if len(part) < len(rest):
        probe = Probe(queries, nearest_exactly(take, rest, queries, progress))
    measured: list[Point] = []
    for kind in _promising(tried, budget):
        index = _built(kind, take, rest, dim, progress)
        point = _tuned(kind, index, probe, budget)
        measured.append(point)
        if _within(point, budget):
            index.index.add(np.ascontiguousarray(queries))
            why = _why(point, len(tried), probe, budget)
            return Choice(index, np.concatenate([rest, held]), point, tuple(tried), why)
        progress.say(f"  built, but not within {budget}: {point}")
    best = max(measured, key=lambda p: p.recall)
    raise OptionError(f"no index stays within {budget}; the nearest is {best}. Ask for less, or allow more.")


def _held_out(count: int) -> tuple[Rows, Rows]:
    """Return the rows that are held out, evenly spaced, at most a tenth of all, and the others."""
    held = np.unique(np.linspace(0, count - 1, min(HELD_OUT, max(1, count // 10)), dtype=np.int64))
    return held, np.setdiff1d(np.arange(count, dtype=np.int64), held)


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


def _built(
    kind: Kind, take: Callable[[Rows], Vectors], rows: Rows, dim: int, progress: Progress = SILENT
) -> FaissIndex:
    """Build an index of these rows in their order, block by block."""
    key = kind.key(len(rows))
    made = FaissIndex.new(key, dim)
    sample = TRAINING_PER_LIST * lists(len(rows))
    step = max(1, len(rows) // max(sample, 10_000))
    made.index.train(np.ascontiguousarray(take(rows[::step])))
    for start in range(0, len(rows), _BLOCK):
        made.index.add(np.ascontiguousarray(take(rows[start : start + _BLOCK])))
        progress.step(f"building {key}", min(start + _BLOCK, len(rows)), len(rows))
    return made


def _tuned(kind: Kind, index: FaissIndex, probe: Probe, budget: Budget) -> Point:
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


def _within(point: Point, budget: Budget) -> bool:
    return (
        point.recall >= budget.min_recall
        and (budget.max_memory is None or point.bytes <= budget.max_memory)
        and (budget.max_ms is None or point.single_ms <= budget.max_ms)
    )


def _promising(tried: Sequence[Point], budget: Budget) -> list[Kind]:
    """Return the kinds that reached the recall in the trial, the quickest first; the nearest to it where none did."""
    able = [p for p in tried if p.recall >= budget.min_recall] or sorted(tried, key=lambda p: -p.recall)[:1]
    by_name = {kind.name: kind for kind in KINDS}
    return [by_name[p.kind] for p in sorted(able, key=lambda p: p.single_ms)]


def _why(point: Point, kinds: int, probe: Probe, budget: Budget) -> str:
    of = f"the quickest of {kinds} kinds" if kinds > 1 else "the one kind"
    return (
        f"{point.key} ({point.kind}) is {of} that may stay within {budget}: recall@{RECALL_AT} {point.recall:.3f} "
        f"with {len(probe.queries)} vectors that were held out, {point.single_ms:.2f} ms a query, "
        f"{size_words(point.bytes)}"
    )
