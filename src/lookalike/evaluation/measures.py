"""Measures of a ranking, as values: `Measure.parse("precision@3")` prints, hashes and compares.

Each row of `REGISTRY` holds a definition in words apart from the function that computes it. All measures are per query;
means and intervals are taken elsewhere.
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

Relevant = npt.NDArray[np.bool_]
"""`(n_query, depth)`: whether the hit at each rank is relevant, best first."""
Total = npt.NDArray[np.int64]
"""`(n_query,)`: how many gallery items are relevant to the query, found or not; at least 1."""
Values = npt.NDArray[np.float64]
"""`(n_query,)`: one value a query."""

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


class Depth(StrEnum):
    """How deep a ranking must be where no fixed number says it."""

    RELEVANT = "relevant"
    """As deep as the query has relevant gallery items."""
    GALLERY = "gallery"
    """The whole gallery."""


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
class Row:
    """One kind of measure.

    Attributes:
        pattern: how it is written; `@k` stands for a number.
        definition: what it is for one query, apart from the way it is computed.
        compute: from the judged ranking, the totals and k to `(n_query,)` values.
        depth: how deep the ranking must be; None stands for k.
        title: how tables show it, `{k}` filled in; None shows the measure's own text.

    """

    pattern: str
    definition: str
    compute: Callable[[Relevant, Total, int], Values]
    depth: int | Depth | None = None
    title: str | None = None

    @property
    def takes_k(self) -> bool:
        """Whether the pattern has a k to fill in."""
        return self.pattern.endswith("@k")


_ROWS = (
    Row("precision@k", "relevant items among the first k hits, divided by k", _precision, title="top-{k} accuracy"),
    Row("hit@k", "1 if any of the first k hits is relevant, else 0; CUB and SOP papers print it as Recall@k", _hit),
    Row("recall@k", "relevant items among the first k hits, divided by R, all relevant items of the gallery", _recall),
    Row(
        "map@k",
        "the precision at the rank of each relevant hit among the first k, summed and divided by R, all relevant items "
        "of the gallery (as TREC does)",
        _average_precision,
    ),
    Row(
        "map@r",
        "map@k with k = R, the query's own number of relevant gallery items "
        "(Musgrave, Belongie and Lim 2020, A Metric Learning Reality Check)",
        _average_precision_at_r,
        depth=Depth.RELEVANT,
    ),
    Row("mrr", "1 / rank of the first relevant hit in the whole gallery", _reciprocal_rank, depth=Depth.GALLERY),
    Row(
        "ndcg@k",
        "1 / log2(rank + 1) summed over the relevant hits among the first k, divided by the same sum of the best "
        "possible ranking (Järvelin and Kekäläinen 2002, Cumulated Gain-based Evaluation of IR Techniques)",
        _ndcg,
    ),
    Row("points@1,5,10", "600 · hit@1 + 300 · hit@5 + 100 · hit@10, so 1000 at best", _points, depth=10),
)

REGISTRY: Mapping[str, Row] = MappingProxyType({row.pattern: row for row in _ROWS})
"""All kinds of measures by pattern, in the order that tables show them."""


@dataclass(frozen=True, order=True)
class Measure:
    """One measure, such as `precision@3` or `mrr`; two with the same text are equal.

    Attributes:
        pattern: the key of its row in `REGISTRY`.
        k: the number in place of `@k`, None where the pattern has none.

    Raises:
        OptionError: for an unknown pattern, or a k that is missing, below 1 or out of place.

    """

    pattern: str
    k: int | None = None

    def __post_init__(self) -> None:
        row = REGISTRY.get(self.pattern)
        if row is None or row.takes_k != (self.k is not None) or (self.k is not None and self.k < 1):
            raise _unknown(self.pattern if self.k is None else f"{self.pattern} with k = {self.k}")

    def __str__(self) -> str:
        return self.pattern if self.k is None else f"{self.pattern.removesuffix('k')}{self.k}"

    @classmethod
    def parse(cls, text: str | Measure) -> Measure:
        """Read a measure from its text; upper case is taken too, a `Measure` is returned as it is.

        Raises:
            OptionError: for any other text, with the list of what is allowed.

        """
        if isinstance(text, Measure):
            return text
        if not isinstance(text, str):
            raise _unknown(text)
        name = text.strip().lower()
        if name in REGISTRY and not REGISTRY[name].takes_k:
            return cls(name)
        stem, _, number = name.partition("@")
        if f"{stem}@k" in REGISTRY and _NUMBER.fullmatch(number):
            return cls(f"{stem}@k", int(number))
        raise _unknown(text)

    @property
    def definition(self) -> str:
        """What it is for one query, in words."""
        return REGISTRY[self.pattern].definition

    @property
    def title(self) -> str:
        """How tables show it: `precision@3` is the report's "top-3 accuracy", the others keep their text."""
        title = REGISTRY[self.pattern].title
        return str(self) if title is None else title.format(k=self.k)

    @property
    def depth(self) -> int | Depth:
        """How deep the ranking must be: a number of hits, up to R of each query, or the whole gallery."""
        depth = REGISTRY[self.pattern].depth
        return depth if depth is not None else (self.k or 1)

    @property
    def hits(self) -> int:
        """The fewest images that a gallery must have for it."""
        return self.depth if isinstance(self.depth, int) else 1

    def values(self, relevant: Relevant, total: Total) -> Values:
        """Compute `(n_query,)` float64 values from a judged ranking.

        Args:
            relevant: `(n_query, depth)` bool, whether the hit at each rank is relevant.
            total: `(n_query,)` int, the number of relevant gallery items of each query.

        Raises:
            DataError: when the ranking is shallower than `depth` (for `mrr` it cannot be known), the shapes differ,
                or a query has nothing relevant.

        """
        if relevant.ndim != 2 or total.shape != relevant.shape[:1]:
            raise DataError(
                f"{self} needs a judged ranking (n_query, depth) and totals (n_query,), "
                f"got {relevant.shape} and {total.shape}."
            )
        if total.size and total.min() < 1:
            raise DataError(f"{self} is not defined for a query with nothing relevant in the gallery; leave it out.")
        needed = {Depth.RELEVANT: int(total.max(initial=1)), Depth.GALLERY: 1}
        depth = self.depth if isinstance(self.depth, int) else needed[self.depth]
        if relevant.shape[1] < depth:
            raise DataError(f"{self} needs a ranking of {depth} hits, got one of {relevant.shape[1]}.")
        return REGISTRY[self.pattern].compute(relevant, total, self.k or 0)


def parse_measures(measures: str | Measure | Sequence[str | Measure]) -> tuple[Measure, ...]:
    """Read one measure or several, each kept once in the order given.

    Raises:
        OptionError: for an unknown measure, or none at all.

    """
    several = (measures,) if isinstance(measures, str | Measure) else measures
    chosen = tuple(dict.fromkeys(Measure.parse(m) for m in several))
    if not chosen:
        raise OptionError("no measure was given; name at least one, such as precision@3.")
    return chosen


def _unknown(text: object) -> OptionError:
    shown = text if isinstance(text, str) else repr(text)
    return OptionError(
        f"the measure {shown!r} is not known; allowed are {', '.join(REGISTRY)}, with a whole number from 1 "
        "in place of k, such as precision@3."
    )
