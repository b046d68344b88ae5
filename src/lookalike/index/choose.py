"""Choosing an index by what it may cost: kinds are tried on a part of the vectors, the quickest is built and measured.

Recall is measured with vectors that are held out: they are searched for before they are added, so that none finds
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lookalike.errors import OptionError
from lookalike.index.budget import Budget, size_words
from lookalike.index.building import NOTHING_KEPT, Kept, build, evenly
from lookalike.index.faiss_index import FaissIndex
from lookalike.index.flat_file import Rows
from lookalike.index.kinds import KINDS, ROW, Kind, fitting
from lookalike.index.tuning import RECALL_AT, Point, Probe, tuned
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
        point: as it was measured, without the vectors that were held out; its bytes are with them.
        tried: the kinds on a part of the vectors.
        passed_over: what was built of all vectors before, and did not stay within the budget.
        why: in words.

    """

    index: FaissIndex
    rows: Rows
    point: Point
    tried: tuple[Point, ...]
    passed_over: tuple[Point, ...]
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
        OptionError: no kind of index stays within the budget; the sentence says what came nearest.

    """
    kinds = fitting(count, dim, budget.max_memory)
    if not kinds:
        least = min(kind.size(count, dim) for kind in KINDS)
        raise OptionError(
            f"{count} vectors of {dim} dimensions take at least {size_words(least)}, "
            f"and max_memory is {size_words(budget.max_memory or 0)}; allow more."
        )
    held, rest = _held_out(count)
    queries = take(held)
    tried = _try(kinds, take, evenly(rest, TRIAL), queries, budget, kept=kept, progress=progress)
    promising = _promising(tried, budget)
    if not promising:
        quickest = min(tried, key=lambda p: p.single_ms)
        raise OptionError(f"no index stays within {budget}; the quickest is {quickest}. Allow more.")
    probe = Probe(take, rest, queries, progress)
    passed_over: list[Point] = []
    for kind in promising:
        index = build(kind, take, rest, dim, kept=kept, progress=progress)
        kept.keep(index)
        point = tuned(kind, index, probe, budget)
        with_held = replace(point, bytes=round(point.bytes * count / len(rest)))
        if _within(with_held, budget):
            index.index.add(np.ascontiguousarray(queries))
            final = replace(point, bytes=index.size + ROW * count)
            why = _why(final, tried, passed_over, queries, budget)
            return Choice(index, np.concatenate([rest, held]), final, tuple(tried), tuple(passed_over), why)
        progress.info(f"  built, but not within {budget}: {with_held}")
        passed_over.append(with_held)
        del index  # before the next one grows
    found = "; ".join(map(str, passed_over))
    raise OptionError(f"no index stays within {budget}; built were: {found}. Ask for less, or allow more.")


def _held_out(count: int) -> tuple[Rows, Rows]:
    """Return the rows that are held out, evenly spaced, at most a tenth of all, and the others."""
    held = np.unique(np.linspace(0, count - 1, min(HELD_OUT, max(1, count // 10)), dtype=np.int64))
    return held, np.setdiff1d(np.arange(count, dtype=np.int64), held)


def _try(
    kinds: Sequence[Kind],
    take: Callable[[Rows], Vectors],
    part: Rows,
    queries: Vectors,
    budget: Budget,
    *,
    kept: Kept,
    progress: Progress,
) -> list[Point]:
    """Build and tune every kind on a part of the vectors; those that an earlier run tried are not tried again."""
    tried = kept.tried(repr(budget))
    done = {point.kind for point in tried}
    left = [kind for kind in kinds if kind.name not in done]
    if left:
        probe = Probe(take, part, queries)
    for kind in left:
        tried.append(tuned(kind, build(kind, take, part, queries.shape[1]), probe, budget))
        progress.info(f"  tried on {len(part)} vectors: {tried[-1]}")
        kept.keep_tried(repr(budget), tried)
    return tried


def _within(point: Point, budget: Budget) -> bool:
    return (
        point.recall >= budget.min_recall
        and (budget.max_memory is None or point.bytes <= budget.max_memory)
        and (budget.max_ms is None or point.single_ms <= budget.max_ms)
    )


def _promising(tried: Sequence[Point], budget: Budget) -> list[Kind]:
    """Return the kinds that may stay within the budget, the quickest first.

    They reached the recall in the trial, or came nearest to it where none did, within the time: of more vectors no kind
    is quicker.
    """
    able = [p for p in tried if p.recall >= budget.min_recall] or sorted(tried, key=lambda p: -p.recall)[:1]
    in_time = [p for p in able if budget.max_ms is None or p.single_ms <= budget.max_ms]
    by_name = {kind.name: kind for kind in KINDS}
    return [by_name[p.kind] for p in sorted(in_time, key=lambda p: p.single_ms)]


def _why(point: Point, tried: Sequence[Point], passed_over: Sequence[Point], queries: Vectors, budget: Budget) -> str:
    able = sum(p.recall >= budget.min_recall for p in tried)
    part = max(p.vectors for p in tried)
    reason = (
        f"{able} reached the recall, and the quickest of them"
        if able
        else "none reached the recall, and the one that came nearest"
    )
    kinds = "kind" if len(tried) == 1 else "kinds"
    after = f", after {', '.join(p.key for p in passed_over)} had been built and failed" if passed_over else ""
    return (
        f"{point.key} ({point.kind}): of {len(tried)} {kinds} tried on {part} vectors {reason} was built{after}. With "
        f"{len(queries)} held-out vectors as queries it has recall@{RECALL_AT} {point.recall:.3f} and takes "
        f"{point.single_ms:.2f} ms a query; it is of {size_words(point.bytes)}. Asked for: {budget}."
    )
