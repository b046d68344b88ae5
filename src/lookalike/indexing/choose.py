"""Choosing an index by what it may cost: kinds are tried on a part of the vectors, the quickest is built and measured.

Recall is measured with vectors that are held out: they are searched for before they are added, so that none finds
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lookalike.errors import OptionError
from lookalike.indexing.budget import Budget, size_words
from lookalike.indexing.building import NOTHING_KEPT, Kept, build
from lookalike.indexing.faiss_index import FaissIndex
from lookalike.indexing.flat_file import Rows
from lookalike.indexing.kinds import KINDS, Kind
from lookalike.indexing.tuning import RECALL_AT, Point, Probe, nearest_exactly, tuned
from lookalike.progress import SILENT, Progress
from lookalike.types import Vectors

EXACT_UNTIL = 20_000
"""So few vectors are compared one by one in less than a millisecond or two; no other kind pays."""
HELD_OUT = 1000
TRIAL = 50_000


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
    take: Callable[[Rows], Vectors],
    count: int,
    dim: int,
    budget: Budget,
    *,
    kept: Kept = NOTHING_KEPT,
    progress: Progress = SILENT,
) -> Choice:
    """Build the quickest index within a budget.

    Args:
        take: returns the vectors `(n, dim)` of rows; they may lie on disk.
        count: number of vectors.
        dim: their dimensions.
        budget: with a recall below 1.
        kept: what an earlier run left is gone on with.
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
    tried = kept.tried() or []
    if not tried:
        for kind in fitting:
            tried.append(tuned(kind, build(kind, take, part, dim), probe, budget))
            progress.say(f"  tried on {len(part)} vectors: {tried[-1]}")
        kept.keep_tried(tried)
    if len(part) < len(rest):
        probe = Probe(queries, nearest_exactly(take, rest, queries, progress))
    measured: list[Point] = []
    for kind in _promising(tried, budget):
        index = build(kind, take, rest, dim, kept=kept, progress=progress)
        kept.keep(index)
        point = tuned(kind, index, probe, budget)
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
