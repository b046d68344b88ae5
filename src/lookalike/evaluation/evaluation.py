"""Measuring a model: embeddings and labels in, one `Evaluation` out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from lookalike.data.dataset import Dataset, Split
from lookalike.errors import DataError, OptionError
from lookalike.evaluation.bootstrap import mean_interval, paired_bootstrap
from lookalike.evaluation.measures import Depth, Measure, Values, parse_measures
from lookalike.evaluation.ranking import find_relevance, iter_judged
from lookalike.evaluation.reliability import Reliability
from lookalike.reranking.reranker import Reranker
from lookalike.types import Comparison, Embeddings, Estimate, Hits, Skipped

# The first is called top-3 accuracy in tables.
DEFAULT_MEASURES = ("precision@3", "hit@3", "hit@1", "map@r", "mrr")


class ClassMean(NamedTuple):
    """The mean over the queries of one class, and its 95 % interval."""

    mean: float
    queries: int
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The measures of a model; printing it shows them as a table.

    Attributes:
        query_ids: the n_query queries that count.
        query_labels: n_query labels.
        values: by measure, `(n_query,)` float64 in the order of `query_ids`.
        excluded: queries that do not count: no label, or nothing relevant in the gallery.
        unlabelled: those of `excluded` that have no label.
        gallery: number of gallery items.
        hits: the first hits of each query that counts, at most ten, in the order of `query_ids`.
        skipped: files that could not be read.
        against: by measure, the comparison with another model, as `compare` returns it; empty without one.
        against_model: the name of that model.
        reliability: how good the probabilities of the model are; None if it has no calibration.

    Raises:
        DataError: the attributes do not fit together.
    """

    query_ids: tuple[str, ...]
    query_labels: tuple[str, ...]
    values: Mapping[str, Values]
    excluded: tuple[str, ...]
    unlabelled: tuple[str, ...]
    gallery: int
    hits: Hits
    skipped: tuple[Skipped, ...] = ()
    against: Mapping[str, Comparison] = field(default_factory=dict)
    against_model: str = ""
    reliability: Reliability | None = None

    def __post_init__(self) -> None:
        n = len(self.query_ids)
        if not n or not self.values:
            raise DataError(f"an evaluation needs queries and measures, got {n} and {len(self.values)}.")
        for name, values in self.values.items():
            if values.shape != (n,):
                raise DataError(
                    f"{name} needs one value for each of {n} queries, got shape {values.shape}.", argument="values"
                )
        if len(self.query_labels) != n or self.hits.query_ids != self.query_ids:
            raise DataError(f"the labels and hits of an evaluation must be those of its {n} queries, in their order.")

    def __len__(self) -> int:
        return len(self.query_ids)

    def __repr__(self) -> str:
        name = next(iter(self.values))
        return f"<Evaluation: {name} {self.mean(name):.4f}, {len(self)} queries, {self.gallery} gallery images>"

    def __str__(self) -> str:
        rows = [("measure", "mean", "95 % interval")]
        rows += [(name, f"{e.mean:.4f}", f"{e.low:.4f} to {e.high:.4f}") for name, e in self.measures.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
        counts = f"{len(self)} queries, {len(self.excluded)} excluded, {self.gallery} gallery images"
        if self.against:
            differences = [f"vs {self.against_model}", *map(str, self.against.values())]
            lines = [f"{line}  {difference}" for line, difference in zip(lines, differences, strict=True)]
        lines += ["", counts]
        if self.reliability is not None:
            lines.append(str(self.reliability))
        return "\n".join(lines)

    @cached_property
    def measures(self) -> Mapping[str, Estimate]:
        """Mean and interval of each measure by its name, in the requested order."""
        return {
            name: Estimate(float(values.mean()), *mean_interval(values, Measure.parse(name).max_value))
            for name, values in self.values.items()
        }

    def per_query(self, measure: str | Measure) -> Values:
        """Return the `(n_query,)` values of a measure; raise `OptionError` if it was not measured."""
        name = str(Measure.parse(measure))
        if name not in self.values:
            raise OptionError(f"{name} was not measured; available: {', '.join(self.values)}.", argument="measure")
        return self.values[name]

    def mean(self, measure: str | Measure) -> float:
        """Return the mean over the queries that count."""
        return float(self.per_query(measure).mean())

    def per_class(self, measure: str | Measure | None = None) -> dict[str, ClassMean]:
        """Return mean, number of queries and interval by query label, sorted; by default of the first measure."""
        measure = Measure.parse(next(iter(self.values)) if measure is None else measure)
        values = self.per_query(measure)
        by_label: dict[str, list[float]] = {label: [] for label in sorted(set(self.query_labels))}
        for label, value in zip(self.query_labels, values.tolist(), strict=True):
            by_label[label].append(value)
        return {
            label: ClassMean(sum(values) / len(values), len(values), *mean_interval(values, measure.max_value))
            for label, values in by_label.items()
        }

    def compare(self, other: Evaluation, measure: str | Measure) -> Comparison:
        """Compare with another model on the same queries, by paired bootstrap; above 0 this one is better.

        The result has `difference`, the mean of this model minus that of `other`, `low` and `high` of its 95 %
        interval, and `significant`, whether 0 lies outside it. Two intervals that overlap do not mean that two models
        are equally good; this does compare them.

        Raises:
            DataError: the two measured different queries.
            OptionError: one of them did not take the measure.
        """
        if not isinstance(other, Evaluation):
            raise OptionError(
                f"`other` must be an Evaluation, got {type(other).__name__}; pass what evaluate returns.",
                argument="other",
            )
        differing = set(self.query_ids) ^ set(other.query_ids)
        if differing:
            raise DataError(
                f"candidates are compared on the same queries, but only one of them measured {min(differing)!r}.",
                argument="other",
            )
        rows = {query: row for row, query in enumerate(other.query_ids)}
        others = other.per_query(measure)[[rows[query] for query in self.query_ids]]
        return paired_bootstrap(self.per_query(measure), others)

    def note(self) -> str:
        """Return a sentence about the excluded queries, empty if there are none."""
        if not self.excluded:
            return ""
        unmatched = len(self.excluded) - len(self.unlabelled)
        reasons = [f"{unmatched} with nothing relevant in the gallery"] if unmatched else []
        reasons += [f"{len(self.unlabelled)} without a label"] if self.unlabelled else []
        total = len(self.excluded) + len(self)
        return f"{len(self.excluded)} of {total} queries excluded: {', '.join(reasons)} (first: {self.excluded[0]})."

    def to_dict(self) -> dict[str, Any]:
        """Return measures and counts for JSON, as `evaluate --json` prints them; comparison and reliability if any."""
        content: dict[str, Any] = {
            "measures": {name: asdict(estimate) for name, estimate in self.measures.items()},
            "queries": len(self),
            "excluded": len(self.excluded),
            "gallery": self.gallery,
        }
        if self.against:
            content["against_model"] = self.against_model
            content["against"] = {n: {**asdict(c), "significant": c.significant} for n, c in self.against.items()}
        if self.reliability is not None:
            content["reliability"] = self.reliability.to_dict()
        return content


def evaluate_validation(
    data: Dataset, embeddings: Embeddings, measures: Sequence[str | Measure], *, reranker: Reranker | None = None
) -> Evaluation:
    """Measure the embeddings of the validation split: its queries in its gallery, or each image in all others."""
    labels = data.labels(Split.VALIDATION)
    return evaluate_embeddings(
        *split_validation(data, embeddings),
        labels,
        labels,
        measures,
        same_file_ids=data.same_file_ids,
        reranker=reranker,
    )


def split_validation(data: Dataset, embeddings: Embeddings) -> tuple[Embeddings, Embeddings]:
    """Return queries and gallery of the validation split, twice the same for leave-one-out."""
    query_ids = data.validation_query_ids
    if not query_ids:
        return embeddings, embeddings
    queries, gallery = ([i for i in embeddings.ids if (i in query_ids) == is_query] for is_query in (True, False))
    return embeddings.take(queries), embeddings.take(gallery)


def evaluate_embeddings(
    queries: Embeddings,
    gallery: Embeddings,
    query_labels: Mapping[str, str],
    gallery_labels: Mapping[str, str],
    measures: Sequence[str | Measure] = DEFAULT_MEASURES,
    *,
    same_file_ids: Mapping[str, Collection[str]] | None = None,
    reranker: Reranker | None = None,
) -> Evaluation:
    """Measure how well the gallery is ranked for the queries; labels are by item id.

    A query is never its own hit: the same embeddings on both sides mean leave-one-out. Nor are `same_file_ids`, the
    gallery items with a query's file, by its id. Queries without a label or without anything relevant in the gallery
    are excluded; gallery items without a label are relevant to no query. With a reranker its order is measured.
    """
    parsed = parse_measures(measures)
    relevance = find_relevance(queries, gallery, query_labels, gallery_labels, same_file_ids)
    for measure in parsed:
        if measure.min_gallery > relevance.max_depth:
            without = " besides the query itself" if relevance.max_depth < relevance.gallery else ""
            raise OptionError(
                f"{measure} needs {measure.min_gallery} hits, but the gallery has only {relevance.max_depth} "
                f"items{without}; choose a smaller k or a larger gallery.",
                argument="measures",
            )
    depths = {Depth.RELEVANT: int(relevance.total.max()), Depth.GALLERY: relevance.gallery}
    depth = max(depths[m.depth] if isinstance(m.depth, Depth) else m.depth for m in parsed)
    values: dict[str, list[Values]] = {str(measure): [] for measure in parsed}
    chunks = []
    similarities = None if reranker is None else reranker.similarities(queries, gallery, same_file_ids)
    for relevant, total, hits in iter_judged(queries, gallery, relevance, depth, similarities):
        for measure in parsed:
            values[str(measure)].append(measure.values(relevant, total))
        chunks.append(hits)
    return Evaluation(
        query_ids=relevance.query_ids,
        query_labels=relevance.query_labels,
        values={name: np.concatenate(arrays) for name, arrays in values.items()},
        excluded=relevance.excluded,
        unlabelled=relevance.unlabelled,
        gallery=relevance.gallery,
        hits=Hits(
            relevance.query_ids,
            np.concatenate([hits.ids for hits in chunks]),
            np.concatenate([hits.scores for hits in chunks]),
        ),
        skipped=(*queries.skipped, *(file for file in gallery.skipped if file not in queries.skipped)),
    )
