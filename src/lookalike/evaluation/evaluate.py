"""Measuring a model: embeddings and labels in, one `Evaluation` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lookalike.evaluation.measures import Depth, Measure, Values, parse_measures
from lookalike.evaluation.ranking import join_hits, judged_chunks
from lookalike.evaluation.relevance import Relevance, find_relevance
from lookalike.evaluation.result import Evaluation
from lookalike.types import Embeddings

DEFAULT = ("precision@3", "hit@3", "hit@1", "map@r", "mrr")
"""What is measured when nobody says; the first is the report's top-3 accuracy."""


def evaluate_embeddings(
    queries: Embeddings,
    gallery: Embeddings,
    query_labels: Mapping[str, str],
    gallery_labels: Mapping[str, str],
    measures: Sequence[str | Measure] = DEFAULT,
) -> Evaluation:
    """Measure how well the gallery is ranked for the queries; see `judge` for the rules.

    Args:
        queries: embeddings of the queries; the gallery again means leave-one-out.
        gallery: embeddings of the gallery, by the same model.
        query_labels: label by query id.
        gallery_labels: label by gallery id.
        measures: such as `("precision@3", "mrr")`.

    Raises:
        OptionError: for an unknown measure, or one that looks deeper than the gallery is.
        FingerprintMismatch: when the two were made by different models.
        DataError: when labels are missing or no query counts.

    """
    chosen = parse_measures(measures)
    relevance = find_relevance(queries, gallery, query_labels, gallery_labels)
    depth = max(_hits_needed(measure, relevance) for measure in chosen)
    values: dict[str, list[Values]] = {str(measure): [] for measure in chosen}
    tops = []
    for chunk in judged_chunks(queries, gallery, relevance, depth):
        for measure in chosen:
            values[str(measure)].append(measure.values(chunk.relevant, chunk.total))
        tops.append(chunk.top)
    return Evaluation(
        query_ids=relevance.query_ids,
        query_labels=relevance.query_labels,
        values={name: np.concatenate(parts) for name, parts in values.items()},
        left_out=relevance.left_out,
        unlabelled=relevance.unlabelled,
        gallery=relevance.gallery,
        top=join_hits(tops),
    )


def _hits_needed(measure: Measure, relevance: Relevance) -> int:
    depth = measure.depth
    if isinstance(depth, Depth):
        return {Depth.RELEVANT: int(relevance.total.max()), Depth.GALLERY: relevance.gallery}[depth]
    relevance.require_depth(depth, str(measure))
    return depth
