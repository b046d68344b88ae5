"""Selects an approximate index within a budget: candidates are tried on a sample, the fastest is built and measured.

Queries are held-out vectors: they are searched for before they are added to the index, so that none finds itself.
"""

from __future__ import annotations

import math
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lookalike._top_k import Floats, Ints
from lookalike.errors import OptionError
from lookalike.index.faiss_index import EXTRA_HITS, ApproximateIndex, FaissIndex, nearest_by_faiss
from lookalike.index.storage import BLOCK, BuildCheckpoint, OperatingPoint, TakeVectors, TuningReport, spaced
from lookalike.progress import SILENT, Progress
from lookalike.types import Vectors

RECALL_AT = 10
EXACT_UNTIL = 20_000  # fewer vectors are compared in a millisecond or two; no approximate index pays
ROW_BYTES = 8  # the row of each vector, next to the index
HELD_OUT = 1000  # vectors used as queries
SAMPLE = 50_000  # vectors that candidates are tried on
RECALL_MARGIN = 0.003  # added to the requested recall, as the held-out vectors are a sample

_HNSW_LINKS = 32
_HNSW_BYTES = _HNSW_LINKS * 2 * 4 + 12
_IVF_BYTES = 8  # the number of each vector in its list
_TRAINING_PER_LIST = 40  # FAISS warns below 39
_TRAINING_MIN = 10_000
_TIE = 1e-6  # vectors whose cosines differ by no more are equally near
_COMPARED = 16_384  # vectors compared at once
_CHECKPOINT_SECONDS = 60.0
_TIMED_QUERIES = 100
_TIMED_SECONDS = 0.3  # the fastest round in this time counts: another process may disturb a round
_SIZE_UNITS = ("", "k", "m", "g", "t")


def parse_size(size: str | int) -> int:
    """Read a number of bytes: 500MB, 1.5GiB, 2g or 300000000."""
    match = re.fullmatch(r"\s*(\d*\.?\d+)\s*([kmgt]?)(i?)b?\s*", str(size), re.IGNORECASE | re.ASCII)
    if match is None or float(match[1]) <= 0 or (match[3] and not match[2]):
        raise OptionError(f"`max_memory` must be a size such as 500MB or 1.5GiB, got {size!r}.", argument="max_memory")
    base = 1024.0 if match[3] else 1000.0
    return round(float(match[1]) * base ** _SIZE_UNITS.index(match[2].lower()))


def format_size(size: float) -> str:
    """Format a number of bytes: 1.2 GB."""
    for exponent, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if size >= 10**exponent:
            return f"{size / 10**exponent:.3g} {unit}"
    return "1 byte" if round(size) == 1 else f"{size:.0f} bytes"


@dataclass(frozen=True)
class Budget:
    """Limits for an index: recall@10, bytes of the vectors, median milliseconds of one query; None means no limit."""

    min_recall: float = 1.0
    max_memory: int | None = None
    max_ms: float | None = None

    @classmethod
    def parse(cls, min_recall: float, max_memory: int | str | None, max_ms: float | None) -> Budget:
        """Create a budget from option values: `max_memory` in bytes, or as text such as 500MB."""
        return cls(min_recall, None if max_memory is None else parse_size(max_memory), max_ms)

    def __post_init__(self) -> None:
        if not 0 < self.min_recall <= 1:
            raise OptionError(
                f"`min_recall` must be above 0 and at most 1, got {self.min_recall}.", argument="min_recall"
            )
        if self.max_memory is not None and self.max_memory < 1:
            raise OptionError(f"`max_memory` must be at least 1 byte, got {self.max_memory}.", argument="max_memory")
        if self.max_ms is not None and not (self.max_ms > 0 and math.isfinite(self.max_ms)):
            raise OptionError(f"`max_ms` must be above 0, got {self.max_ms}.", argument="max_ms")

    @property
    def exact(self) -> bool:
        """Whether only exact search reaches the recall."""
        return self.min_recall == 1.0

    def allows(self, point: OperatingPoint) -> bool:
        """Whether an operating point is within the budget."""
        return (
            point.recall >= self.min_recall
            and (self.max_memory is None or point.bytes <= self.max_memory)
            and (self.max_ms is None or point.single_ms <= self.max_ms)
        )

    def __str__(self) -> str:
        limits = [f"recall of at least {self.min_recall:g}"]
        if self.max_memory is not None:
            limits.append(f"at most {format_size(self.max_memory)}")
        if self.max_ms is not None:
            limits.append(f"at most {self.max_ms:g} ms per query")
        return ", ".join(limits)


