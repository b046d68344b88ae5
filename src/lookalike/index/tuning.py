"""How deep an index has to look, and what that costs: measured with vectors that are not in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lookalike.index.budget import Budget, size_words
from lookalike.index.faiss_index import FaissIndex
from lookalike.index.flat_file import Rows
from lookalike.index.kinds import ROW, Kind, lists
from lookalike.progress import SILENT, Progress
from lookalike.types import Vectors

RECALL_AT = 10
SPARE = 5
"""Candidates beyond those asked for that every search fetches, so that ties are told."""
MARGIN = 0.003
"""Recall beyond what is asked for, as the held-out vectors are a sample."""
_EQUAL = 1e-6
"""Vectors whose cosine to a query differs by no more are as near as each other."""
_BLOCK = 16_384
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
        bytes: that it takes, of its files.

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


class Probe:
    """Queries that are not in an index, and their exact neighbours among the vectors that are.

    Args:
        take: returns the vectors `(n, dim)` of rows.
        rows: those in the index, in its order.
        queries: `(n_query, dim)`, of other rows.
        progress: told the number of vectors compared.

    """

    def __init__(
        self, take: Callable[[Rows], Vectors], rows: Rows, queries: Vectors, progress: Progress = SILENT
    ) -> None:
        self._take, self._rows = take, rows
        self.queries = queries
        self.truth, scores = nearest_exactly(take, rows, queries, progress)
        self._least = scores[:, -1] - _EQUAL

    def recall(self, index: FaissIndex) -> float:
        """Return the share of the exact neighbours that an index finds; one that ties with the last of them is one."""
        return self.share(index.nearest(self.queries, _fetched(index))[1][:, :RECALL_AT])

    def share(self, found: Rows) -> float:
        """Return the same of places in the index, `(n_query, RECALL_AT)`."""
        known = (found[:, :, None] == self.truth[:, None, :]).any(axis=2)
        query, hit = np.nonzero(~known)
        scores = np.einsum("ij,ij->i", self.queries[query], self._take(self._rows[found[query, hit]]))
        known[query, hit] = scores >= self._least[query]
        return float(known.mean())


def nearest_exactly(
    take: Callable[[Rows], Vectors], rows: Rows, queries: Vectors, progress: Progress = SILENT
) -> tuple[Rows, Vectors]:
    """Return the places in `rows` and the scores `(n_query, RECALL_AT)` of the exact nearest, compared block by block.

    Where there are fewer vectors than that, there are as many columns as vectors.
    """
    best = np.empty((len(queries), 0), dtype=np.float32)
    places = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(rows), _BLOCK):
        scores = queries @ take(rows[start : start + _BLOCK]).T
        few = min(RECALL_AT, scores.shape[1])
        top = np.argpartition(scores, scores.shape[1] - few, axis=1)[:, -few:]
        best = np.concatenate([best, np.take_along_axis(scores, top, axis=1)], axis=1)
        places = np.concatenate([places, top + start], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :RECALL_AT]
        best, places = np.take_along_axis(best, order, axis=1), np.take_along_axis(places, order, axis=1)
        progress.step("exact neighbours of held-out vectors", min(start + _BLOCK, len(rows)), len(rows))
    return places, best


def tuned(kind: Kind, index: FaissIndex, probe: Probe, budget: Budget) -> Point:
    """Let an index look as deep as the budget's recall takes, and no deeper; measure it there."""
    grids = {"efSearch": _grid(16, 1024), "nprobe": _grid(1, lists(len(index))), "k_factor_rf": _grid(1, 64)}
    wanted = min(1.0, budget.min_recall + MARGIN)
    index.set({knob: grids[knob][-1] for knob in kind.knobs})
    for knob in kind.knobs:
        _make_shallow(index, knob, grids[knob], probe, wanted)
    return _measured(kind, index, probe)


def single_ms(search: Callable[[Vectors], object], queries: Vectors) -> float:
    """Return the median milliseconds of a search for one vector."""
    spent = []
    for query in queries[:_SINGLES]:
        clock = time.perf_counter()
        search(query[None])
        spent.append(time.perf_counter() - clock)
    return 1e3 * float(np.median(spent))


def _fetched(index: FaissIndex) -> int:
    return min(RECALL_AT + SPARE, len(index))


def _grid(low: int, high: int) -> tuple[int, ...]:
    """Return powers of two and three values between each and the next, as far as they are whole."""
    powers = [low]
    while powers[-1] < high:
        powers.append(2 * powers[-1])
    values = sorted({power * quarters // 4 for power in powers for quarters in (4, 5, 6, 7)})
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
    count = _fetched(index)
    clock = time.perf_counter()
    _, found = index.nearest(probe.queries, count)
    together = time.perf_counter() - clock
    return Point(
        kind=kind.name,
        key=index.key,
        vectors=len(index),
        parameters=dict(index.parameters),
        recall=probe.share(found[:, :RECALL_AT]),
        queries_per_second=len(probe.queries) / together,
        single_ms=single_ms(lambda query: index.nearest(query, count), probe.queries),
        bytes=index.size + ROW * len(index),
    )
