"""Measures of a ranking, as values: `Measure.parse("precision@3")` prints, hashes and compares.

Each row of `REGISTRY` has a definition in words and the function that computes it. All measures are per query; means
and intervals are in `lookalike.evaluation.evaluation`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from lookalike.errors import DataError, OptionError

# `(n_query, depth)`: whether the hit at each rank is relevant, best first.
Relevant = npt.NDArray[np.bool_]

# `(n_query,)`: number of gallery items that are relevant to the query; at least 1.
Total = npt.NDArray[np.int64]

# `(n_query,)`: one value per query.
Values = npt.NDArray[np.float64]

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


class Depth(StrEnum):
    """Depth of the ranking that a measure needs, where it is not a fixed number."""

    RELEVANT = "relevant"  # as many hits as the query has relevant gallery items
    GALLERY = "gallery"  # the whole gallery


def _floats(values: npt.ArrayLike) -> Values:
    return np.asarray(values, dtype=np.float64)


def _precision(relevant: Relevant, _: Total, k: int) -> Values:
    return _floats(relevant[:, :k].sum(axis=1) / k)


def _hit(relevant: Relevant, _: Total, k: int) -> Values:
    return _floats(relevant[:, :k].any(axis=1))


def _recall(relevant: Relevant, total: Total, k: int) -> Values:
    return _floats(relevant[:, :k].sum(axis=1) / total)


def _average_precision(relevant: Relevant, total: Total, k: int) -> Values:
    first = relevant[:, :k]
    ranks = np.arange(1, first.shape[1] + 1)
    return _floats((first * (np.cumsum(first, axis=1) / ranks)).sum(axis=1) / total)


def _average_precision_at_r(relevant: Relevant, total: Total, _: int) -> Values:
    deepest = int(total.max(initial=1))
    within = np.arange(1, deepest + 1) <= total[:, None]  # (n_query, deepest): ranks up to each query's own R
    return _average_precision(relevant[:, :deepest] & within, total, deepest)


def _reciprocal_rank(relevant: Relevant, _total: Total, _: int) -> Values:
    return np.where(relevant.any(axis=1), 1.0 / (np.argmax(relevant, axis=1) + 1), 0.0)


def _ndcg(relevant: Relevant, total: Total, k: int) -> Values:
    gains = 1.0 / np.log2(np.arange(2, k + 2))  # by rank
    ideal = np.cumsum(gains)[np.minimum(total, k) - 1]
    return _floats((relevant[:, :k] @ gains) / ideal)


def _points(relevant: Relevant, total: Total, _: int) -> Values:
    return 600 * _hit(relevant, total, 1) + 300 * _hit(relevant, total, 5) + 100 * _hit(relevant, total, 10)


@dataclass(frozen=True)
class MeasureKind:
    """One kind of measure."""

    pattern: str  # its text, with `@k` in place of a number
    definition: str  # its value for one query, in words
    # maps the judged ranking, the totals and k to `(n_query,)` values
    compute: Callable[[Relevant, Total, int], Values]
    depth: int | Depth | None = None  # number of hits that the ranking must have; None means k
    max_value: float = 1.0  # the largest value for one query
    title: str | None = None  # its title in tables, a format string with `{k}`; None means the measure's text


_ROWS = (
    MeasureKind(
        "precision@k", "relevant items among the first k hits, divided by k", _precision, title="top-{k} accuracy"
    ),
    MeasureKind(
        "hit@k", "1 if any of the first k hits is relevant, else 0; CUB and SOP papers print it as Recall@k", _hit
    ),
    MeasureKind(
        "recall@k", "relevant items among the first k hits, divided by R, all relevant items of the gallery", _recall
    ),
    MeasureKind(
        "map@k",
        "the precision at the rank of each relevant hit among the first k, summed and divided by R, all relevant items "
        "of the gallery (as TREC does)",
        _average_precision,
    ),
    MeasureKind(
        "map@r",
        "map@k with k = R, the query's own number of relevant gallery items "
        "(Musgrave, Belongie and Lim 2020, A Metric Learning Reality Check)",
        _average_precision_at_r,
        depth=Depth.RELEVANT,
    ),
    MeasureKind(
        "mrr", "1 / rank of the first relevant hit in the whole gallery", _reciprocal_rank, depth=Depth.GALLERY
    ),
    MeasureKind(
        "ndcg@k",
        "1 / log2(rank + 1) summed over the relevant hits among the first k, divided by the same sum of the best "
        "possible ranking (Järvelin and Kekäläinen 2002, Cumulated Gain-based Evaluation of IR Techniques)",
        _ndcg,
    ),
    MeasureKind(
        "points@1,5,10",
        "600 · hit@1 + 300 · hit@5 + 100 · hit@10, so 1000 at best",
        _points,
        depth=10,
        max_value=1000.0,
    ),
)

# By pattern, in the order of tables.
REGISTRY: Mapping[str, MeasureKind] = MappingProxyType({row.pattern: row for row in _ROWS})


@dataclass(frozen=True, order=True)
class Measure:
    """A measure, such as `precision@3` or `mrr`; measures with the same text are equal.

    Attributes:
        pattern: the key of its row in `REGISTRY`.
        k: the number in place of `@k`, None if the pattern has none.

    Raises:
        OptionError: an unknown pattern, or a k that is missing, below 1 or out of place.
    """

    pattern: str
    k: int | None = None

    def __post_init__(self) -> None:
        takes_k = self.pattern.endswith("@k")
        if self.pattern not in REGISTRY or takes_k != (self.k is not None) or (self.k is not None and self.k < 1):
            raise _unknown(self.pattern if self.k is None else f"{self.pattern} with k = {self.k}")

    def __str__(self) -> str:
        return self.pattern if self.k is None else f"{self.pattern.removesuffix('k')}{self.k}"

    @classmethod
    def parse(cls, text: str | Measure, *, argument: str = "measures") -> Measure:
        """Parse the text of a measure, in any case; a `Measure` is returned unchanged.

        An unknown measure is an `OptionError` that concerns `argument`.
        """
        if isinstance(text, Measure):
            return text
        name = text.strip().lower() if isinstance(text, str) else ""
        stem, _, number = name.partition("@")
        if name in REGISTRY and number != "k":
            return cls(name)
        if f"{stem}@k" in REGISTRY and _NUMBER.fullmatch(number):
            return cls(f"{stem}@k", int(number))
        raise _unknown(text, argument)

    @property
    def definition(self) -> str:
        """Its value for one query, in words."""
        return REGISTRY[self.pattern].definition

    @property
    def title(self) -> str:
        """Its title in tables: "top-3 accuracy" for `precision@3`, its text for the others."""
        title = REGISTRY[self.pattern].title
        return str(self) if title is None else title.format(k=self.k)

    @property
    def depth(self) -> int | Depth:
        """Depth of the ranking that it needs: a number of hits, R of each query, or the whole gallery."""
        depth = REGISTRY[self.pattern].depth
        return depth if depth is not None else (self.k or 1)

    @property
    def max_value(self) -> float:
        """The largest value for one query."""
        return REGISTRY[self.pattern].max_value

    @property
    def min_gallery(self) -> int:
        """Number of images that a gallery must have at least."""
        return self.depth if isinstance(self.depth, int) else 1

    def ceiling(self, total: Total) -> float:
        """Return the mean over queries that the best possible ranking has: a precision@3 of 2/3 with 2 relevant items.

        `total` `(n_query,)` is the number of relevant items of each query, at least 1.
        """
        depth = self.depth if isinstance(self.depth, int) else int(total.max())
        return float(self.values(np.arange(depth) < total[:, None], total).mean())

    def values(self, relevant: Relevant, total: Total) -> Values:
        """Compute `(n_query,)` float64 values from relevant hits `(n_query, depth)` and the number of relevant items.

        Raises:
            DataError: the ranking is shallower than `depth` (not checked for `mrr`), the shapes differ, or a query has
                nothing relevant.
        """
        if relevant.ndim != 2 or total.shape != relevant.shape[:1]:
            raise DataError(
                f"{self} needs a judged ranking (n_query, depth) and totals (n_query,), "
                f"got {relevant.shape} and {total.shape}."
            )
        if total.size and total.min() < 1:
            raise DataError(
                f"{self} is not defined for a query with nothing relevant in the gallery; exclude it.", argument="total"
            )
        needed = {Depth.RELEVANT: int(total.max(initial=1)), Depth.GALLERY: 1}
        depth = self.depth if isinstance(self.depth, int) else needed[self.depth]
        if relevant.shape[1] < depth:
            raise DataError(
                f"{self} needs a ranking of {depth} hits, got one of {relevant.shape[1]}.", argument="relevant"
            )
        return REGISTRY[self.pattern].compute(relevant, total, self.k or 0)


def parse_measures(measures: str | Measure | Sequence[str | Measure]) -> tuple[Measure, ...]:
    """Parse one measure or several, or raise `OptionError`; duplicates are dropped, the order stays."""
    sequence = (measures,) if isinstance(measures, str | Measure) else measures
    parsed = tuple(dict.fromkeys(Measure.parse(m) for m in sequence))
    if not parsed:
        raise OptionError("`measures` is empty; name at least one measure, such as precision@3.", argument="measures")
    return parsed


def _unknown(text: object, argument: str = "measures") -> OptionError:
    shown = text if isinstance(text, str) else repr(text)
    return OptionError(
        f"the measure {shown!r} is not known; use one of {', '.join(REGISTRY)}, with a whole number from 1 "
        "in place of k, such as precision@3.",
        argument=argument,
    )