def ivf_nlist(count: int) -> int:
    """Return the number of inverted lists for a number of vectors: a power of two near 4 √n that can be trained."""
    trainable = math.floor(math.log2(max(1, count // _TRAINING_PER_LIST)))
    return int(2 ** min(trainable, round(math.log2(4 * math.sqrt(count)))))


@dataclass(frozen=True)
class IndexSpec:
    """A type of FAISS index, for vectors of any number and dimension."""

    name: str  # shown to users
    template: str  # of the FAISS factory string, with {dim}, {half} of the dimensions and {nlist} inverted lists
    bytes_per_vector: Callable[[int], float]  # for a number of dimensions
    search_params: tuple[str, ...]  # FAISS parameters that set the search depth

    def key(self, count: int, dim: int) -> str:
        """Return the FAISS factory string."""
        return self.template.format(dim=dim, half=-(-dim // 2), nlist=ivf_nlist(count))

    def fixed_bytes(self, count: int, dim: int) -> float:
        """Return the bytes that all vectors share: principal components with means and variances, or centroids."""
        if self.template.startswith("PCA"):
            return 4 * (1.5 * dim * dim + 2.5 * dim)
        return 4 * dim * (ivf_nlist(count) + (dim if self.template.startswith("RR") else 2))

    def size(self, count: int, dim: int) -> float:
        """Return the approximate bytes of an index and its rows."""
        return (self.bytes_per_vector(dim) + ROW_BYTES) * count + self.fixed_bytes(count, dim)


# no other spec is faster at the same recall and memory (docs/log.md); the graph in 8 bits needs principal components
# that decay, the others do not. The rotation (RR) spreads the variance evenly over the dimensions, as codes of few bits
# assume; a PCA head does not
SPECS = (
    IndexSpec(
        "graph over half of the principal components, reranked by full vectors",
        f"PCA{{half}},HNSW{_HNSW_LINKS}_SQ8,RFlat",
        lambda dim: dim / 2 + _HNSW_BYTES + 4 * dim,
        ("efSearch", "k_factor_rf"),
    ),
    IndexSpec(
        "graph over half of the principal components in 8 bits",
        f"PCA{{half}},HNSW{_HNSW_LINKS}_SQ8",
        lambda dim: dim / 2 + _HNSW_BYTES,
        ("efSearch",),
    ),
    IndexSpec("inverted lists with 8 bits per dimension", "IVF{nlist},SQ8", lambda dim: dim + _IVF_BYTES, ("nprobe",)),
    IndexSpec(
        "inverted lists with 1 bit per dimension, reranked by 8 bits",
        "RR{dim},IVF{nlist},RaBitQ,Refine(SQ8)",
        lambda dim: dim + dim / 8 + 8 + _IVF_BYTES,
        ("nprobe", "k_factor_rf"),
    ),
    IndexSpec(
        "inverted lists with 4 bits per dimension",
        "RR{dim},IVF{nlist},RaBitQ4",
        lambda dim: dim / 2 + 16 + _IVF_BYTES,
        ("nprobe",),
    ),
    IndexSpec(
        "inverted lists with 1 bit per dimension",
        "RR{dim},IVF{nlist},RaBitQ",
        lambda dim: dim / 8 + 8 + _IVF_BYTES,
        ("nprobe",),
    ),
)

# of the snapshots of a changed index: it can be filtered, and its scores are nearly exact
SNAPSHOT_SPEC = IndexSpec(
    "inverted lists with 16 bits per dimension", "IVF{nlist},SQfp16", lambda dim: 2 * dim + _IVF_BYTES, ("nprobe",)
)


class RecallProbe:
    """Queries that are not in an index, and the positions of their exact neighbours among its vectors.

    `rows` are the vectors in the index, by position; `queries` are vectors `(n_query, dim)` of other rows.
    """

    def __init__(self, take: TakeVectors, rows: Ints, queries: Vectors, progress: Progress) -> None:
        self.take, self.rows, self.queries = take, rows, queries

        def block(start: int) -> Vectors:
            progress.step("exact neighbours of held-out vectors", start, len(rows))
            return take(rows[start : start + _COMPARED])

        blocks = map(block, range(0, len(rows), _COMPARED))
        scores, self.neighbours = nearest_by_faiss(queries, blocks, RECALL_AT)
        progress.step("exact neighbours of held-out vectors", len(rows), len(rows))
        self._lowest = scores[:, -1] - _TIE

    def recall(self, positions: Ints) -> float:
        """Return the share of exact neighbours in positions `(n_query, RECALL_AT)`; ties with the last one count."""
        correct = (positions[:, :, None] == self.neighbours[:, None, :]).any(axis=2)
        query, hit = np.nonzero(~correct)
        scores = np.einsum("ij,ij->i", self.queries[query], self.take(self.rows[positions[query, hit]]))
        correct[query, hit] = scores >= self._lowest[query]
        return float(correct.mean())


def _nearest(index: FaissIndex, queries: Vectors) -> Ints:
    """Return positions `(n_query, RECALL_AT)`; searches as `ApproximateIndex` does."""
    return index.nearest(queries, min(RECALL_AT + EXTRA_HITS, len(index)))[1][:, :RECALL_AT]


def autotune(
    take: TakeVectors, count: int, dim: int, budget: Budget, checkpoint: BuildCheckpoint, progress: Progress
) -> tuple[ApproximateIndex, TuningReport]:
    """Build the fastest index of `count` vectors within a budget whose recall is below 1, or raise `OptionError`."""
    specs = {s.name: s for s in SPECS if budget.max_memory is None or s.size(count, dim) <= budget.max_memory}
    if not specs:
        raise OptionError(
            f"{count} vectors of {dim} dimensions take at least "
            f"{format_size(min(spec.size(count, dim) for spec in SPECS))}, and `max_memory` is "
            f"{format_size(budget.max_memory or 0)}; allow more memory.",
            argument="max_memory",
        )
    rows = np.arange(count, dtype=np.int64)
    held_out = spaced(rows, min(HELD_OUT, max(1, count // 10)))
    rest = np.setdiff1d(rows, held_out)
    queries = take(held_out)
    sample = RecallProbe(take, spaced(rest, SAMPLE), queries, SILENT)
    tried = checkpoint.tried.setdefault(repr(budget), [])  # an interrupted run may have tried some
    for spec in list(specs.values())[len(tried) :]:
        tried.append(tune(spec, build(spec, sample, BuildCheckpoint(), SILENT), sample, budget))
        progress.info(f"  tried on {len(sample.rows)} vectors: {describe(tried[-1])}")
        checkpoint.save_tried()
    # those that reach the recall, or the nearest if none does: held-out vectors and a sample only estimate it
    able = [p for p in tried if p.recall >= budget.min_recall] or [max(tried, key=lambda p: p.recall)]
    in_time = [p for p in able if budget.max_ms is None or p.single_ms <= budget.max_ms]
    if not in_time:
        fastest = min(tried, key=lambda point: point.single_ms)
        raise OptionError(
            f"no index is within {budget}; the fastest is {describe(fastest)}. Allow more time.", argument="max_ms"
        )
    probe = RecallProbe(take, rest, queries, progress)
    rejected: list[OperatingPoint] = []
    for candidate in sorted(in_time, key=lambda point: point.single_ms):
        spec = specs[candidate.spec]
        index = build(spec, probe, checkpoint, progress)
        point = tune(spec, index, probe, budget)
        complete = replace(point, bytes=round(point.bytes * count / len(rest)))
        if budget.allows(complete):
            index.add(queries)
            measured = replace(point, bytes=index.size + ROW_BYTES * count)
            reason = _reason(measured, tried, rejected, len(queries), budget)
            report = TuningReport(reason, measured, tuple(tried), tuple(rejected))
            return ApproximateIndex(index, np.concatenate([rest, held_out])), report
        progress.info(f"  rejected, not within {budget}: {describe(complete)}")
        rejected.append(complete)
        del index  # frees its memory before the next one is built
    raise OptionError(
        f"no index is within {budget}; these were built: {'; '.join(map(describe, rejected))}. "
        "Lower `min_recall` or allow more memory or time.",
        argument="min_recall",
    )


def build(spec: IndexSpec, probe: RecallProbe, checkpoint: BuildCheckpoint, progress: Progress) -> FaissIndex:
    """Build an index of the probe's rows in order, block by block; resumes the checkpoint and saves it every minute."""
    take, rows, dim = probe.take, probe.rows, probe.queries.shape[1]
    key = spec.key(len(rows), dim)
    index = checkpoint.load_index(key)
    if index is None:
        index = FaissIndex.create(key, dim)
        progress.step(f"building {key}", 0, len(rows))
        sample = spaced(rows, max(_TRAINING_PER_LIST * ivf_nlist(len(rows)), _TRAINING_MIN))
        index.train(np.ascontiguousarray(take(sample)))
        checkpoint.save_index(index)
    saved = time.monotonic()
    for start in range(len(index), len(rows), BLOCK):
        index.add(take(rows[start : start + BLOCK]))
        progress.step(f"building {key}", len(index), len(rows))
        if time.monotonic() - saved > _CHECKPOINT_SECONDS:
            checkpoint.save_index(index)
            saved = time.monotonic()
    checkpoint.save_index(index)
    return index


def tune(spec: IndexSpec, index: FaissIndex, probe: RecallProbe, budget: Budget) -> OperatingPoint:
    """Set an index to the smallest search depth that reaches the budget's recall, and measure it there."""
    ranges = {"efSearch": (16, 1024), "nprobe": (1, ivf_nlist(len(index))), "k_factor_rf": (1, 64)}
    grids = {name: _grid(*ranges[name]) for name in spec.search_params}
    required = min(1.0, budget.min_recall + RECALL_MARGIN)
    index.set_parameters({name: grid[-1] for name, grid in grids.items()})
    for name, grid in grids.items():

        def reaches(value: int, name: str = name) -> bool:
            index.set_parameters({**index.parameters, name: value})
            return probe.recall(_nearest(index, probe.queries)) >= required

        smallest = bisect_left(grid, True, hi=len(grid) - 1, key=reaches)  # recall rises with the value
        index.set_parameters({**index.parameters, name: grid[smallest]})
    seconds = _fastest_round(lambda: _seconds(_nearest, index, probe.queries))
    return OperatingPoint(
        spec=spec.name,
        key=index.key,
        vectors=len(index),
        parameters=index.parameters,
        recall=probe.recall(_nearest(index, probe.queries)),
        queries_per_second=len(probe.queries) / seconds,
        single_ms=time_single(lambda query: _nearest(index, query), probe.queries),
        bytes=index.size + ROW_BYTES * len(index),
    )


def _grid(low: int, high: int) -> list[int]:
    """Return the powers of two times `low` and the integers at quarters between them, up to `high`."""
    powers = [low * 2**n for n in range((high // low).bit_length() + 1)]
    return sorted({value for p in powers for quarters in (4, 5, 6, 7) if (value := p * quarters // 4) <= high})


def time_single(search: Callable[[Floats], object], queries: Vectors) -> float:
    """Return the median milliseconds of a search with one query."""
    return 1e3 * _fastest_round(lambda: np.median([_seconds(search, q[None]) for q in queries[:_TIMED_QUERIES]]))


def _fastest_round(measure: Callable[[], float]) -> float:
    end = time.perf_counter() + _TIMED_SECONDS
    fastest = measure()
    while time.perf_counter() < end:
        fastest = min(fastest, measure())
    return float(fastest)


def _seconds(search: Callable[..., object], *arguments: object) -> float:
    clock = time.perf_counter()
    search(*arguments)
    return time.perf_counter() - clock


def describe(point: OperatingPoint) -> str:
    """Format an operating point."""
    return (
        f"{point.key}, {point.spec}: recall@{RECALL_AT} {point.recall:.3f}, {point.single_ms:.2f} ms per query, "
        f"{point.queries_per_second:.0f} queries/s in a batch, {format_size(point.bytes)}"
    )


def _reason(
    point: OperatingPoint,
    tried: Sequence[OperatingPoint],
    rejected: Sequence[OperatingPoint],
    queries: int,
    budget: Budget,
) -> str:
    able = sum(p.recall >= budget.min_recall for p in tried)
    rule = f"fastest of the {able} that reach the recall" if able else "nearest to the recall, which none reaches"
    after = f", after {', '.join(p.key for p in rejected)} exceeded the budget" if rejected else ""
    return (
        f"selected {point.key} ({point.spec}) for {budget}: the {rule}, of {len(tried)} tried on "
        f"{max(p.vectors for p in tried)} vectors{after}. With {queries} held-out vectors as queries: "
        f"recall@{RECALL_AT} {point.recall:.3f}, {point.single_ms:.2f} ms per query, {format_size(point.bytes)}"
    )
