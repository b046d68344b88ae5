"""The value object that measuring returns: one value for each measure and query, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lookalike.errors import DataError, OptionError
from lookalike.evaluation.intervals import Comparison, bootstrap_interval, compare
from lookalike.evaluation.measures import Measure, Values
from lookalike.types import Hits


class ClassMean(NamedTuple):
    """The mean over the queries of one class."""

    mean: float
    queries: int


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured.

    Attributes:
        query_ids: the `n_query` queries that count.
        query_labels: `n_query` labels.
        values: by measure, `(n_query,)` float64 in the order of `query_ids`.
        left_out: queries that do not count: no label, or nothing relevant in the gallery.
        unlabelled: those of `left_out` that have no label.
        gallery: number of gallery items.
        top: the first hits of each query that counts, at most ten, in the order of `query_ids`.

    Raises:
        DataError: when the parts do not belong together.

    """

    query_ids: tuple[str, ...]
    query_labels: tuple[str, ...]
    values: Mapping[str, Values]
    left_out: tuple[str, ...]
    unlabelled: tuple[str, ...]
    gallery: int
    top: Hits

    def __post_init__(self) -> None:
        n = len(self.query_ids)
        if not n or not self.values:
            raise DataError(f"an evaluation needs queries and measures, got {n} and {len(self.values)}.")
        for name, values in self.values.items():
            if values.shape != (n,):
                raise DataError(f"{name} needs one value for each of {n} queries, got shape {values.shape}.")
        if len(self.query_labels) != n or self.top.query_ids != self.query_ids:
            raise DataError(f"labels and top hits of an evaluation must belong to its {n} queries, in their order.")

    def __len__(self) -> int:
        return len(self.query_ids)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What was measured, in the order asked for."""
        return tuple(Measure.parse(name) for name in self.values)

    def per_query(self, measure: str | Measure) -> Values:
        """Return the `(n_query,)` values of a measure; one that was not measured raises `OptionError`."""
        name = str(Measure.parse(measure))
        if name not in self.values:
            raise OptionError(f"{name} was not measured here; measured are {', '.join(self.values)}.")
        return self.values[name]

    def mean(self, measure: str | Measure) -> float:
        """Return the mean over the queries that count."""
        return float(self.per_query(measure).mean())

    def interval(self, measure: str | Measure) -> tuple[float, float]:
        """Return low and high of the bootstrap 95 % interval of the mean."""
        return bootstrap_interval(self.per_query(measure))

    def per_class(self, measure: str | Measure | None = None) -> dict[str, ClassMean]:
        """Return mean and number of queries by query label, sorted by label; by default of the first measure."""
        values = self.per_query(next(iter(self.values)) if measure is None else measure)
        labels, place, counts = np.unique(np.array(self.query_labels), return_inverse=True, return_counts=True)
        sums = np.bincount(place, weights=values)
        means = zip(labels.tolist(), (sums / counts).tolist(), counts.tolist(), strict=True)
        return {label: ClassMean(mean, queries) for label, mean, queries in means}

    def compare(self, other: Evaluation, measure: str | Measure) -> Comparison:
        """Compare with another candidate by paired bootstrap; a positive difference speaks for this one.

        Raises:
            DataError: when the two did not measure the same queries.

        """
        if set(self.query_ids) != set(other.query_ids):
            odd = min(set(self.query_ids) ^ set(other.query_ids))
            raise DataError(f"candidates are compared on the same queries, but only one of them measured {odd!r}.")
        place = {query: n for n, query in enumerate(other.query_ids)}
        return compare(self.per_query(measure), other.per_query(measure)[[place[q] for q in self.query_ids]])

    def note(self) -> str:
        """Say in a sentence which queries were left out, and why; empty when all count."""
        if not self.left_out:
            return ""
        lonely = len(self.left_out) - len(self.unlabelled)
        reasons = [f"{lonely} with nothing relevant in the gallery"] if lonely else []
        reasons += [f"{len(self.unlabelled)} without a label"] if self.unlabelled else []
        everyone = len(self.left_out) + len(self)
        left = len(self.left_out)
        return f"{left} of {everyone} queries left out: {', '.join(reasons)}; the first is {self.left_out[0]}."

    def to_dict(self) -> dict[str, Any]:
        """Return means and intervals as a plain structure: what `evaluate --json` prints."""
        measures = {}
        for name in self.values:
            low, high = self.interval(name)
            measures[name] = {"mean": self.mean(name), "low": low, "high": high}
        return {"measures": measures, "queries": len(self), "left_out": len(self.left_out), "gallery": self.gallery}
